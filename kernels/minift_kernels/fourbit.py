"""Blocks of numbers as 4-bit codes and one absmax, and back, in plain torch: what the kernels compute, line for line, on any device.

    quantize      a = max |w| over the block      x = w / a      code = order[number of middles below x]      two codes in a byte
    dequantize    w ~ map[code] a                 a = absmax[b], or nested_map[absmax[b]] nested_absmax[b / 256] + offset

The kernels quantize.py and dequantize.py are held to these to the bit; minift computes with them where neither a GPU nor its CPU tables serve.
No triton here: a Mac has none. Proved in tests/quant/test_blocks.py, tests/kernels/test_registry.py and tests/parity/test_bitsandbytes.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

NESTED_BLOCK = 256
"""Blocks whose absmax share one nested absmax."""

SMALLEST = 1e-38
"""What an absmax is taken for when it is divided by, if it is smaller."""


def thresholds(code_map: Tensor) -> tuple[Tensor, Tensor]:
    """(the 15 middles between neighbours of the sorted map, the codes in the order of their values (16,))."""
    values, order = code_map.sort(stable=True)
    return (values[:-1] + values[1:]) / 2, order


def quantize_reference(weight: Tensor, code_map: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Packed (ceil(n / 2),) uint8 and absmax (ceil(n / block_size),) float32."""
    n, (middles, order) = weight.numel(), thresholds(code_map)
    w = F.pad(weight.float().flatten(), (0, -n % block_size)).view(-1, block_size)    # (blocks, block_size)
    absmax = w.abs().amax(dim=1)
    divisor = absmax.clamp(min=SMALLEST)
    x = w * (1 / divisor)[:, None]
    if n % block_size:
        x[-1], absmax[-1] = w[-1] / divisor[-1], divisor[-1]
    codes = order[torch.bucketize(x.flatten()[: n + n % 2], middles)].to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2], absmax


def dequantize_reference(packed, absmax, code_map, n, block_size, dtype, nested_absmax=None, nested_map=None, offset=None) -> Tensor:
    """(n,) numbers in `dtype`."""
    if nested_absmax is not None:
        absmax = nested_map[absmax.long()] * nested_absmax.repeat_interleave(NESTED_BLOCK)[: len(absmax)] + offset
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n]              # (n,)
    return (code_map[codes.long()] * absmax.repeat_interleave(block_size)[:n]).to(dtype)
