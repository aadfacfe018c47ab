"""Headers of GGUF files: what the `gguf` package reads, and what is refused."""

import pathlib

import gguf
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.tokenizers.gguf_reader import open_gguf_file

TYPES, VALUES = gguf.GGMLQuantizationType, gguf.GGUFValueType


class GGUFReaderTest(parameterized.TestCase):
    def path(self):
        return pathlib.Path(self.create_tempdir().full_path) / "model.gguf"

    def test_what_the_package_reads(self):
        path = self.path()
        rng = np.random.default_rng(0)
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_custom_alignment(64)
        for kind, value in {
            VALUES.UINT8: 255,
            VALUES.INT8: -128,
            VALUES.UINT16: 2**16 - 1,
            VALUES.INT16: -(2**15),
            VALUES.UINT32: 2**32 - 1,
            VALUES.INT32: -(2**31),
            VALUES.FLOAT32: 0.5,
            VALUES.BOOL: True,
            VALUES.STRING: "\u2581\U0001f600",
            VALUES.UINT64: 2**64 - 1,
            VALUES.INT64: -(2**63),
            VALUES.FLOAT64: 1e300,
        }.items():
            writer.add_key_value(kind.name, value, kind)
        for name, values in {
            "texts": ["", "a", "\u2581the"],
            "floats": [0.5, -1.0],
            "integers": [1, -2, 3],
            "truths": [True, False],
            "nothing": [""],
        }.items():
            writer.add_array(name, values)
        matrix = rng.normal(size=(3, 64)).astype(np.float32)
        for kind in (TYPES.Q8_0, TYPES.Q4_0, TYPES.Q5_1, TYPES.BF16):
            writer.add_tensor(kind.name, gguf.quantize(matrix, kind), raw_dtype=kind)
        for dtype in (np.float16, np.float32, np.float64):
            writer.add_tensor(np.dtype(dtype).name, matrix.astype(dtype))
        writer.add_tensor("vector", np.arange(5, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file, reader = open_gguf_file(path), gguf.GGUFReader(path)
        theirs = {name: field.contents() for name, field in reader.fields.items()}
        want = {name: value for name, value in theirs.items() if not name.startswith("GGUF.")}
        self.assertEqual(file.fields, want)
        self.assertEqual(
            {name: type(value) for name, value in file.fields.items()},
            {name: type(value) for name, value in want.items()},
        )
        self.assertEqual(list(file.tensors), [tensor.name for tensor in reader.tensors])
        for tensor in reader.tensors:
            got = file.read(tensor.name)
            self.assertEqual(got.shape, tuple(reversed(tensor.shape.tolist())))
            data = tensor.data
            if tensor.tensor_type != TYPES.F64:
                data = gguf.dequantize(data, tensor.tensor_type)
            np.testing.assert_array_equal(got, data)

    def test_a_type_without_a_reader(self):
        path = self.path()
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("numbers", np.arange(5, dtype=np.int32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with self.assertRaisesRegex(ValueError, "'numbers' is stored as I32, which cannot be read"):
            open_gguf_file(path).read("numbers")

    @parameterized.parameters(
        (b"", "its header has no end"),
        (b"GGML" + bytes(30), "it does not begin with GGUF"),
        (b"GGUF\x09\0\0\0" + bytes(30), "its version is 9, known are"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "18446744073709551615 tensors follow, but has room for 0"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\xff" * 8, "18446744073709551615 values follow"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 20, "a text has no end"),
    )
    def test_refusals(self, content, message):
        path = self.path()
        path.write_bytes(content)
        with self.assertRaisesRegex(ValueError, f"no GGUF file, damaged or cut short: .*{message}"):
            open_gguf_file(path)


if __name__ == "__main__":
    absltest.main()
