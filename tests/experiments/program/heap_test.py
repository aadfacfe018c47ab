"""Tests of what the C library does with memory."""

import platform
import re
import subprocess
import sys
import unittest

from absl.testing import absltest, parameterized

_COUNT_ARENAS = """
import ctypes, threading
from experiments.program.heap import share_arenas
if {shared}:
    assert share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(6)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""

_GIVE_BACK = """
import ctypes, resource
from experiments.program.heap import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
blocks = [libc.malloc(10000) for _ in range(10000)]
for block in blocks: ctypes.memset(ctypes.c_void_p(block), 1, 10000)
for block in blocks[:-1]: libc.free(ctypes.c_void_p(block))  # the last one holds the rest up
kept = resident() - before
assert give_back()
print(kept >> 20, resident() - before >> 20)
"""


class HeapTest(parameterized.TestCase):
    @parameterized.parameters((False,), (True,))
    @unittest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
    def test_threads_share_two_arenas(self, shared):
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_ARENAS.format(shared=shared)],
            capture_output=True,
            text=True,
            check=True,
        )
        arenas = len(re.findall(r"<heap nr=", done.stdout))
        self.assertEqual(arenas <= 2, shared, f"{arenas} arenas")

    @unittest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
    def test_free_memory_is_given_back(self):
        done = subprocess.run(
            [sys.executable, "-c", _GIVE_BACK], capture_output=True, text=True, check=True
        )
        kept, left = map(int, done.stdout.split())
        self.assertGreater(kept, 90)
        self.assertLess(left, 10)


if __name__ == "__main__":
    absltest.main()
