"""NF4 and FP4: blocks of numbers as 4-bit codes and one scale (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

    a = max |w| over the block            code = nearest of the 16 map values to w / a            w ~ map[code] a

    w, flattened by rows:   | 64 numbers | 64 numbers | ... | the rest |         a block may run across rows; the last may be short
    packed:                 byte i = code of w[2i] * 16 + code of w[2i + 1]      the first of a pair in the high half

Bits per weight: 4 + 32 / 64 = 4.5, or 4 + 8 / 64 + 32 / (64 * 256) = 4.127 with the absmax quantized too (nested.py).
NF4's map has an exact zero and steps as wide as normally distributed weights ask for; FP4's is a tiny float. Exact middles go to the lower
value; a block of zeros has absmax 0. Bytes, absmax and values equal bitsandbytes' to the bit.
Proved in tests/quant/test_blocks.py and tests/parity/test_bitsandbytes.py."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.quant.nested import Nested, grow, nearest, shrink
from minift_kernels.codes import four_bit_map

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What bitsandbytes reads."""


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
    """Any shape, any float dtype; computed in float32."""
    n = weight.numel()
    w = F.pad(weight.detach().float().flatten(), (0, -n % block_size)).view(-1, block_size)           # (blocks, block_size)
    absmax = w.abs().amax(dim=1)                                                                      # (blocks,)
    values, order = four_bit_map(scheme, weight.device).sort(stable=True)
    codes = order.to(torch.uint8)[nearest(w / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None], values).long()]
    codes = F.pad(codes.flatten()[:n], (0, n % 2), value=int(nearest(torch.zeros(1), values.cpu()).item()))
    packed = codes[0::2] << 4 | codes[1::2]
    return FourBit(scheme, packed, shrink(absmax) if double_quant else absmax, tuple(weight.shape), weight.dtype, block_size)


def dequantize(q: FourBit, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers, in q.dtype or `dtype`: computed in float32, rounded once."""
    absmax = grow(q.absmax) if isinstance(q.absmax, Nested) else q.absmax
    n = torch.Size(q.shape).numel()
    codes = torch.stack([q.packed >> 4, q.packed & 15], dim=1).flatten()[:n]
    values = four_bit_map(q.scheme, q.packed.device)[codes.long()] * absmax.repeat_interleave(q.block_size)[:n]
    return values.to(dtype or q.dtype).view(q.shape)
