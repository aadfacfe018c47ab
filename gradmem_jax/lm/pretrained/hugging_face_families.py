"""The kinds of models of Hugging Face that can be read and written, one table each."""

import math
from collections.abc import Mapping
from typing import Any

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoXConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.pretrained.family import NEEDED, Family
from gradmem_jax.lm.pretrained.llama_families import LLAMA_FAMILIES
from gradmem_jax.lm.pretrained.tensor_layout import Layout


def _norm(theirs: str, ours: str) -> Layout:
    return {
        f"{theirs}.weight": (f"{ours}/scale", "d -> d"),
        f"{theirs}.bias": (f"{ours}/bias", "d -> d"),
    }


_GPT2 = Family(
    config_class=GPT2Config,
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base_architecture="GPT2Model",
    fields={
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("n_embd", NEEDED),
        "num_layers": ("n_layer", NEEDED),
        "num_heads": ("n_head", NEEDED),
        "mlp_width": ("n_inner", None),
        "max_positions": ("n_positions", 1024),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", True),
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    layout={
        "transformer.wte.weight": ("embedding", "v d -> v d"),
        "transformer.wpe.weight": ("position_embedding", "n d -> n d"),
        **_norm("transformer.h.{}.ln_1", "layers/attention_norm"),
        "transformer.h.{}.attn.c_attn.weight": ("layers/*/kernel", "d chk -> c d h k"),
        "transformer.h.{}.attn.c_attn.bias": ("layers/*/bias", "chk -> c h k"),
        "transformer.h.{}.attn.c_proj.weight": ("layers/output/kernel", "hk d -> h k d"),
        "transformer.h.{}.attn.c_proj.bias": ("layers/output/bias", "d -> d"),
        **_norm("transformer.h.{}.ln_2", "layers/mlp_norm"),
        "transformer.h.{}.mlp.c_fc.weight": ("layers/up/kernel", "d f -> d f"),
        "transformer.h.{}.mlp.c_fc.bias": ("layers/up/bias", "f -> f"),
        "transformer.h.{}.mlp.c_proj.weight": ("layers/down/kernel", "f d -> f d"),
        "transformer.h.{}.mlp.c_proj.bias": ("layers/down/bias", "d -> d"),
        **_norm("transformer.ln_f", "final_norm"),
        "lm_head.weight": ("head", "v d -> d v"),
    },
    base="transformer.",
)


def _read_gpt_neox(theirs: Mapping[str, Any], config: GPTNeoXConfig) -> dict[str, Any]:
    """Transformers 4 writes the rotary keys by the names of other families too."""
    for name, key, value in (
        ("rope_theta", "rotary_emb_base", config.rope_base),
        ("partial_rotary_factor", "rotary_pct", config.rotary_fraction),
    ):
        found = theirs.get(name)
        require(
            found in (None, value),
            f"{name}={shown(found)} must be {key}={value}, of which it is another name; take the "
            "wrong one out.",
        )
    return {}


_GPT_NEOX = Family(
    config_class=GPTNeoXConfig,
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base_architecture="GPTNeoXModel",
    fields={
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("hidden_size", NEEDED),
        "num_layers": ("num_hidden_layers", NEEDED),
        "num_heads": ("num_attention_heads", NEEDED),
        "mlp_width": ("intermediate_size", NEEDED),
        "max_positions": ("max_position_embeddings", 2048),
        "norm_epsilon": ("layer_norm_eps", 1e-5),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", False),
        "rope_base": ("rotary_emb_base", 10_000.0),
        "rotary_fraction": ("rotary_pct", 0.25),
        "parallel_residual": ("use_parallel_residual", True),
    },
    fixed={"hidden_act": ("gelu",), "attention_bias": (True,), "rope_scaling": (None,)},
    layout={
        "gpt_neox.embed_in.weight": ("embedding", "v d -> v d"),
        **_norm("gpt_neox.layers.{}.input_layernorm", "layers/attention_norm"),
        "gpt_neox.layers.{}.attention.query_key_value.weight": (
            "layers/*/kernel",
            "hck d -> c d h k",
        ),
        "gpt_neox.layers.{}.attention.query_key_value.bias": ("layers/*/bias", "hck -> c h k"),
        "gpt_neox.layers.{}.attention.dense.weight": ("layers/output/kernel", "d hk -> h k d"),
        "gpt_neox.layers.{}.attention.dense.bias": ("layers/output/bias", "d -> d"),
        **_norm("gpt_neox.layers.{}.post_attention_layernorm", "layers/mlp_norm"),
        "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight": ("layers/up/kernel", "f d -> d f"),
        "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias": ("layers/up/bias", "f -> f"),
        "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight": ("layers/down/kernel", "d f -> f d"),
        "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias": ("layers/down/bias", "d -> d"),
        **_norm("gpt_neox.final_layer_norm", "final_norm"),
        "embed_out.weight": ("head", "v d -> d v"),
    },
    base="gpt_neox.",
    read_more=_read_gpt_neox,
    more_keys=("rope_theta", "partial_rotary_factor"),
)

_MAMBA = Family(
    config_class=MambaConfig,
    model_type="mamba",
    architecture="MambaForCausalLM",
    base_architecture="MambaModel",
    fields={
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("hidden_size", NEEDED),
        "num_layers": ("num_hidden_layers", NEEDED),
        "state_size": ("state_size", 16),
        "conv_size": ("conv_kernel", 4),
        "expand": ("expand", 2),
        "dt_rank": ("time_step_rank", "auto"),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "init_std": ("initializer_range", 0.1),
        "tied_head": ("tie_word_embeddings", True),
    },
    fixed={"hidden_act": ("silu", "swish"), "use_bias": (False,), "use_conv_bias": (True,)},
    more_keys=("intermediate_size", "use_associative_scan"),
    layout={
        "backbone.embeddings.weight": ("embedding", "v d -> v d"),
        "backbone.layers.{}.norm.weight": ("layers/norm/scale", "d -> d"),
        "backbone.layers.{}.mixer.in_proj.weight": ("layers/in_proj/kernel", "te d -> d te"),
        "backbone.layers.{}.mixer.conv1d.weight": ("layers/conv_kernel", "e o w -> w oe"),
        "backbone.layers.{}.mixer.conv1d.bias": ("layers/conv_bias", "e -> e"),
        "backbone.layers.{}.mixer.x_proj.weight": ("layers/x_proj/kernel", "x e -> e x"),
        "backbone.layers.{}.mixer.dt_proj.weight": ("layers/dt_proj/kernel", "e r -> r e"),
        "backbone.layers.{}.mixer.dt_proj.bias": ("layers/dt_proj/bias", "e -> e"),
        "backbone.layers.{}.mixer.A_log": ("layers/A_log", "e s -> e s"),
        "backbone.layers.{}.mixer.D": ("layers/D", "e -> e"),
        "backbone.layers.{}.mixer.out_proj.weight": ("layers/out_proj/kernel", "d e -> e d"),
        "backbone.norm_f.weight": ("final_norm/scale", "d -> d"),
        "lm_head.weight": ("head", "v d -> d v"),
    },
    base="backbone.",
)


def _read_mamba2(theirs: Mapping[str, Any], config: Mamba2Config) -> dict[str, Any]:
    groups, heads = theirs.get("n_groups", 8), theirs.get("num_heads", 128)
    require(groups == 1, f"n_groups={shown(groups)} is not supported, only 1.")
    require(
        heads == config.num_heads,
        f"num_heads={shown(heads)} is not supported: {config.channels} channels in heads of "
        f"{config.head_width} are {config.num_heads}.",
    )
    limit = theirs.get("time_step_limit")
    no_limit = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])
    require(limit is None or limit in no_limit, f"time_step_limit={shown(limit)} is not supported.")
    return {}


