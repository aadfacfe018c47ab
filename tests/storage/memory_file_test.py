"""Memories on disk: every kind comes back bit by bit, and only into its own model."""

import dataclasses
import functools
import json
import pathlib
from unittest import mock

import chex
import jax
import numpy as np
import safetensors
from absl.testing import absltest, parameterized
from safetensors.numpy import save_file

from gradmem_jax import GradMem, load_memory, save_memory
from gradmem_jax.methods import METHODS
from gradmem_jax.storage import arrays_file
from gradmem_jax.storage.fingerprint import take_fingerprint
from gradmem_jax.storage.memory_file import StoredContext, read_header
from gradmem_jax.storage.memory_header import context_bytes
from tests.small import random_ids, small_batch, small_model, small_params, small_writer

CONTEXT = small_batch()["context_ids"]


@functools.cache
def written(name="gradmem"):
    model = small_writer(name)
    params = small_params(model)
    memory, _ = jax.jit(functools.partial(model.write_memory, num_steps=1))(params, CONTEXT)
    return model, params, memory


class MemoryFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path) / "memory.safetensors"

    @parameterized.named_parameters((name, name) for name in METHODS)
    def test_comes_back_bit_by_bit(self, name):
        model, params, memory = written(name)
        save_memory(self.path, memory, model, params)
        loaded = load_memory(self.path, model, params)
        self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(memory))
        chex.assert_trees_all_equal_dtypes(loaded, memory)
        chex.assert_trees_all_equal(loaded, memory)
        part = load_memory(self.path, model, params, slice(1, 3))
        chex.assert_trees_all_equal(part, jax.tree.map(lambda x: x[1:3], memory))

    def test_of_a_model_that_writes_in_parts(self):
        model, params, memory = written()
        model = dataclasses.replace(model, num_write_parts=2)
        save_memory(self.path, memory, model, params)
        chex.assert_trees_all_equal(load_memory(self.path, model, params), memory)

    def test_own_projection_and_half_precision(self):
        model = small_model(memory_projection="per_sample", lm={"param_dtype": "bfloat16"})
        params = small_params(model)
        memory = model.initial_memory(params, 2)
        save_memory(self.path, memory, model, params)
        loaded = load_memory(self.path, model, params)
        self.assertEqual(type(loaded), type(memory))
        self.assertEqual(loaded.tokens.dtype, jax.numpy.bfloat16)
        chex.assert_trees_all_equal(loaded, memory)

    def test_header_keeps_what_is_known(self):
        model, params, memory = written()
        contexts = [
            StoredContext(f"file {i}", 9 - i, ((3.0, 1.5), (2.0, 1.0)), 0.75) for i in range(3)
        ]
        notes = {"model": "runs/x", "rate": 0.5}
        save_memory(self.path, memory, model, params, contexts=contexts, notes=notes)
        header = read_header(self.path)
        self.assertEqual(header.contexts, tuple(contexts))
        self.assertEqual(header.notes, notes)
        self.assertEqual(header.fingerprint, take_fingerprint(model, params))
        self.assertEqual(header.config["lm.width"], 8)
        self.assertEqual([p.name for p in self.path.parent.iterdir()], [self.path.name])

    def test_losses_are_kept_as_float32_in_few_digits(self):
        model, params, memory = written()
        losses = np.random.default_rng(0).gamma(2.0, size=(3, 1, 400)).astype(np.float32)
        contexts = [
            StoredContext(str(i), 9, tuple(tuple(map(float, row)) for row in rows))
            for i, rows in enumerate(losses)
        ]
        save_memory(self.path, memory, model, params, contexts=contexts)
        stored = [context.write_losses for context in read_header(self.path).contexts]
        np.testing.assert_array_equal(np.asarray(stored, np.float32), losses)
        self.assertLess(context_bytes(contexts[0]), 12 * 400)
        beside = [dataclasses.replace(context, write_losses=()) for context in contexts]
        save_memory(self.path.with_name("beside"), memory, model, params, contexts=beside)
        more = self.path.stat().st_size - self.path.with_name("beside").stat().st_size
        self.assertLess(more, 12 * 1200)

    def test_refuses_more_to_say_than_a_file_has_room_for(self):
        model, params, memory = written()
        notes = {"text": '\u00e9"\n' * 1000}
        save_memory(self.path, memory, model, params, notes=notes)
        room = int.from_bytes(self.path.read_bytes()[:8], "little")
        with mock.patch.object(arrays_file, "LARGEST_HEADER", room + 8):
            save_memory(self.path, memory, model, params, notes=notes)
        with (
            mock.patch.object(arrays_file, "LARGEST_HEADER", room - 8),
            mock.patch.object(arrays_file, "write_file", side_effect=AssertionError),
            self.assertRaisesRegex(
                ValueError, rf"of 1 arrays takes \d+ bytes, .* at most {room - 8}; save fewer"
            ),
        ):
            save_memory(self.path, memory, model, params, notes=notes)

    def test_fingerprint_is_of_values_not_of_places(self):
        model, params, _ = written()
        on_device = jax.device_put(params, jax.devices()[-1])
        self.assertEqual(take_fingerprint(model, params), take_fingerprint(model, on_device))
        changed = jax.tree.map(np.copy, params)
        changed["lm"]["embedding"][3, 2] = np.nextafter(changed["lm"]["embedding"][3, 2], 9)
        fingerprints = [take_fingerprint(model, p) for p in (params, changed)]
        self.assertEqual(fingerprints[0].config, fingerprints[1].config)
        self.assertNotEqual(fingerprints[0].weights, fingerprints[1].weights)

    def test_fingerprint_is_the_same_in_every_process(self):
        model = small_model()
        params = jax.tree.map(
            lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape),
            jax.eval_shape(lambda: model.init(jax.random.key(0))),
        )
        want = ("e8cb2496ab26f0a4c16489036d6a464c", "7d97164e6c02e99f2aa4ae5d4252b869")
        self.assertEqual(take_fingerprint(model, params), want)

    def test_another_write_may_read(self):
        model, params, memory = written()
        save_memory(self.path, memory, model, params)
        other = GradMem(
            dataclasses.replace(model.config, num_write_steps=9, write_learning_rate=0.1)
        )
        chex.assert_trees_all_equal(load_memory(self.path, other, params), memory)

    @parameterized.parameters(
        *({"lm": lm} for lm in ({"init": "normal"}, {"init_std": 0.5}, {"remat": "full"})),
        *({name: 0.5} for name in ("memory_init_std", "inner_loss_weight", "write_learning_rate")),
        *({name: 0.5} for name in ("clip_value", "clip_norm")),
        *({name: 1} for name in ("num_write_steps", "second_order_steps")),
        {"gradient_mode": "first"},
        {"meta_gradient": "reverse"},
    )
    def test_what_read_does_not_depend_on(self, **changes):
        model, other = small_model(), small_model(**changes)
        self.assertNotEqual(model, other)
        self.assertEqual(*(take_fingerprint(m, {}) for m in (model, other)))

    def test_passes_of_a_forward_write(self):
        models = [small_writer("warm_start", num_forward_passes=n) for n in (1, 2)]
        self.assertEqual(*(take_fingerprint(model, {}) for model in models))

    def test_refuses_another_model(self):
        model, params, memory = written()
        save_memory(self.path, memory, model, params)
        other = small_writer("gradmem", lm={"rope_base": 10.0})
        with self.assertRaisesRegex(
            ValueError, r"another configuration: lm\.rope_base 500000\.0 in the file, 10\.0 here"
        ):
            load_memory(self.path, other, params)
        with self.assertRaisesRegex(ValueError, "another configuration: model 'GradMem'"):
            load_memory(self.path, *written("warm_start")[:2])
        with self.assertRaisesRegex(ValueError, "other parameters"):
            load_memory(self.path, model, small_params(model, seed=1))

    def test_refuses_damaged_files(self):
        model, params, memory = written()
        save_memory(self.path, memory, model, params)
        whole = self.path.read_bytes()
        load = lambda: load_memory(self.path, model, params)
        for content in (whole[:-1], whole[: len(whole) // 2], b"", b"no memory"):
            self.path.write_bytes(content)
            with self.assertRaisesRegex(ValueError, "cannot be read as a memory"):
                load()
        self.path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with self.assertRaisesRegex(ValueError, "arrays do not fit"):
            load()
        load_memory(self.path, model, params, slice(0, 2))  # the damage is in the third
        self.path.write_bytes(whole.replace(b"GradMemConfig", b"GradMemConfIg"))
        with self.assertRaisesRegex(ValueError, "header does not fit"):
            load()
        with self.assertRaisesRegex(ValueError, "is not a file"):
            load_memory(self.path.parent, model, params)

    def test_refuses_other_safetensors_and_versions(self):
        model, params, memory = written()
        save_file({"x": np.zeros(3)}, self.path)
        with self.assertRaisesRegex(ValueError, "not a memory of gradmem_jax"):
            load_memory(self.path, model, params)
        save_memory(self.path, memory, model, params)
        with safetensors.safe_open(self.path, framework="numpy") as file:
            metadata = file.metadata()
        save_file(
            {"memory": np.asarray(memory)}, self.path, metadata | {"version": json.dumps("2")}
        )
        with self.assertRaisesRegex(ValueError, 'format version "2"'):
            read_header(self.path)

    def test_refuses_wrong_memories_and_ranges(self):
        model, params, memory = written()
        with self.assertRaisesRegex(ValueError, "shape"):
            save_memory(self.path, memory[:, :2], model, params)
        with self.assertRaisesRegex(ValueError, "NaN"):
            save_memory(self.path, memory * np.nan, model, params)
        with self.assertRaisesRegex(ValueError, "2 entries, the memory is of 3"):
            save_memory(self.path, memory, model, params, contexts=[StoredContext("a")] * 2)
        with self.assertRaisesRegex(ValueError, "traced"):
            jax.jit(lambda memory: save_memory(self.path, memory, model, params))(memory)
        self.assertFalse(self.path.exists())
        save_memory(self.path, memory, model, params)
        for contexts in (slice(3, 4), slice(0, 3, 2), slice(2, 1)):
            with self.assertRaisesRegex(ValueError, "takes none of the 3 contexts"):
                load_memory(self.path, model, params, contexts)

    def test_a_failed_save_leaves_the_old_file(self):
        model, params, memory = written()
        save_memory(self.path, memory, model, params)
        before = self.path.read_bytes()
        circle = {}
        circle["x"] = circle
        for notes, message in (
            ({"x": object()}, "what JSON has"),
            ({"x": circle}, "what JSON has: Circular reference"),
            ({1: "a", "1": "b"}, "notes has the key 1; .* make it one, '1'"),
            ({"x": [{"y": ({None: 0},)}]}, "notes has the key None"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                save_memory(self.path, memory, model, params, notes=notes)
        with self.assertRaisesRegex(ValueError, "is a folder"):
            save_memory(self.path.parent, memory, model, params)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertLen(list(self.path.parent.parent.glob(".*")), 0)

    def test_saves_again_after_writing_on(self):
        model, params, memory = written()
        save_memory(self.path, memory, model, params)
        loaded = load_memory(self.path, model, params)
        more = random_ids(5, 3, 9)
        write = jax.jit(functools.partial(model.write_memory, num_steps=1))
        chex.assert_trees_all_equal(
            write(params, more, memory=loaded)[0], write(params, more, memory=memory)[0]
        )


if __name__ == "__main__":
    absltest.main()
