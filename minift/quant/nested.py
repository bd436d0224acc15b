"""Double quantization: the absmax of 4-bit blocks, quantized once more (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3).

    absmax = map[code] * nested_absmax[b / 256] + offset         offset: the mean of all absmax       b: the block

With blocks of 64 an absmax in float32 costs 32 / 64 = 0.5 bits a weight; in 8 bits, with one float32 for 256 of them, 8 / 64 + 32 / (64 * 256)
= 0.127. All absmax are above zero and much alike, so taking their mean away first leaves small numbers of both signs for the signed map.
Equal to bitsandbytes to the bit. Proved in tests/quant/test_nested.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minift_kernels.codes import dynamic_map

BLOCK = 256


@dataclass(frozen=True)
class Nested:
    """An absmax vector in 8 bits."""

    codes: Tensor
    """(blocks,) uint8: places in the signed dynamic map."""
    absmax: Tensor
    """(ceil(blocks / 256),) float32."""
    offset: Tensor
    """() float32."""


def shrink(absmax: Tensor) -> Nested:
    """(blocks,) float32 -> its 8-bit form. A value goes to the nearest of the map; the middle between two to the lower."""
    offset = absmax.mean()
    blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)                                                 # (ceil(blocks / 256),)
    scaled = (blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).flatten()[: len(absmax)]
    return Nested(nearest(scaled, dynamic_map(True, absmax.device)), largest, offset)


def grow(nested: Nested) -> Tensor:
    """(blocks,) float32."""
    scale = nested.absmax.repeat_interleave(BLOCK)[: len(nested.codes)]
    return dynamic_map(True, nested.codes.device)[nested.codes.long()] * scale + nested.offset


def nearest(values: Tensor, ascending: Tensor) -> Tensor:
    """Place of the nearest entry of an ascending map, uint8."""
    middles = (ascending[:-1] + ascending[1:]) / 2
    return torch.bucketize(values, middles, right=False).to(torch.uint8)
