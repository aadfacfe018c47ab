"""Golden cases: parameters, inputs, outputs and gradients of the official implementation."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from gradmem_jax import GradMemConfig, LlamaConfig, RMTConfig
from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoXConfig
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.load import from_hugging_face
from gradmem_jax.memory.prefix import PrefixConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
CONTROL_NAMES = {
    "write_start": "write_st",
    "write_end": "write_end",
    "read_start": "read_st",
    "read_end": "read_end",
}


class Case(NamedTuple):
    """One golden case in this library's terms; gradients are those of trainable parameters."""

    config: PrefixConfig
    params: dict[str, Any]
    io: dict[str, np.ndarray]
    gradients: dict[str, Any]


def case_names(pattern: str) -> list[str]:
    """Names of the golden cases that match a glob pattern."""
    return sorted(path.name for path in GOLDEN.glob(pattern))


def split_weights(folder: pathlib.Path) -> None:
    """Puts the tensors of a model's one file into two, with their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for i, names in enumerate(np.array_split(sorted(tensors), 2)):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({str(name): tensors[name] for name in names}, folder / file)
        index |= dict.fromkeys(map(str, names), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def linear(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A torch linear layer as kernel and bias."""
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def convert_lora(tensors: dict[str, np.ndarray], config: PrefixConfig) -> dict[str, Any]:
    """Adapters of PEFT's names, in the layout of `init_lora`."""
    places = {
        "query": ("attention", "self_attn.q_proj"),
        "key": ("attention", "self_attn.k_proj"),
        "value": ("attention", "self_attn.v_proj"),
        "output": ("attention", "self_attn.o_proj"),
        "gate": (None, "mlp.gate_proj"),
        "up": (None, "mlp.up_proj"),
        "down": (None, "mlp.down_proj"),
    }
    layers: list[dict[str, Any]] = []
    for i in range(config.lm.num_layers):
        layer: dict[str, Any] = {"attention": {}}
        for ours, (group, theirs) in places.items():
            name = f"model.model.layers.{i}.{theirs}.lora_{{}}.default.weight"
            adapter = {"a": tensors[name.format("A")].T, "b": tensors[name.format("B")].T}
            (layer[group] if group else layer)[ours] = adapter
        layers.append(layer)
    if config.lm.scan_layers:
        return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    return {f"layers_{i}": layer for i, layer in enumerate(layers)}


def convert(tensors: dict[str, np.ndarray], config: PrefixConfig) -> dict[str, Any]:
    """Official parameters, or their gradients, in this library's layout."""
    plain = lambda name: name.replace("base_model.model.", "").replace(".base_layer.", ".")
    tensors = {plain(name): x for name, x in tensors.items()}
    params: dict[str, Any] = {
        "lm": from_hugging_face(tensors, config.lm, prefix="model."),
        "initial_memory": tensors["mem"],
    }
    if config.write_head:
        params["write_head"] = tensors["write_head.weight"].T
    if config.memory_projection != "none":
        params["projection"] = linear(tensors, "mem_proj")
    if config.memory_projection == "proj_rw":
        params["read_projection"] = linear(tensors, "read_mem_proj")
    if getattr(config, "memory_residual", False):
        names = {"scale": "weight", "bias": "bias"}
        norm = {ours: tensors[f"mem_residual_ln.{theirs}"] for ours, theirs in names.items()}
        params["memory_norm"] = norm
    if config.write_lora_rank:
        params["write_lora"] = convert_lora(tensors, config)
    if config.num_control_tokens:
        params["control"] = {ours: tensors[theirs] for ours, theirs in CONTROL_NAMES.items()}
    return params


def load_case(name: str, **changes: Any) -> Case:
    """Loads a case; `changes` go to the GradMemConfig, those of `lm` as a dict."""
    folder = GOLDEN / name
    case = json.loads((folder / "case.json").read_text())
    base, method = case["backbone_config"], case["method_config"]
    lm_config: LMConfig
    if case["backbone"] == "gpt2":
        lm = dict(
            vocab_size=base["vocab_size"],
            width=base["n_embd"],
            num_layers=base["n_layer"],
            num_heads=base["n_head"],
            mlp_width=base["n_inner"],
            max_positions=base["n_positions"],
            norm_epsilon=base["layer_norm_epsilon"],
            tied_head=base["tie_word_embeddings"],
        )
        lm_config = GPT2Config(**(lm | changes.pop("lm", {})))
    elif case["backbone"] == "gpt_neox":
        lm = dict(
            vocab_size=base["vocab_size"],
            width=base["hidden_size"],
            num_layers=base["num_hidden_layers"],
            num_heads=base["num_attention_heads"],
            mlp_width=base["intermediate_size"],
            max_positions=base["max_position_embeddings"],
            rope_base=base["rope_theta"],
            rotary_fraction=base["rotary_pct"],
            parallel_residual=base["use_parallel_residual"],
            norm_epsilon=base["layer_norm_eps"],
            tied_head=base["tie_word_embeddings"],
        )
        lm_config = GPTNeoXConfig(**(lm | changes.pop("lm", {})))
    else:
        lm = dict(
            vocab_size=base["vocab_size"],
            width=base["hidden_size"],
            num_layers=base["num_hidden_layers"],
            num_heads=base["num_attention_heads"],
            num_kv_heads=base["num_key_value_heads"],
            head_width=base["head_dim"],
            mlp_width=base["intermediate_size"],
            max_positions=base["max_position_embeddings"],
            rope_base=base["rope_theta"],
            norm_epsilon=base["rms_norm_eps"],
            tied_head=base["tie_word_embeddings"],
        )
        lm_config = LlamaConfig(**(lm | changes.pop("lm", {})))
    options = dict(
        lm=lm_config,
        num_memory_tokens=method["n_mem_tokens"],
        num_write_steps=method["K"],
        write_head=method.get("use_write_head", False),
        memory_projection=method.get("mem_proj_mode", "none"),
        num_control_tokens=method.get("n_ctrl_tokens", 0),
        write_lora_rank=method.get("write_lora_r", 0),
        write_lora_alpha=float(method.get("write_lora_alpha", 16)),
    )
    config: PrefixConfig
    if case["method"] == "rmt":
        options |= dict(
            memory_residual=method.get("use_mem_residual", False),
            inner_loss_weight=method.get("use_reconstruction_loss", False)
            * method.get("reconstruction_loss_weight", 1.0),
        )
        config = RMTConfig(**(options | changes))
    else:
        options |= dict(
            write_learning_rate=method["lr"],
            clip_value=method.get("inner_clip_value"),
            clip_norm=method.get("inner_clip_norm"),
            gradient_mode=method["grad_mode"],
            second_order_steps=method.get("last_K_second_order"),
            inner_loss_weight=method.get("inner_loss_weight", 0.0),
        )
        config = GradMemConfig(**(options | changes))
    load = lambda file: load_file(folder / f"{file}.safetensors")
    params, gradients = load("params"), load("grads")
    zeros = {name: np.zeros_like(value) for name, value in params.items()}
    gradients = convert(zeros | gradients, config)
    if method.get("freeze_backbone"):
        gradients = {name: gradients[name] for name in ("initial_memory", "write_lora")}
    return Case(config, convert(params, config), load("io"), gradients)
