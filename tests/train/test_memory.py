"""Freed memory goes back to the system, and where it cannot, nothing happens."""

import ctypes
import sys

import pytest

from minift.train import memory


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_holes_in_the_heap_are_given_back():
    """Blocks of 64 kB lie in the heap; every second one is freed, so its end cannot shrink, and the holes stay the process's."""
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [libc.malloc(65536) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 65536)
    for block in blocks[::2]:
        libc.free(block)
    held = resident()
    assert memory.give_back()
    assert held - resident() > 30 * 2**20                      # of 64 MB in holes
    for block in blocks[1::2]:
        libc.free(block)


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory._trim.cache_clear()
    assert memory.give_back() is False
    memory._trim.cache_clear()
