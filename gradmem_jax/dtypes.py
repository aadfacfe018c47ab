"""In which type numbers are computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.trees import PyTree


def at_least_float32(dtype: Any) -> np.dtype:
    """The type to accumulate in: float64 for float64, and float32 for types with fewer bits.

    It is `jnp.promote_types(dtype, float32)`, which `jax_numpy_dtype_promotion="strict"` refuses.
    """
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def widened(tree: PyTree) -> PyTree:
    """The same with floating numbers of 16 bits as float32, for optimizers.

    In 16 bits Adam's epsilon of 1e-8 and small squares are 0 (float16), a decay of 0.999 is 1
    (bfloat16), and a norm above 65,504 is infinite (float16).
    """

    def widen(x: Any) -> Any:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(at_least_float32(x.dtype)) if is_float else x

    return jax.tree.map(widen, tree)
