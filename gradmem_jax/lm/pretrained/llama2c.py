"""Llama models in the first binary format of llama2.c."""

import dataclasses
import functools
import math
import pathlib
import struct

import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.tensor_layout import StoredModel, StoredTensor, tensor_shapes
from gradmem_jax.storage.reading import require_file
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, load_tokenizer

_HEADER = struct.Struct("<7i")
# In the order of the file. Rotary pairs are neighbours, "pt"; here they are halves, "tp".
_LAYOUT = {
    "token_embedding": ("embedding", "v d -> v d"),
    "rms_att_{}": ("layers/attention_norm/scale", "d -> d"),
    "wq_{}": ("layers/attention/query/kernel", "hpt d -> d h tp"),
    "wk_{}": ("layers/attention/key/kernel", "gpt d -> d g tp"),
    "wv_{}": ("layers/attention/value/kernel", "gk d -> d g k"),
    "wo_{}": ("layers/attention/output/kernel", "d hk -> h k d"),
    "rms_ffn_{}": ("layers/mlp_norm/scale", "d -> d"),
    "w1_{}": ("layers/gate/kernel", "f d -> d f"),
    "w2_{}": ("layers/down/kernel", "d f -> f d"),
    "w3_{}": ("layers/up/kernel", "f d -> d f"),
    "rms_final": ("final_norm/scale", "d -> d"),
    "classifier": ("head", "v d -> d v"),
}


def open_llama2c(path: pathlib.Path) -> StoredModel:
    """Opens a file of seven int32 and all weights in float32, as llama2.c's `legacy_export` makes.

    Raises:
        ValueError: it is no such file, or it is damaged.
    """
    found = require_file(path, "language model")
    try:
        with path.open("rb") as file:
            content = file.read(_HEADER.size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    values = _HEADER.unpack(content) if len(content) == _HEADER.size else (0,) * 7
    width, mlp_width, num_layers, num_heads, num_kv_heads, vocab_size, max_positions = values
    wrong = f"{path} is no model of llama2.c in its first format (export it with --version 0)"
    try:
        config = LlamaConfig(
            vocab_size=abs(vocab_size),
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            mlp_width=mlp_width,
            max_positions=max_positions,
            norm_epsilon=1e-5,
            rope_base=10_000.0,
            tied_head=vocab_size > 0,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    num_rotary = config.max_positions * config.head_size  # tables that are made here instead
    size = _HEADER.size + 4 * (_num_weights(config) + num_rotary)
    require(found == size, f"{wrong}, or is damaged: it has {found} bytes instead of {size}.")
    shapes = tensor_shapes(_LAYOUT, config)
    weights = np.memmap(path, "<f4", "r", offset=_HEADER.size)
    tensors, start = {}, 0
    for name, shape in shapes.items():
        part = weights[start : start + math.prod(shape)]
        tensors[name] = StoredTensor(shape, functools.partial(part.reshape, shape))
        start += part.size + (num_rotary if name == "rms_final" else 0)
    has_tokenizer = any(path.parent.glob("tok*.bin"))

    def read_tokenizer() -> TextTokenizer | None:
        return load_tokenizer(path) if has_tokenizer else None

    return StoredModel(config, _LAYOUT, tensors, read_tokenizer)


def _num_weights(config: LlamaConfig) -> int:
    """How many numbers a model has, however many layers."""
    one_layer = tensor_shapes(_LAYOUT, dataclasses.replace(config, num_layers=1))
    sizes = {name: math.prod(shape) for name, shape in one_layer.items()}
    of_layer = sum(size for name, size in sizes.items() if name.endswith("_0"))
    return sum(sizes.values()) + (config.num_layers - 1) * of_layer
