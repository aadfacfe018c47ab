"""Parameters of published checkpoints in this library's layout."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradmem_jax.config import GPT2Config, GPTNeoXConfig, LlamaConfig, LMConfig, require


class Checkpoint:
    """Tensors by name, with their shapes checked as they are taken.

    Attributes:
        tensors: arrays by their PyTorch names.
        prefix: what stands in front of every name.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str):
        self.tensors, self.prefix = tensors, prefix

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of a known shape.

        Raises:
            ValueError: it is missing or has another shape.
        """
        full_name = self.prefix + name
        if full_name not in self.tensors:
            raise ValueError(f"the checkpoint has no tensor {full_name!r}.")
        tensor = np.asarray(self.tensors[full_name])
        if tensor.shape != shape:
            raise ValueError(f"{full_name} has shape {tensor.shape}; the config needs {shape}.")
        return tensor

    def kernel(self, name: str, inputs: int, outputs: int) -> np.ndarray:
        """Returns the matrix of a torch linear layer, [inputs, outputs]."""
        return self.take(name, outputs, inputs).T

    def layer_norm(self, name: str, width: int) -> dict[str, np.ndarray]:
        """Returns scale and bias of a torch layer norm."""
        return {
            "scale": self.take(f"{name}.weight", width),
            "bias": self.take(f"{name}.bias", width),
        }


def _join_layers(config: LMConfig, layers: list[dict[str, Any]]) -> dict[str, Any]:
    if config.scan_layers:
        return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    return {f"layers_{i}": layer for i, layer in enumerate(layers)}


def _llama(checkpoint: Checkpoint, c: LlamaConfig) -> dict[str, Any]:
    take, kernel = checkpoint.take, checkpoint.kernel

    def heads(name: str, number: int) -> dict[str, np.ndarray]:
        matrix = kernel(name, c.width, number * c.head_size)
        return {"kernel": matrix.reshape(c.width, number, c.head_size)}

    def layer(i: int) -> dict[str, Any]:
        p = f"model.layers.{i}."
        output = kernel(p + "self_attn.o_proj.weight", c.num_heads * c.head_size, c.width)
        mlp = {"gate": (c.width, c.mlp_size), "up": (c.width, c.mlp_size)}
        mlp["down"] = (c.mlp_size, c.width)
        return {
            "attention": {
                "query": heads(p + "self_attn.q_proj.weight", c.num_heads),
                "key": heads(p + "self_attn.k_proj.weight", c.kv_heads),
                "value": heads(p + "self_attn.v_proj.weight", c.kv_heads),
                "output": {"kernel": output.reshape(c.num_heads, c.head_size, c.width)},
            },
            "attention_norm": {"scale": take(p + "input_layernorm.weight", c.width)},
            "mlp_norm": {"scale": take(p + "post_attention_layernorm.weight", c.width)},
            **{
                name: {"kernel": kernel(f"{p}mlp.{name}_proj.weight", *shape)}
                for name, shape in mlp.items()
            },
        }

    params: dict[str, Any] = {
        "embedding": take("model.embed_tokens.weight", c.vocab_size, c.width),
        "final_norm": {"scale": take("model.norm.weight", c.width)},
        **_join_layers(c, [layer(i) for i in range(c.num_layers)]),
    }
    if not c.tied_head:
        params["head"] = kernel("lm_head.weight", c.width, c.vocab_size)
    return params


def _gpt2(checkpoint: Checkpoint, c: GPT2Config) -> dict[str, Any]:
    take = checkpoint.take

    def affine(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        """GPT-2 stores its matrices as [inputs, outputs]."""
        weight = take(f"{name}.weight", inputs, outputs)
        return {"kernel": weight, "bias": take(f"{name}.bias", outputs)}

    norm = lambda name: checkpoint.layer_norm(name, c.width)

    def layer(i: int) -> dict[str, Any]:
        p = f"transformer.h.{i}."
        joint = affine(p + "attn.c_attn", c.width, 3 * c.width)
        parts = {name: np.split(x, 3, axis=-1) for name, x in joint.items()}
        heads = lambda x: x.reshape(*x.shape[:-1], c.num_heads, c.head_size)
        output = affine(p + "attn.c_proj", c.width, c.width)
        output["kernel"] = output["kernel"].reshape(c.num_heads, c.head_size, c.width)
        return {
            **{
                name: {part: heads(parts[part][j]) for part in ("kernel", "bias")}
                for j, name in enumerate(("query", "key", "value"))
            },
            "output": output,
            "attention_norm": norm(p + "ln_1"),
            "mlp_norm": norm(p + "ln_2"),
            "up": affine(p + "mlp.c_fc", c.width, c.mlp_size),
            "down": affine(p + "mlp.c_proj", c.mlp_size, c.width),
        }

    params: dict[str, Any] = {
        "embedding": take("transformer.wte.weight", c.vocab_size, c.width),
        "position_embedding": take("transformer.wpe.weight", c.max_positions, c.width),
        "final_norm": norm("transformer.ln_f"),
        **_join_layers(c, [layer(i) for i in range(c.num_layers)]),
    }
    if not c.tied_head:
        params["head"] = checkpoint.kernel("lm_head.weight", c.width, c.vocab_size)
    return params


def _gpt_neox(checkpoint: Checkpoint, c: GPTNeoXConfig) -> dict[str, Any]:
    take, kernel = checkpoint.take, checkpoint.kernel
    heads = (c.num_heads, c.head_size)

    def affine(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        weight = kernel(f"{name}.weight", inputs, outputs)
        return {"kernel": weight, "bias": take(f"{name}.bias", outputs)}

    norm = lambda name: checkpoint.layer_norm(name, c.width)

    def layer(i: int) -> dict[str, Any]:
        p = f"gpt_neox.layers.{i}."
        joint = affine(p + "attention.query_key_value", c.width, 3 * c.width)
        by_head = {name: x.reshape(*x.shape[:-1], c.num_heads, 3, -1) for name, x in joint.items()}
        output = affine(p + "attention.dense", c.width, c.width)
        output["kernel"] = output["kernel"].reshape(*heads, c.width)
        return {
            **{
                name: {part: x[..., j, :] for part, x in by_head.items()}
                for j, name in enumerate(("query", "key", "value"))
            },
            "output": output,
            "attention_norm": norm(p + "input_layernorm"),
            "mlp_norm": norm(p + "post_attention_layernorm"),
            "up": affine(p + "mlp.dense_h_to_4h", c.width, c.mlp_size),
            "down": affine(p + "mlp.dense_4h_to_h", c.mlp_size, c.width),
        }

    params: dict[str, Any] = {
        "embedding": take("gpt_neox.embed_in.weight", c.vocab_size, c.width),
        "final_norm": norm("gpt_neox.final_layer_norm"),
        **_join_layers(c, [layer(i) for i in range(c.num_layers)]),
    }
    if not c.tied_head:
        params["head"] = kernel("embed_out.weight", c.width, c.vocab_size)
    return params


_CONVERTERS: dict[type[LMConfig], Any] = {
    LlamaConfig: _llama,
    GPT2Config: _gpt2,
    GPTNeoXConfig: _gpt_neox,
}


def from_hugging_face(
    tensors: Mapping[str, np.ndarray], config: LMConfig, prefix: str = ""
) -> dict[str, Any]:
    """Converts the tensors of a Hugging Face model to parameters of this library's.

    Args:
        tensors: arrays by their PyTorch names (`model.embed_tokens.weight`, ...).
        config: the model they belong to.
        prefix: what stands in front of every name.

    Returns:
        Nested dict of arrays.

    Raises:
        ValueError: a tensor is missing or has another shape than `config` says, or models of this
            kind cannot be converted.
    """
    require(
        type(config) in _CONVERTERS,
        f"a {type(config).__name__} cannot be read from a Hugging Face checkpoint; only "
        f"{sorted(kind.__name__ for kind in _CONVERTERS)} can.",
    )
    return _CONVERTERS[type(config)](Checkpoint(tensors, prefix), config)
