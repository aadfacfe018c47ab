"""In which type numbers are computed."""

from typing import Any

import numpy as np


def at_least_float32(dtype: Any) -> np.dtype:
    """The type to accumulate in: float64 for float64, and float32 for types with fewer bits.

    It is `jnp.promote_types(dtype, float32)`, which `jax_numpy_dtype_promotion="strict"` refuses.
    """
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
