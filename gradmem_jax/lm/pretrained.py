"""Parameters of published checkpoints in this library's layout."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradmem_jax.config import LlamaConfig


def llama_from_hugging_face(
    tensors: Mapping[str, np.ndarray], config: LlamaConfig, prefix: str = ""
) -> dict[str, Any]:
    """Converts the tensors of a Hugging Face Llama to parameters of `lm.llama.Llama`.

    Args:
        tensors: arrays by their PyTorch names (`model.embed_tokens.weight`, ...).
        config: the model they belong to.
        prefix: what stands in front of every name.

    Returns:
        Nested dict of arrays.

    Raises:
        ValueError: a tensor is missing or has another shape than `config` says.
    """
    c = config

    def take(name: str, *shape: int) -> np.ndarray:
        full_name = prefix + name
        if full_name not in tensors:
            raise ValueError(f"the checkpoint has no tensor {full_name!r}.")
        tensor = np.asarray(tensors[full_name])
        if tensor.shape != shape:
            raise ValueError(f"{full_name} has shape {tensor.shape}; the config needs {shape}.")
        return tensor

    def kernel(name: str, inputs: int, outputs: int) -> np.ndarray:
        return take(name, outputs, inputs).T

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

    layers = [layer(i) for i in range(c.num_layers)]
    params: dict[str, Any] = {
        "embedding": take("model.embed_tokens.weight", c.vocab_size, c.width),
        "final_norm": {"scale": take("model.norm.weight", c.width)},
    }
    if c.scan_layers:
        params["layers"] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    else:
        params |= {f"layers_{i}": layer for i, layer in enumerate(layers)}
    if not c.tied_head:
        params["head"] = kernel("lm_head.weight", c.width, c.vocab_size)
    return params
