"""The kinds of models of Hugging Face that can be read and written, one table each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoXConfig
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.pretrained.tensor_layout import Layout

NEEDED = object()


class Family(NamedTuple):
    """How Hugging Face stores the models of one kind.

    Attributes:
        config_class: their configuration here.
        model_type: their name in config.json.
        architecture: the class of the causal language model.
        fields: field of our configuration to their key, and what an absent key means.
        fixed: their key to the values that are computed here; the first is that of an absent key.
        layout: the tensors.
        base: what stands before the names of all tensors but the head; some files leave it out.
    """

    config_class: type[LMConfig]
    model_type: str
    architecture: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    layout: Layout
    base: str


def _norm(theirs: str, ours: str) -> Layout:
    return {
        f"{theirs}.weight": (f"{ours}/scale", "d -> d"),
        f"{theirs}.bias": (f"{ours}/bias", "d -> d"),
    }


_LLAMA = Family(
    config_class=LlamaConfig,
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("hidden_size", NEEDED),
        "num_layers": ("num_hidden_layers", NEEDED),
        "num_heads": ("num_attention_heads", NEEDED),
        "num_kv_heads": ("num_key_value_heads", None),
        "head_width": ("head_dim", None),
        "mlp_width": ("intermediate_size", NEEDED),
        "max_positions": ("max_position_embeddings", 2048),
        "norm_epsilon": ("rms_norm_eps", 1e-6),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", False),
        "rope_base": ("rope_theta", 10_000.0),
        "rope_scaling": ("rope_scaling", None),
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1.0, None),
    },
    layout={
        "model.embed_tokens.weight": ("embedding", "v d -> v d"),
        "model.layers.{}.input_layernorm.weight": ("layers/attention_norm/scale", "d -> d"),
        "model.layers.{}.self_attn.q_proj.weight": (
            "layers/attention/query/kernel",
            "hk d -> d h k",
        ),
        "model.layers.{}.self_attn.k_proj.weight": ("layers/attention/key/kernel", "gk d -> d g k"),
        "model.layers.{}.self_attn.v_proj.weight": (
            "layers/attention/value/kernel",
            "gk d -> d g k",
        ),
        "model.layers.{}.self_attn.o_proj.weight": (
            "layers/attention/output/kernel",
            "d hk -> h k d",
        ),
        "model.layers.{}.post_attention_layernorm.weight": ("layers/mlp_norm/scale", "d -> d"),
        "model.layers.{}.mlp.gate_proj.weight": ("layers/gate/kernel", "f d -> d f"),
        "model.layers.{}.mlp.up_proj.weight": ("layers/up/kernel", "f d -> d f"),
        "model.layers.{}.mlp.down_proj.weight": ("layers/down/kernel", "d f -> f d"),
        "model.norm.weight": ("final_norm/scale", "d -> d"),
        "lm_head.weight": ("head", "v d -> d v"),
    },
    base="model.",
)

_GPT2 = Family(
    config_class=GPT2Config,
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
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

_GPT_NEOX = Family(
    config_class=GPTNeoXConfig,
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
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
)

_MAMBA = Family(
    config_class=MambaConfig,
    model_type="mamba",
    architecture="MambaForCausalLM",
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

FAMILIES = (_LLAMA, _GPT2, _GPT_NEOX, _MAMBA)


def family_of(config: LMConfig) -> Family:
    """Returns how Hugging Face stores models of a configuration.

    Raises:
        ValueError: it has no such models.
    """
    for family in FAMILIES:
        if type(config) is family.config_class:
            return family
    known = sorted(family.config_class.__name__ for family in FAMILIES)
    raise ValueError(
        f"a {type(config).__name__} cannot be read from or written to a Hugging Face checkpoint; "
        f"only {known} can."
    )
