"""NF4 and FP4: blocks of numbers as 4-bit codes and one scale (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

    a = max |w| over the block            code = nearest of the 16 map values to w / a            w ~ map[code] a

    w, flattened by rows:   | 64 numbers | 64 numbers | ... | the rest |         a block may run across rows; the last may be short
    packed:                 byte i = code of w[2i] * 16 + code of w[2i + 1]      the first of a pair in the high half

Bits per weight: 4 + 32 / 64 = 4.5, or 4 + 8 / 64 + 32 / (64 * 256) = 4.127 with the absmax quantized too (nested.py).
NF4's map has an exact zero and steps as wide as normally distributed weights ask for; FP4's is a tiny float with two zeros: 0 and below
become code 0, numbers just above it code 8. Exact middles go to the lower value; a block of zeros has absmax 0.
Bytes, absmax and values equal those of bitsandbytes' CPU build to the bit. Its two oddities are kept for that: w / a is w times 1 / a in
whole blocks and a division in a short last one, and there a is at least 1e-38.
minift_kernels/fourbit.py says line for line what is computed; on a CPU lookup.py does it, on a GPU the kernels.
Proved in tests/quant/test_blocks.py and tests/parity/test_bitsandbytes.py."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minift.quant import lookup
from minift.quant.nested import Nested, grow, shrink
from minift_kernels.codes import FP4, NF4, dynamic_map, four_bit_map
from minift_kernels.fourbit import SMALLEST, dequantize_reference, quantize_reference

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes reads."""
VALUES = {"nf4": NF4, "fp4": FP4}


@dataclass(frozen=True)
class FourBit:
    """A tensor in NF4 or FP4."""

    scheme: str
    packed: Tensor
    """(ceil(n / 2),) uint8."""
    absmax: Tensor | Nested
    """(ceil(n / block_size),) float32, or that in 8 bits."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Of the numbers that it stands for."""
    block_size: int

    bits: ClassVar[int] = 4


def quantize(weight: Tensor, scheme: str, block_size: int = 64, double_quant: bool = True) -> FourBit:
    """Any shape, any float dtype, finite numbers; computed in float32."""
    w = weight.detach()
    if on_gpu(w):
        from minift_kernels.quantize import quantize_4bit                             # triton: only where a GPU is

        packed, absmax = quantize_4bit(w.contiguous(), four_bit_map(scheme, w.device), block_size)
    elif lookup.on_cpu(w):
        whole = w.numel() // block_size * block_size                                  # numbers in whole blocks
        packed, absmax = lookup.quantize(w.reshape(-1)[:whole], scheme, block_size, SMALLEST) if whole else plain_quantize(w, scheme, block_size)
        if 0 < whole < w.numel():
            last = plain_quantize(w.reshape(-1)[whole:], scheme, block_size)
            packed, absmax = torch.cat([packed, last[0]]), torch.cat([absmax, last[1]])
    else:
        packed, absmax = plain_quantize(w, scheme, block_size)
    return FourBit(scheme, packed, shrink(absmax) if double_quant else absmax, tuple(weight.shape), weight.dtype, block_size)


def dequantize(q: FourBit, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers, in q.dtype or `dtype`: computed in float32, rounded once."""
    dtype = dtype or q.dtype
    if on_gpu(q.packed):
        from minift_kernels.dequantize import dequantize_4bit

        n, (absmax, *nested) = math.prod(q.shape), for_kernels(q)
        return dequantize_4bit(q.packed, absmax, four_bit_map(q.scheme, q.packed.device), n, q.block_size, dtype, *nested).view(q.shape)
    if not lookup.on_cpu(q.packed):
        return plain_dequantize(q, dtype)
    return lookup.assemble(lookup.scaled(q.packed, plain_absmax(q), VALUES[q.scheme], q.block_size, lookup.NUMBERS), q.shape, dtype)


def rows(q: FourBit) -> Iterator[Tensor]:
    """The rows of (N, K) on a CPU, float32, some at a time in a buffer that is used again: look, use, let go."""
    N, K = q.shape
    R, n = lookup.rows_at_a_time(N, K, q.block_size), 0
    for values in lookup.scaled(q.packed, plain_absmax(q), VALUES[q.scheme], q.block_size, R * K):
        yield values[: min(R, N - n) * K].view(-1, K)                                 # without the last byte's empty half
        n += R


def plain_quantize(weight: Tensor, scheme: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Packed (ceil(n / 2),) uint8 and absmax (ceil(n / block_size),) float32, line for line as above."""
    return quantize_reference(weight, four_bit_map(scheme, weight.device), block_size)


def plain_dequantize(q: FourBit, dtype: torch.dtype) -> Tensor:
    """Line for line as above."""
    n, (absmax, *nested) = math.prod(q.shape), for_kernels(q)
    return dequantize_reference(q.packed, absmax, four_bit_map(q.scheme, q.packed.device), n, q.block_size, dtype, *nested).view(q.shape)


def plain_absmax(q: FourBit) -> Tensor:
    """(blocks,) float32."""
    return grow(q.absmax) if isinstance(q.absmax, Nested) else q.absmax


def for_kernels(q: FourBit) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """absmax, nested_absmax, nested_map and offset as minift_kernels takes them."""
    if not isinstance(q.absmax, Nested):
        return q.absmax, None, None, None
    return q.absmax.codes, q.absmax.absmax, dynamic_map(True, q.packed.device), q.absmax.offset


def on_gpu(t: Tensor) -> bool:
    return t.is_cuda
