"""Memory that was freed: kept for the next step, and given back to the system where it has become holes.

glibc returns every freed piece of 32 MB and more to the system at once. A training step asks for the same pieces a moment later, and each page is a fault and zeros again:
3 % of a step, so `keep` makes it hold them. What it does with smaller ones depends on what was freed before: a prompt of 1,024 tokens took 18,000 faults or none, 230 ms
of CPU or 185. Batches of ever new shapes leave holes that the next shapes do not fit into: a process that needs 0.8 GB at a time came to
hold 3.8 GB after seventy steps of DPO on a CPU. glibc keeps such holes until it is asked to return them, which costs up to a fifth of a small model's step,
so `Holes` asks only when the process has grown. Elsewhere all of this does nothing.
Proved in tests/train/test_memory.py; what it gains is in benchmarks/LOG.md."""

import ctypes
import functools

GROWN, LEARN = 1.25, 8
"""How many times what is usual a process may hold before its holes are looked for; for how many steps behind that it is watched, to learn what is usual."""
LARGEST = 2**30
"""Bytes of the largest piece that is kept."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                    # of malloc.h


@functools.cache
def _libc():
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if libc.malloc_trim and libc.mallopt else None
    except (OSError, AttributeError):                          # another C library
        return None


def keep() -> bool:
    """From now on this process keeps what it frees; whether that could be said here; a C library may refuse so large a piece."""
    libc = _libc()
    return libc is not None and bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_back() -> bool:
    """Return free pages to the system; whether there were any."""
    libc = _libc()
    return libc is not None and bool(libc.malloc_trim(0))


def resident() -> int:
    """Pages of this process that are in memory; 0 where nobody tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])
    except OSError:
        return 0


class Holes:
    """Told of every step, gives holes back once the process has grown by them."""

    def __init__(self):
        self.usual, self.learning = 0, LEARN

    def step(self) -> bool:
        """Behind a step; whether the system was asked."""
        held = resident()
        if self.learning:
            self.usual, self.learning = max(self.usual, held), self.learning - 1
            return False
        if held <= GROWN * self.usual:
            return False
        give_back()
        self.usual, self.learning = 0, LEARN
        return True
