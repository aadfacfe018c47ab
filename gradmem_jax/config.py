"""Configurations: frozen dataclasses that refuse wrong values when they are made."""

import dataclasses
from typing import ClassVar

import jax

from gradmem_jax.checks import (
    check_fields,
    require,
    require_choice,
    require_integer,
    require_number,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")
ENABLE_X64 = 'call jax.config.update("jax_enable_x64", True) first.'
REMAT_POLICIES = ("none", "full", "dots")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond the trained length.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "llama3" divides the low ones only and
            blends between `low_frequency_factor` and `high_frequency_factor` (Llama 3.1).
        factor: how many times longer the context becomes.
        low_frequency_factor: wavelengths above `original_positions / low_frequency_factor` are
            divided by `factor` (llama3 only).
        high_frequency_factor: wavelengths below `original_positions / high_frequency_factor` are
            left alone (llama3 only).
        original_positions: context length of the original training (llama3 only).
    """

    kind: str = "llama3"
    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        require_choice("rope_scaling.kind", self.kind, ("linear", "llama3"))
        require_number("rope_scaling.factor", self.factor, above=0)
        require_number("rope_scaling.low_frequency_factor", self.low_frequency_factor, above=0)
        require_number(
            "rope_scaling.high_frequency_factor",
            self.high_frequency_factor,
            above=self.low_frequency_factor,
        )
        require_integer("rope_scaling.original_positions", self.original_positions, 1)


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """What every language model has.

    Attributes:
        vocab_size: V, number of token ids.
        width: d, size of embeddings and residual stream.
        num_layers: L.
        max_positions: longest sequence, memory and control tokens included.
        norm_epsilon: epsilon of RMSNorm.
        tied_head: use the embedding matrix as output projection too.
        init: "normal" draws every matrix with deviation `init_std` (the paper); "fan_in" uses
            LeCun initialisation with unit-scale embeddings.
        init_std: deviation for `init="normal"`.
        dtype: compute dtype; logits, losses and softmax stay in float32 at least.
        param_dtype: dtype of the parameters.
        scan_layers: run the layers as one `lax.scan` over stacked parameters (short compile).
        remat: what the backward pass recomputes in a layer: "none" (keep all), "dots" (keep
            matrix products), "full" (keep only the layer's input).
    """

    keeps: ClassVar[str] = "keys and values"

    vocab_size: int
    width: int = 128
    num_layers: int = 4
    max_positions: int = 2048
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    init: str = "normal"
    init_std: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self) -> None:
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            require_choice(name, value, DTYPES)
            require(
                jax.dtypes.canonicalize_dtype(value) == value,
                f"{name}={value!r} would be float32; {ENABLE_X64}",
            )
        check_fields(self)
        for name in ("vocab_size", "width", "num_layers", "max_positions"):
            require_integer(name, getattr(self, name), 1)
        require_number("norm_epsilon", self.norm_epsilon, above=0)
        require_number("init_std", self.init_std, above=0)
        require_choice("init", self.init, ("normal", "fan_in"))
        require_choice("remat", self.remat, REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(LMConfig):
    """What every language model with attention over all tokens has.

    Attributes:
        num_heads: H, query heads.
        mlp_width: hidden size of the MLP; None means `4 * width`.
    """

    num_heads: int = 4
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_heads", self.num_heads, 1)
        if self.mlp_width is not None:
            require_integer("mlp_width", self.mlp_width, 1)
        require(
            self.head_size * self.num_heads == self.width or self.has_own_head_width,
            f"width={self.width} is not a multiple of num_heads={self.num_heads}; "
            "change one of them or set head_width.",
        )

    @property
    def has_own_head_width(self) -> bool:
        """Whether heads may have another width than their share of the model's."""
        return False

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


@dataclasses.dataclass(frozen=True)
class GPT2Config(TransformerConfig):
    """A GPT-2 language model; positions are learned vectors, the head is the embedding."""

    max_positions: int = 1024
    tied_head: bool = True


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig(TransformerConfig):
    """A GPT-NeoX language model, such as Pythia.

    Attributes:
        rope_base: base of the rotary frequencies.
        rotary_fraction: share of each head that is rotated, from its start.
        parallel_residual: whether attention and MLP read the same stream, instead of the MLP
            reading what attention has added to it.
    """

    rope_base: float = 10_000.0
    rotary_fraction: float = 0.25
    parallel_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("rope_base", self.rope_base, above=0)
        require_number("rotary_fraction", self.rotary_fraction, above=0)
        require(
            self.rotary_fraction <= 1 and self.rotary_width > 0 and self.rotary_width % 2 == 0,
            f"rotary_fraction={self.rotary_fraction} rotates {self.rotary_width} of the "
            f"{self.head_size} components of a head; it must be an even number of them.",
        )

    @property
    def rotary_width(self) -> int:
        """Components of a head that are rotated."""
        return int(self.head_size * self.rotary_fraction)


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """A Llama language model; the defaults are the model of the paper's KV retrieval runs.

    Attributes:
        num_kv_heads: key and value heads (grouped-query attention); None means `num_heads`.
        head_width: size of one head; None means `width // num_heads`.
        rope_base: base of the rotary frequencies.
        rope_scaling: optional stretching of the rotary frequencies.
    """

    num_kv_heads: int | None = None
    head_width: int | None = None
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_kv_heads", "head_width"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        require(
            self.num_heads % self.kv_heads == 0,
            f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.kv_heads}.",
        )
        require(
            self.head_size % 2 == 0,
            f"head_width={self.head_size} must be even: rotary embedding turns pairs.",
        )
        require_number("rope_base", self.rope_base, above=0)

    @property
    def has_own_head_width(self) -> bool:
        """Whether heads may have another width than their share of the model's."""
        return self.head_width is not None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What every way of writing a memory has.

    Attributes:
        lm: the language model that writes and reads.
        num_write_steps: K, steps of one WRITE; can be changed at call time.
        inner_loss_weight: weight of the WRITE loss in the outer loss.
        pad_id: token id that fills contexts and queries up to a common length, on the right.
    """

    has_write_loss: ClassVar[bool] = False
    lm_keeps: ClassVar[str] = "keys and values"

    lm: LMConfig
    num_write_steps: int = 1
    inner_loss_weight: float = 0.0
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.lm.keeps == self.lm_keeps,
            f"lm={type(self.lm).__name__} keeps {self.lm.keeps} of what it reads; a "
            f"{type(self).__name__} needs a language model that keeps {self.lm_keeps}.",
        )
        require_integer("num_write_steps", self.num_write_steps, 0)
        require_number("inner_loss_weight", self.inner_loss_weight)
        require(
            self.inner_loss_weight >= 0,
            f"inner_loss_weight={self.inner_loss_weight} must not be negative.",
        )
        require(
            self.has_write_loss or not self.inner_loss_weight,
            f"inner_loss_weight={self.inner_loss_weight} must be 0: this WRITE has no loss.",
        )
        require_integer("pad_id", self.pad_id, 0)
        require(
            self.pad_id < self.lm.vocab_size,
            f"pad_id={self.pad_id} is outside the vocabulary of {self.lm.vocab_size} ids.",
        )


@dataclasses.dataclass(frozen=True)
class PrefixConfig(MemoryConfig):
    """A memory of `num_memory_tokens` vectors that stand before the tokens, as embeddings.

    Attributes:
        num_memory_tokens: m, number of memory vectors.
        write_head: a separate output projection for the WRITE loss, started as a copy of the LM's.
        num_control_tokens: c, learned vectors on each side of the memory, for WRITE and for READ.
        memory_init_std: deviation of the normal distribution M0 and the control tokens start from.
        write_lora_rank: r of low-rank adapters that are active in WRITE only; 0 means none.
        write_lora_alpha: the adapters are scaled by alpha / r.
        write_lora_targets: names of the modules of the language model that have an adapter.
        write_lora_dropout: share of an adapter's inputs that each training step leaves out, the
            same ones for all tokens of its batch.
    """

    has_write_loss: ClassVar[bool] = True

    num_memory_tokens: int = 8
    write_head: bool = True
    num_control_tokens: int = 0
    memory_init_std: float = 0.02
    write_lora_rank: int = 0
    write_lora_alpha: float = 16.0
    write_lora_targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    write_lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_memory_tokens", self.num_memory_tokens, 1)
        require_integer("num_control_tokens", self.num_control_tokens, 0)
        require_number("memory_init_std", self.memory_init_std, above=0)
        require_integer("write_lora_rank", self.write_lora_rank, 0)
        require_number("write_lora_alpha", self.write_lora_alpha, above=0)
        require_number("write_lora_dropout", self.write_lora_dropout)
        require(
            0 <= self.write_lora_dropout < 1,
            f"write_lora_dropout={self.write_lora_dropout} must be in [0, 1), the share left out.",
        )
        require(
            self.write_lora_rank > 0 or self.write_lora_dropout == 0,
            f"write_lora_dropout={self.write_lora_dropout} needs adapters: set write_lora_rank.",
        )
        require(
            self.prefix_length < self.lm.max_positions,
            f"memory and control tokens take {self.prefix_length} positions, the model has "
            f"{self.lm.max_positions}; use fewer or raise lm.max_positions.",
        )

    @property
    def prefix_length(self) -> int:
        """Positions before the first context or query token."""
        return self.num_memory_tokens + 2 * self.num_control_tokens


@dataclasses.dataclass(frozen=True)
class GradMemConfig(PrefixConfig):
    """GradMem: the memory is written by gradient descent.

    The WRITE loss that `inner_loss_weight` adds to the outer loss is that of the last step.

    It has the fields of `PrefixConfig` too (`num_memory_tokens`, `write_head`,
    `num_control_tokens`, `memory_init_std`, `write_lora_rank` and others of the adapters), and of
    `MemoryConfig` (`lm`, `num_write_steps`, `inner_loss_weight`, `pad_id`), explained there.

    Attributes:
        write_learning_rate: alpha, also the starting value of a learned one.
        learned_write_learning_rate: "none" keeps alpha fixed; "shared" learns one number, "token"
            one for each memory token, "dimension" one for each of the d dimensions. Learned
            rates are kept positive by learning their logarithm.
        memory_projection: linear layer between memory and model, the identity at the start:
            "none", "proj" (shared, trained by the outer loop only) or "per_sample" (each sample's
            own copy is updated by the WRITE too).
        clip_value: each component of the WRITE gradient is clipped to [-clip_value, clip_value].
        clip_norm: of each array of a sample's memory the WRITE gradient is scaled down to this norm
            if it is longer.
        gradient_mode: how the outer gradient passes an update of the memory: "second" exactly,
            "first" as if the WRITE gradient were a constant, "none" not at all.
        second_order_steps: only the last so many of the K steps are "second"; None means all. Steps
            that a sample does not take, below its `loss_tolerance`, count too.
        meta_gradient: how "second" is computed: "mixed" (forward over reverse, memory does not
            grow with K; of one or two such steps the last one keeps its linearised gradient,
            unless `lm.remat` says that memory is short) or "reverse" (plain reverse over reverse).
            Both give the same numbers.
    """

    num_write_steps: int = 5
    write_learning_rate: float = 0.4
    learned_write_learning_rate: str = "none"
    memory_projection: str = "none"
    clip_value: float | None = None
    clip_norm: float | None = None
    gradient_mode: str = "second"
    second_order_steps: int | None = None
    meta_gradient: str = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("write_learning_rate", self.write_learning_rate, above=0)
        require_choice(
            "learned_write_learning_rate",
            self.learned_write_learning_rate,
            ("none", "shared", "token", "dimension"),
        )
        require_choice("memory_projection", self.memory_projection, ("none", "proj", "per_sample"))
        require_choice("gradient_mode", self.gradient_mode, ("second", "first", "none"))
        require_choice("meta_gradient", self.meta_gradient, ("mixed", "reverse"))
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0)
        if self.second_order_steps is not None:
            require_integer("second_order_steps", self.second_order_steps, 0)
            require(
                self.gradient_mode == "second",
                f"second_order_steps={self.second_order_steps} needs gradient_mode='second', "
                f"not {self.gradient_mode!r}; leave it None.",
            )
