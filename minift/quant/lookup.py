"""NF4 and FP4 on a CPU, fast, in plain torch: tables instead of arithmetic, in pieces that stay in the processor's cache.

    dequantize    a byte is two codes: one look-up in 256 pairs of values gives both; then times absmax, in float32
    quantize      u = w / absmax in [-1, 1]; its cell, trunc(32767 u), is one of 65,535; one look-up gives the code. Of these cells at most 15
                  hold a middle between two values: the few numbers that fall there are compared one by one

Why this is quick: torch looks up 8 bytes by a 32-bit index in half a nanosecond, and compares or searches in several. Buffers are used again,
since memory fresh from the operating system costs more than the arithmetic; the result itself is asked for in pages of 2 MB (fresh).
All of it on one thread: torch looks up on one in any case, and what waking a second costs for each piece is more than it saves.
Same bits as the plain version in blocks.py, which says what is computed. Proved in tests/quant/test_lookup.py; timed in docs/quant_cpu.md."""

import contextlib
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from minift_kernels.codes import four_bit_map

NUMBERS = 2**19
"""Numbers in a piece: 2 MB in float32."""
CELLS = 32767
UNSURE = 0x80
"""In place of a code: this cell holds a middle."""
ANY_UNSURE = int.from_bytes([UNSURE] * 8, "little", signed=True)
HUGE = 4 * 2**20
"""Bytes from which numpy asks for pages of 2 MB."""


def on_cpu(t: Tensor) -> bool:
    """May this file serve it? torch.compile takes the plain versions, which it can see through."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block torch's operators, of this Python thread, run on one thread; half a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fresh(n: int, dtype: torch.dtype) -> Tensor:
    """(n,) uninitialised. Large ones come from numpy, which asks Linux for large pages: 500 times fewer page faults than torch's 4 kB ones."""
    if n * dtype.itemsize < HUGE:
        return torch.empty(n, dtype=dtype)
    return torch.from_numpy(np.empty(n * dtype.itemsize, np.uint8)).view(dtype)


def assemble(pieces: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One tensor of these pieces, in their order; more numbers than it has are left out."""
    out, n = fresh(math.prod(shape), dtype), 0
    for piece in pieces:
        part = out[n : n + piece.numel()]
        with one_thread():
            part.view(-1, *piece.shape[1:]).copy_(piece) if len(part) == piece.numel() else part.copy_(piece[: len(part)])
        n += len(part)
    return out.view(shape)


@functools.cache
def pairs(values: tuple[float, ...]) -> Tensor:
    """(256,): byte -> its two values in float32, side by side in one 64-bit word."""
    v = torch.tensor(values, dtype=torch.float32)
    return torch.stack([v.repeat_interleave(16), v.repeat(16)], dim=1).view(torch.float64).flatten()


def look_up(packed: Tensor, values: tuple[float, ...], size: int) -> Iterator[Tensor]:
    """The numbers that bytes stand for, float32, `size` (even) at a time, in one buffer that is used again."""
    size = min(size, 2 * len(packed))
    index, words = torch.empty(size // 2, dtype=torch.int32), torch.empty(size // 2, dtype=torch.float64)
    for piece in packed.split(size // 2):
        m = len(piece)
        with one_thread():
            torch.index_select(pairs(values), 0, index[:m].copy_(piece), out=words[:m])
        yield words[:m].view(torch.float32)


def scaled(packed: Tensor, absmax: Tensor, values: tuple[float, ...], block_size: int, size: int) -> Iterator[Tensor]:
    """The same, times absmax. `size` is a multiple of block_size."""
    for piece, a in zip(look_up(packed, values, size), absmax.split(size // block_size)):
        whole = len(piece) // block_size * block_size
        with one_thread():
            piece[:whole].view(-1, block_size).mul_(a[: whole // block_size, None])
            piece[whole:].mul_(a[-1])                                                 # a last block that is short
        yield piece


def rows_at_a_time(N: int, K: int, block_size: int = 1) -> int:
    """How many rows make a piece of whole blocks."""
    step = block_size // math.gcd(block_size, K)
    return min(step * max(1, NUMBERS // (step * K)), -(-N // step) * step)


@functools.cache
def cells(scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cell + 32768 -> code or UNSURE, (65536,) uint8; the middles between values, (15,); the codes in ascending order of value, (16,) uint8."""
    values, order = four_bit_map(scheme).sort(stable=True)
    middles, order = (values[:-1] + values[1:]) / 2, order.to(torch.uint8)
    home = (middles * CELLS).int()                                                    # the cells that hold a middle
    table = order[torch.searchsorted(home, torch.arange(-32768, 32768, dtype=torch.int32))]
    table[home + 32768] = UNSURE
    return table, middles, order


@one_thread()
def quantize(weight: Tensor, scheme: str, block_size: int, smallest: float) -> tuple[Tensor, Tensor]:
    """Packed (n / 2,) uint8 and absmax (n / block_size,) float32 of n finite numbers, n a multiple of block_size."""
    n, (table, middles, order) = weight.numel(), cells(scheme)
    packed, absmax = torch.empty(n // 2, dtype=torch.uint8), torch.empty(n // block_size, dtype=torch.float32)
    size = min(NUMBERS, n)
    flat, wide, index, codes = (torch.empty(size, dtype=dtype) for dtype in (torch.float32, torch.float32, torch.int32, torch.uint8))
    for w, a, bytes_out in zip(weight.reshape(-1).split(size), absmax.split(size // block_size), packed.split(size // 2)):
        m = len(w)
        u, c = flat[:m].view(-1, block_size), codes[:m]
        w = (w if w.dtype == torch.float32 else wide[:m].copy_(w)).view(-1, block_size)
        torch.amax(torch.abs(w, out=u), 1, out=a)
        inverse = 1 / a.clamp(min=smallest)                                           # (blocks,)
        torch.mul(w, inverse[:, None], out=u)
        index[:m].copy_(u.mul_(CELLS).view(-1)).add_(32768)                           # to int32: toward zero
        torch.index_select(table, 0, index[:m], out=c)
        unsure = (c.view(torch.int64) & ANY_UNSURE).nonzero()                         # (k, 1): eights of codes
        if len(unsure):
            at = (unsure * 8 + torch.arange(8)).view(-1)                              # (8 k,)
            c[at] = order[torch.bucketize(w.view(-1)[at] * inverse[at // block_size], middles)]
        torch.add(c[1::2], c[0::2], alpha=16, out=bytes_out)
    return packed, absmax