def _write_mamba2(config: Mamba2Config) -> dict[str, Any]:
    return {"n_groups": 1, "num_heads": config.num_heads}


_MAMBA2 = Family(
    config_class=Mamba2Config,
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    base_architecture="Mamba2Model",
    fields={
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("hidden_size", NEEDED),
        "num_layers": ("num_hidden_layers", NEEDED),
        "state_size": ("state_size", 128),
        "conv_size": ("conv_kernel", 4),
        "expand": ("expand", 2),
        "head_width": ("head_dim", 64),
        "chunk_size": ("chunk_size", 256),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "init_std": ("initializer_range", 0.1),
        "tied_head": ("tie_word_embeddings", False),
    },
    fixed={"hidden_act": ("silu", "swish"), "use_bias": (False,), "use_conv_bias": (True,)},
    layout={
        "backbone.embeddings.weight": ("embedding", "v d -> v d"),
        "backbone.layers.{}.norm.weight": ("layers/norm/scale", "d -> d"),
        "backbone.layers.{}.mixer.in_proj.weight": ("layers/in_proj/kernel", "x d -> d x"),
        "backbone.layers.{}.mixer.conv1d.weight": ("layers/conv_kernel", "m o w -> w om"),
        "backbone.layers.{}.mixer.conv1d.bias": ("layers/conv_bias", "m -> m"),
        "backbone.layers.{}.mixer.dt_bias": ("layers/dt_bias", "h -> h"),
        "backbone.layers.{}.mixer.A_log": ("layers/A_log", "h -> h"),
        "backbone.layers.{}.mixer.norm.weight": ("layers/gated_norm/scale", "e -> e"),
        "backbone.layers.{}.mixer.D": ("layers/D", "h -> h"),
        "backbone.layers.{}.mixer.out_proj.weight": ("layers/out_proj/kernel", "d e -> e d"),
        "backbone.norm_f.weight": ("final_norm/scale", "d -> d"),
        "lm_head.weight": ("head", "v d -> d v"),
    },
    base="backbone.",
    read_more=_read_mamba2,
    write_more=_write_mamba2,
    more_keys=(
        "n_groups",
        "num_heads",
        "time_step_limit",
        "time_step_rank",
        "intermediate_size",
        "norm_before_gate",
    ),
)

FAMILIES = (*LLAMA_FAMILIES, _GPT2, _GPT_NEOX, _MAMBA, _MAMBA2)
