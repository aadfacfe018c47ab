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
    return _has_glibc() and ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2) == 1


def give_back() -> bool:
    """Gives memory that is free back to the system.

    A compiler's is, hundreds of MiB, once it is done; glibc would keep it, and what runs next would
    take more.

    Returns:
        Whether there was any; false without glibc.
    """
    return _has_glibc() and ctypes.CDLL(None).malloc_trim(0) == 1


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
