"""Double quantization: the absmax of 4-bit blocks, quantized once more (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3).

    absmax = map[code] * nested_absmax[b / 256] + offset         offset: the mean of all absmax       b: the block

With blocks of 64 an absmax in float32 costs 32 / 64 = 0.5 bits a weight; in 8 bits, with one float32 for 256 of them, 8 / 64 + 32 / (64 * 256)
= 0.127. All absmax are above zero and much alike, so taking their mean away first leaves small numbers of both signs for the signed map.
Equal to bitsandbytes' CPU build to the bit, so with its shortcut: a number's code is that of its cell of 65,536 equal ones of [-1, 1], not of
itself, which near a middle between two values of the map may be the other one. Proved in tests/quant/test_nested.py."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from minift_kernels.codes import dynamic_map
from minift_kernels.fourbit import NESTED_BLOCK as BLOCK

CELLS = 65535


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
    """(blocks,) float32 -> its 8-bit form."""
    offset = absmax.mean()
    blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)                                                 # (ceil(blocks / 256),)
    scaled = (blocks * (1 / largest)[:, None]).clamp(-1, 1).nan_to_num(nan=-1.0)      # 0 / 0, as for a single block: any code will do, it is 0
    cell = ((scaled + 1) * 0.5 * CELLS + 0.5).long().flatten()[: len(absmax)]
    return Nested(code_of_cell(absmax.device)[cell], largest, offset)


@functools.cache
def code_of_cell(device: torch.device) -> Tensor:
    """(65536,) uint8: the nearest value of the map to each cell's middle."""
    values = dynamic_map(True)
    middles = (values[:-1] + values[1:]) / 2
    return torch.bucketize(torch.arange(CELLS + 1) / CELLS * 2 - 1, middles).to(torch.uint8).to(device)


def grow(nested: Nested) -> Tensor:
    """(blocks,) float32."""
    n = len(nested.codes)
    values = torch.index_select(dynamic_map(True, nested.codes.device), 0, nested.codes.int())
    whole = n // BLOCK * BLOCK
    values[:whole].view(-1, BLOCK).mul_(nested.absmax[: whole // BLOCK, None])
    values[whole:].mul_(nested.absmax[-1])
    return values.add_(nested.offset)
