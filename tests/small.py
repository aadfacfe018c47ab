"""A model small enough to compile in no time, and token ids for it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from gradmem_jax import RMT, GradMem, GradMemConfig, LlamaConfig, RMTConfig
from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.memory import programs
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.methods import METHODS
from gradmem_jax.parallel import micro_batches

VOCAB_SIZE = 11


def small_model(
    write_optimizer: Any = None, *, num_write_parts: int = AUTOMATIC, **changes: Any
) -> GradMem:
    """A model of width 8; `changes` go to the GradMemConfig, those of `lm` as a dict."""
    lm = dict(
        vocab_size=VOCAB_SIZE,
        width=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=12,
        max_positions=40,
        init="fan_in",
    )
    options = dict(
        lm=LlamaConfig(**(lm | changes.pop("lm", {}))),
        num_memory_tokens=3,
        num_write_steps=2,
        write_learning_rate=2.0,
        memory_init_std=1.0,
    )
    config = GradMemConfig(**(options | changes))
    return GradMem(config, write_optimizer, num_write_parts=num_write_parts)


def small_rmt(**changes: Any) -> RMT:
    """An RMT on the same language model."""
    lm = small_model(lm=changes.pop("lm", {})).config.lm
    options = dict(lm=lm, num_memory_tokens=3, num_write_steps=2, memory_init_std=1.0)
    return RMT(RMTConfig(**(options | changes)))


def small_writer(name: str, **changes: Any) -> MemoryModel:
    """The method of gradmem_jax/methods.py with this name, of width 8."""
    method = METHODS[name]
    fields = {field.name for field in dataclasses.fields(method.lm)}
    lm = dataclasses.asdict(small_model().config.lm) | {"num_kv_heads": None, "rope_scaling": None}
    lm |= {"memory_width": 4, "state_size": 3, "chunk_size": 4, "window_size": 4}
    lm |= {"mini_batch_size": 4, "inner_learning_rate": 0.5}
    if name == "mamba2":
        lm["head_width"] = 4
    lm |= changes.pop("lm", {})
    options = dict(num_memory_tokens=3, memory_init_std=1.0, write_learning_rate=2.0)
    known = {field.name for field in dataclasses.fields(method.config)}
    options = {key: value for key, value in options.items() if key in known}
    lm_config = method.lm(**{key: value for key, value in lm.items() if key in fields})
    return method.model(method.config(lm=lm_config, **(options | changes)))


def numpy_params(init: Callable[[], Any], seed: int = 0) -> Any:
    """Parameters in which nothing is zero, equal, or the identity; drawn without a compile."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(x.shape)
        name = path[-1].key
        if name in ("scale", "tokens") or path[0].key == "log_write_learning_rate":
            values = 1 + 0.1 * values
        elif x.ndim > 1 and path[0].key != "initial_memory" and name != "embedding":
            values = values / np.sqrt(max(x.shape))
        return values.astype(x.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(init))


def small_params(model: MemoryModel, seed: int = 0) -> dict[str, Any]:
    """Parameters of a model by `numpy_params`."""
    return numpy_params(lambda: model.init(jax.random.key(0)), seed)


def random_ids(seed: int, *shape: int) -> np.ndarray:
    """Token ids without padding."""
    return np.random.default_rng(seed).integers(1, VOCAB_SIZE, size=shape)


def small_batch(batch_size: int = 3, queries: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Contexts of different lengths, and queries whose last two tokens are the target."""
    context_ids = random_ids(seed, batch_size, 9)
    for i in range(batch_size):
        context_ids[i, 9 - i % 3 :] = 0
    query_ids = random_ids(seed + 1, batch_size, queries, 5)
    labels = np.where(np.arange(5) < 3, -100, query_ids)
    return {"context_ids": context_ids, "query_ids": query_ids, "labels": labels}


@contextlib.contextmanager
def small_parts(num_tokens: int) -> Iterator[mock.Mock]:
    """Parts of so many tokens on CPU, for what is traced here; yields a mock that counts them."""
    counted = mock.Mock(wraps=micro_batches.count_micro_batches)
    with (
        mock.patch.object(programs, "_values_of", lambda _: {}),
        mock.patch.object(micro_batches, "_CPU_TOKENS", num_tokens),
        mock.patch.object(micro_batches, "count_micro_batches", counted),
    ):
        yield counted


@contextlib.contextmanager
def compiles() -> Iterator[list[str]]:
    """Yields a list that gets an entry for each program that XLA compiles."""
    names: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
