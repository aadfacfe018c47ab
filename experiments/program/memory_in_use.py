"""How much memory this process and its devices have in use."""

import os

import jax

GIBIBYTE = 2**30
_STATISTICS = {"bytes_in_use": "device_gib", "peak_bytes_in_use": "device_peak_gib"}


def memory_in_use() -> dict[str, float]:
    """GiB by name: host_gib of this process, and of the fullest device, where they are known.

    A CPU device has its arrays in the memory of the host, and no number of its own.
    """
    found = {}
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        found["host_gib"] = pages * os.sysconf("SC_PAGE_SIZE") / GIBIBYTE
    except OSError:  # not on Linux
        pass
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    for field, name in _STATISTICS.items():
        values = [statistics[field] for statistics in known if field in statistics]
        if values:
            found[name] = max(values) / GIBIBYTE
    return found
