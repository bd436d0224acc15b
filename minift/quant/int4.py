"""int4: groups of numbers of a row as whole numbers from 0 to 15, with a scale and a zero point (affine, "asymmetric").

    s = (max - min) / 15        z = round(-min / s)        q = clamp(round(w / s) + z, 0, 15)        w ~ (q - z) s       per group of a row

min and max include 0, so that z is a code and zero stays exact. 4 + (16 + 8) / 128 bits per weight in groups of 128. The grid is even, where
NF4's is dense around zero, but it may lie anywhere; its codes are what GPTQ and AWQ choose better than by rounding (gptq.py, awq.py).
Left out: groups across rows (a row's last group may be short). Proved in tests/quant/test_int4.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.errors import InputError
from minift.quant import lookup

VALUES = tuple(map(float, range(16)))
"""Code -> number, before zero point and scale."""


@dataclass(frozen=True)
class Int4:
    """A matrix in int4."""

    packed: Tensor
    """(N, ceil(K / 2)) uint8: column 2i in the high half, 2i + 1 in the low one."""
    scale: Tensor
    """(N, G) float16: one for each group of group_size columns."""
    zero: Tensor
    """(N, G) uint8."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    group_size: int

    scheme: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


def grid(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Scale (N, G) float16 and zero point (N, G) uint8 of each group of columns of (N, K)."""
    w = weight.detach().float()
    groups = F.pad(w, (0, -w.shape[1] % group_size)).unflatten(1, (-1, group_size))     # (N, G, group_size); padded with 0, which is in anyway
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = ((high - low) / 15).clamp(min=2**-24).half()                                # (N, G); 2^-24: the smallest float16
    if scale.isinf().any():
        n, g = scale.isinf().nonzero()[0].tolist()
        raise InputError(f"row {n}, group {g} of the weight goes from {low[n, g].item():.7g} to {high[n, g].item():.7g}: int4's scales are float16, "
                         f"so a group may span {15 * 65504} at most. Divide the weights, or use nf4 or int8")  # fmt: skip
    return scale, (-low / scale.float()).round().clamp(0, 15).to(torch.uint8)


def codes(weight: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """Round each number to its group's grid: (N, K) uint8."""
    K = weight.shape[1]
    spread = lambda t: t.float().repeat_interleave(group_size, dim=1)[:, :K]            # (N, G) -> (N, K)
    return (weight.detach().float() / spread(scale) + spread(zero)).round().clamp(0, 15).to(torch.uint8)


def pack(numbers: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype, group_size: int) -> Int4:
    """numbers: (N, K) uint8 codes."""
    even = F.pad(numbers, (0, numbers.shape[1] % 2))
    return Int4(even[:, 0::2] << 4 | even[:, 1::2], scale, zero, tuple(numbers.shape), dtype, group_size)


def quantize(weight: Tensor, group_size: int = 128) -> Int4:
    """weight: (N, K), any float dtype; rounded to nearest, computed in float32."""
    scale, zero = grid(weight, group_size)
    return pack(codes(weight, scale, zero, group_size), scale, zero, weight.dtype, group_size)


def dequantize(q: Int4, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers, in q.dtype or `dtype`: computed in float32, rounded once."""
    if lookup.on_cpu(q.packed):
        return lookup.assemble(rows(q), q.shape, dtype or q.dtype)
    return plain_dequantize(q).to(dtype or q.dtype)


def plain_dequantize(q: Int4) -> Tensor:
    """Line for line as above, float32."""
    K = q.shape[1]
    numbers = torch.stack([q.packed >> 4, q.packed & 15], dim=2).flatten(1)[:, :K].float()
    spread = lambda t: t.float().repeat_interleave(q.group_size, dim=1)[:, :K]
    return (numbers - spread(q.zero)) * spread(q.scale)


def rows(q: Int4) -> Iterator[Tensor]:
    """The rows on a CPU, float32, some at a time in a buffer that is used again: look, use, let go."""
    (N, K), even = q.shape, 2 * q.packed.shape[1]
    R, whole = lookup.rows_at_a_time(N, even), K // q.group_size
    for numbers, z, s in zip(lookup.look_up(q.packed.flatten(), VALUES, R * even), q.zero.split(R), q.scale.split(R)):
        W = numbers.view(-1, even)[:, :K]
        W[:, : whole * q.group_size].unflatten(1, (whole, q.group_size)).sub_(z[:, :whole, None]).mul_(s[:, :whole, None])
        W[:, whole * q.group_size :].sub_(z[:, -1:]).mul_(s[:, -1:])                  # a last group that is short
        yield W
