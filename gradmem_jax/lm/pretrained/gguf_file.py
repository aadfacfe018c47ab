"""Models in GGUF files, whose weights may be quantised: Llama and its relatives."""

import functools
import pathlib

import numpy as np

from gradmem_jax.lm.pretrained.gguf_config import (
    ARCHITECTURES,
    ROPE_TENSORS,
    Architecture,
    read_gguf_config,
)
from gradmem_jax.lm.pretrained.shared_tensors import split_fused
from gradmem_jax.lm.pretrained.tensor_layout import (
    Layout,
    StoredModel,
    StoredTensor,
)
from gradmem_jax.tokenizers.files import read_gguf_tokenizer
from gradmem_jax.tokenizers.gguf_reader import open_gguf_file
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, wrap_file


def open_gguf(path: pathlib.Path) -> StoredModel:
    """Opens a GGUF file; its tensors are dequantised as they are read.

    Raises:
        ValueError: the file is damaged, or the model is none that is known here.
    """
    file = open_gguf_file(path)
    fields = file.fields
    tensors = {
        name: StoredTensor(tensor.shape, functools.partial(file.read, name))
        for name, tensor in file.tensors.items()
    }
    config = read_gguf_config(fields, tensors)
    architecture = ARCHITECTURES[fields["general.architecture"]]
    tensors = {name: x for name, x in tensors.items() if name not in ROPE_TENSORS}
    if config.norm_offset:
        tensors |= {
            name: StoredTensor(x.shape, functools.partial(_less, x, config.norm_offset))
            for name, x in tensors.items()
            if name.endswith("norm.weight")
        }
    layout = _layout(architecture)
    tensors = split_fused(tensors, architecture.fused, layout, config)

    def read_tokenizer() -> TextTokenizer | None:
        if "tokenizer.ggml.tokens" not in fields:
            return None
        return wrap_file(read_gguf_tokenizer(fields, path))

    return StoredModel(config, layout, tensors, read_tokenizer)


def _less(tensor: StoredTensor, offset: float) -> np.ndarray:
    """A tensor to which llama.cpp's converter has added the offset of the norm."""
    x = tensor.read()
    return x - x.dtype.type(offset)


def _layout(architecture: Architecture) -> Layout:
    """Names and axes of all tensors that models of an architecture may have."""
    # Rotary pairs that are neighbours, "pt", are halves here, "tp".
    turned, ours = ("pt", "tp") if architecture.pairs_are_neighbours else ("k", "k")
    whole = architecture.implied.get("qk_norm") == "all"
    layer = {}
    for name, path, heads, axes, to in (
        ("attn_q", "query", "h", turned, ours),
        ("attn_k", "key", "g", turned, ours),
        ("attn_v", "value", "g", "k", "k"),
    ):
        layer[f"{name}.weight"] = (f"attention/{path}/kernel", f"{heads}{axes} d -> d {heads} {to}")
        layer[f"{name}.bias"] = (f"attention/{path}/bias", f"{heads}{axes} -> {heads} {to}")
        norm = f"{heads}k" if whole else "k"
        layer[f"{name}_norm.weight"] = (f"attention/{path}_norm/scale", f"{norm} -> {norm}")
    del layer["attn_v_norm.weight"]
    layer["attn_output.weight"] = ("attention/output/kernel", "d hk -> h k d")
    layer["attn_output.bias"] = ("attention/output/bias", "d -> d")
    for name, shape in (("gate", "f d -> d f"), ("up", "f d -> d f"), ("down", "d f -> f d")):
        layer[f"ffn_{name}.weight"] = (f"{name}/kernel", shape)
        layer[f"ffn_{name}.bias"] = (f"{name}/bias", f"{shape[0]} -> {shape[0]}")
    for name, path in architecture.norms.items():
        layer[f"{name}.weight"] = (f"{path}/scale", "d -> d")
    return {
        "token_embd.weight": ("embedding", "v d -> v d"),
        **{f"blk.{{}}.{name}": (f"layers/{path}", axes) for name, (path, axes) in layer.items()},
        "output_norm.weight": ("final_norm/scale", "d -> d"),
        "output.weight": ("head", "v d -> d v"),
    }
