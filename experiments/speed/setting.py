"""What a benchmark measures: the sizes of a model and of a batch, and both made from them."""

import dataclasses
import typing
from collections.abc import Callable, Container
from typing import Any, Literal

import jax
import numpy as np
from absl import flags

from experiments.program import cores
from gradmem_jax.checks import (
    AUTOMATIC,
    DTYPES,
    Dtype,
    check_fields,
    require,
    require_count,
    require_integer,
)
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from gradmem_jax.lm.language_model import REMAT_POLICIES, Remat
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.losses import IGNORE
from gradmem_jax.memory.gradmem import GradMemConfig
from gradmem_jax.parallel.micro_batches import count_micro_batches

MIB = 2**20
_KV = KVRetrievalConfig()
_TARGET_TOKENS = 4


def _size(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Setting:
    """One measured setting; every field is a flag, and its help text says what it is."""

    context_tokens: int = _size(225, "Context length S.")
    query_tokens: int = _size(_KV.query_length, "Query length Q, target included.")
    queries_per_context: int = _size(1, "Queries R of a context.")
    batch_size: int = _size(64, "Contexts in a batch, B.")
    write_steps: int = _size(2, "WRITE steps K.")
    num_memory_tokens: int = _size(8, "Memory tokens m.")
    meta_gradient: Literal["mixed", "reverse"] = _size(
        "mixed", "How second order is computed.", ("mixed", "reverse")
    )
    micro_batches: int = _size(
        1, "Parts of a device's batch in a training step; -1: as many as suit the machine."
    )
    cpu_devices: int = _size(
        1, "CPU devices, each with its part of the batch and a core; -1: as many as divide it."
    )
    width: int = _size(128, "Width d of the Llama.")
    num_layers: int = _size(4, "Its layers L.")
    num_heads: int = _size(4, "Its attention heads H.")
    num_kv_heads: int | None = _size(None, "Its key and value heads; default: num_heads.")
    mlp_width: int | None = _size(None, "Hidden width of its MLP; default: 4 * width.")
    vocab_size: int = _size(_KV.vocab_size, "Its vocabulary V; default: that of KV retrieval.")
    tied_head: bool = _size(False, "Whether its head is its embedding.")
    scan_layers: bool = _size(False, "Run the layers as one scan.")
    remat: Remat = _size("none", "What the backward pass recomputes.", REMAT_POLICIES)
    dtype: Dtype = _size("float32", "Compute dtype.", DTYPES)
    repeats: int = _size(5, "Timed calls, after one that is not; 0 only compiles.")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("context_tokens", "queries_per_context", "batch_size"):
            require_integer(name, getattr(self, name), 1)
        for name in ("micro_batches", "cpu_devices"):
            require_count(name, getattr(self, name))
        require(
            self.query_tokens > _TARGET_TOKENS,
            f"query_tokens={self.query_tokens} must be above {_TARGET_TOKENS}, the target's.",
        )
        require(self.repeats >= 0, f"repeats={self.repeats} must not be negative.")
        require(
            self.batch_size % (max(self.micro_batches, 1) * max(self.cpu_devices, 1)) == 0,
            f"batch_size={self.batch_size} must be a multiple of micro_batches="
            f"{self.micro_batches} times cpu_devices={self.cpu_devices}.",
        )
        self.model_config()

    def lm_config(self) -> LlamaConfig:
        """The language model, with positions for the context, the memory and the query."""
        shared = {field.name for field in dataclasses.fields(LlamaConfig)}
        fields = {name: value for name, value in vars(self).items() if name in shared}
        positions = self.num_memory_tokens + self.context_tokens + self.query_tokens
        return LlamaConfig(**fields, max_positions=max(2048, positions))

    def model_config(self) -> GradMemConfig:
        """The GradMem."""
        return GradMemConfig(
            lm=self.lm_config(),
            num_memory_tokens=self.num_memory_tokens,
            num_write_steps=self.write_steps,
            meta_gradient=self.meta_gradient,
        )

    def resolved(self) -> "Setting":
        """The same with the numbers that JAX's device and this machine's cores suggest."""
        on_cpu = self.cpu_devices != AUTOMATIC or jax.devices()[0].platform == "cpu"
        devices = cores.count_devices(self.cpu_devices, self.batch_size) if on_cpu else 1
        num_tokens = self.context_tokens + self.queries_per_context * self.query_tokens
        parts = count_micro_batches(self.micro_batches, self.batch_size // devices, num_tokens)
        return dataclasses.replace(self, cpu_devices=devices, micro_batches=parts)

    def batch(self) -> dict[str, np.ndarray]:
        """Random ids without padding; the last tokens of a query are its target."""
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> np.ndarray:
            return np.asarray(rng.integers(1, self.vocab_size, shape), np.int32)

        queries = draw(self.batch_size, self.queries_per_context, self.query_tokens)
        is_target = np.arange(self.query_tokens) >= self.query_tokens - _TARGET_TOKENS
        return {
            "context_ids": draw(self.batch_size, self.context_tokens),
            "query_ids": queries,
            "labels": np.where(is_target, queries, IGNORE),
        }


def define_flags(*, without: Container[str] = (), **defaults: Any) -> Callable[..., Setting]:
    """Defines a flag for every field of a Setting.

    Args:
        without: fields that have no flag.
        **defaults: other default values.

    Returns:
        What makes a Setting of the flags once they are parsed; its arguments replace fields.
    """
    kinds = typing.get_type_hints(Setting)
    names = [f.name for f in dataclasses.fields(Setting) if f.name not in without]
    for field in dataclasses.fields(Setting):
        if field.name in without:
            continue
        default = defaults.get(field.name, field.default)
        text, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(field.name, default, choices, text)
        elif kinds[field.name] is bool:
            flags.DEFINE_bool(field.name, default, text)
        else:
            flags.DEFINE_integer(field.name, default, text)

    def make(**changes: Any) -> Setting:
        parsed: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
        return Setting(**(parsed | changes))

    return make
