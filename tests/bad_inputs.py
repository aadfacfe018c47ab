"""How bad input is tried: it must be refused by this library itself, before any compile."""

import functools
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st

from tests.small import VOCAB_SIZE, random_ids, small_params, small_writer

TRIED: Counter[str] = Counter()
_COMPILES: Counter[str] = Counter()
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
OURS = ("/gradmem_jax/", "/experiments/")


def _count(event: str, seconds: float, **_: Any) -> None:
    _COMPILES[event] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def compiles() -> int:
    """Programs compiled so far in this process."""
    return _COMPILES[_COMPILE_EVENT]


def examples(count: int) -> Callable[[Any], Any]:
    """Settings of a property that is the same in every run."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def refused(family: str, call: Callable[[], Any]) -> str:
    """Fails unless `call` is refused by a ValueError of this library and nothing was compiled.

    Returns:
        The message.
    """
    TRIED[family] += 1
    before = compiles()
    try:
        call()
    except ValueError as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        assert any(name in where for name in OURS), f"{family}: {where} refused it: {error}"
        assert len(str(error)) > 20, f"{family}: the message says too little: {error}"
        assert compiles() == before, f"{family}: compiled before it was refused: {error}"
        return str(error)
    raise AssertionError(f"{family}: a bad input passed.")


def sound(family: str, call: Callable[[], Any]) -> None:
    """Fails if `call`, whose input may be good, ends in another way than to pass or be refused."""
    try:
        call()
    except ValueError:
        refused(family, call)


# What is never a number; some are what people type or what a computation leaves behind.
NO_NUMBER = st.sampled_from(
    ["", "8", "none", b"8", [8], (8,), {}, {8}, object(), 1j, np.array([8]), np.array("8")]
)
NO_INTEGER = NO_NUMBER | st.floats() | st.booleans()
NO_FINITE = NO_NUMBER | st.booleans() | st.sampled_from([np.nan, np.inf, -np.inf, 10**400])
NEGATIVE = st.integers(max_value=-1)
NOT_ABOVE_ZERO = NO_FINITE | st.floats(max_value=0, allow_nan=False)
NO_TEXT = st.sampled_from([0, 1.5, True, b"full", ["none"], {}, np.nan]) | st.text(max_size=8)


@st.composite
def bad_ids(draw: Any, valid: np.ndarray, longest: int | None) -> Any:
    """Token ids with one thing wrong.

    Args:
        draw: of hypothesis.
        valid: ids that are accepted.
        longest: of the last axis; None if any is.
    """
    kind = draw(st.sampled_from(_BAD_IDS + ("long",) * (longest is not None)))
    wrong = np.array(valid, np.int64)
    place = tuple(draw(st.integers(0, n - 1)) for n in valid.shape)
    if kind == "range":
        wrong[place] = draw(
            st.integers(-(2**63), -1)
            | st.integers(VOCAB_SIZE, 2**63 - 1)
            | st.integers(1, 2**20).map(lambda i: i * 2**32 + 1)  # 1 in its lower 32 bits
        )
    elif kind == "padding":
        wrong[..., 0] = 0
    elif kind == "empty":
        axis = draw(st.integers(0, valid.ndim - 1))
        wrong = np.take(wrong, [], axis=axis)
    elif kind == "rank":
        wrong = draw(st.sampled_from([wrong[(0,) * wrong.ndim], wrong.ravel(), wrong[None, None]]))
    elif kind == "dtype":
        types = st.sampled_from([float, np.float16, bool, complex, str, bytes, object, "M8[s]"])
        wrong = wrong.astype(draw(types))
    elif kind == "ragged":
        wrong = wrong.tolist()
        wrong[-1] = wrong[-1][:-1]
    elif kind == "long":
        length = draw(st.integers(longest + 1, longest + 50))
        wrong = np.ones((*valid.shape[:-1], length), np.int32)
    else:
        wrong = draw(st.sampled_from([None, "text", object(), {}, 3, jax.random.key]))
    return wrong


_BAD_IDS = ("range", "padding", "empty", "rank", "dtype", "ragged", "object")


@st.composite
def bad_memory(draw: Any, valid: Any, any_batch: bool = False) -> Any:
    """A memory with one thing wrong; with `any_batch` it may be of any number of contexts."""
    kinds = ["rank", "dtype", "values", "object", "missing", *["batch"] * (not any_batch)]
    kind = draw(st.sampled_from(kinds))
    leaves, structure = jax.tree.flatten(valid)
    place = draw(st.integers(0, len(leaves) - 1))
    leaf = leaves[place]
    if kind == "values" and leaf.size and np.issubdtype(leaf.dtype, np.floating):
        leaf = leaf.copy()
        leaf.flat[draw(st.integers(0, leaf.size - 1))] = draw(st.sampled_from([np.nan, np.inf]))
    elif kind == "dtype":
        leaf = leaf.astype(draw(st.sampled_from([bool, complex, str, object])))
    elif kind == "rank":
        leaf = leaf[None]
    elif kind == "object":
        return draw(st.sampled_from(["memory", object(), {}, [], (), [valid], 3.0]))
    elif kind == "missing":
        leaf = None if len(leaves) > 1 else ()  # None alone means an empty memory
    elif any_batch:
        leaf = leaf[:0]
    else:
        leaf = np.concatenate([leaf, leaf])
    return jax.tree.unflatten(structure, [*leaves[:place], leaf, *leaves[place + 1 :]])


@functools.cache
def written(name: str) -> tuple[Any, Any, Any]:
    """Model, parameters and a memory of two contexts, made without a compile."""
    model = small_writer(name)
    params = small_params(model)
    write = lambda params, ids: model.write_memory(params, ids)[0]
    shapes = jax.eval_shape(write, params, jax.ShapeDtypeStruct((2, 5), np.int32))
    rng = np.random.default_rng(0)
    draw = lambda x: (
        rng.standard_normal(x.shape).astype(x.dtype)
        if np.issubdtype(x.dtype, np.floating)
        else np.full(x.shape, 5, x.dtype)
    )
    return model, params, jax.tree.map(draw, shapes)


def longest(model: Any) -> int | None:
    """Most tokens that fit behind the memory, if a test can make more."""
    positions = model.config.lm.max_positions
    return positions if positions < 2**16 else None


CONTEXTS, QUERIES = random_ids(0, 2, 5), random_ids(1, 2, 3, 4)
