"""Freed memory is kept from step to step, holes go back to the system once they have made the process grow, and where that cannot be, nothing happens."""

import ctypes
import subprocess
import sys

import pytest

from minift.train import memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and glibc are Linux's")


@linux
def test_holes_in_the_heap_are_given_back():
    """Blocks of 64 kB lie in the heap; every second one is freed, so its end cannot shrink, and the holes stay the process's."""
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [libc.malloc(65536) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 65536)
    for block in blocks[::2]:
        libc.free(block)
    held = memory.resident()
    assert memory.give_back()
    assert (held - memory.resident()) * 4096 > 30 * 2**20      # of 64 MB in holes
    for block in blocks[1::2]:
        libc.free(block)


FAULTS = """
import resource, sys, torch
from minift.train import memory
if sys.argv[1] == "keep":
    assert memory.keep()
faults = []
for size in (96, 80, 64, 48):                                  # MB: each has room where the one before it lay, with what came to lie there since
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size * 2**20 // 4)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[1:]))
"""


@linux
def test_large_pieces_are_kept():
    """80, 64 and 48 MB are 49,152 pages: each a fault when they come from the system anew, next to none when the process kept what 96 MB lay in."""
    faults = {way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout) for way in ("leave", "keep")}
    assert faults["leave"] > 49_000 and faults["keep"] < 1_000


def grown(monkeypatch, held: list[int]) -> list[int]:
    """At which of the steps, counted from 0, at whose ends so many pages were held the system was asked."""
    asked, steps, holes = [], iter(held), memory.Holes()
    monkeypatch.setattr(memory, "resident", lambda: next(steps))
    monkeypatch.setattr(memory, "give_back", lambda: asked.append(1))
    found = [number for number in range(len(held)) if holes.step()]
    assert len(asked) == len(found)
    return found


def test_a_steady_process_is_left_alone(monkeypatch):
    assert grown(monkeypatch, [100 + step % 20 for step in range(100)]) == []


def test_holes_are_looked_for_when_the_process_has_grown_by_a_quarter(monkeypatch):
    assert grown(monkeypatch, [100] * 8 + [125, 126, 110, 111, 139]) == [9]             # 139 is within the eight steps behind it


def test_what_a_process_needs_is_learned_and_not_asked_for_again(monkeypatch):
    """From step 8 on it needs twice as much. It is asked about once, and the eight steps behind that say what is usual now."""
    assert grown(monkeypatch, [100] * 8 + [200] * 50) == [8]


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory._libc.cache_clear()
    assert memory.give_back() is False and memory.keep() is False
    memory._libc.cache_clear()


def test_without_proc_nothing_is_ever_given_back(monkeypatch):
    def missing(*_):
        raise OSError

    monkeypatch.setattr("builtins.open", missing)
    assert memory.resident() == 0 and not any(memory.Holes().step() for _ in range(20))
