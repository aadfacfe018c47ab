"""The C library's heap, which steps on CPU must not let grow."""

import ctypes
import platform

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_arenas() -> bool:
    """Has all threads of this process share two arenas of glibc's heap.

    By default threads have arenas of their own, which keep what is freed in them: with K = 5 the
    process of the benchmark took 17 % more than with K = 1, though XLA plans as much for both.
    Only arenas made later are shared, so a program calls this first.

    Returns:
        Whether it did; false without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2) == 1
