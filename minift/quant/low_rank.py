"""A linear in 4 bits and a low-rank change beside it, in one product: what QLoRA runs on a GPU.

    base(x) + s (x AT) BT            x: (..., K)      base's weight: (N, K) in nf4 or fp4, frozen      A: (r, K)      B: (N, r)

Added afterwards, the low-rank term would take y through memory twice more; minift_kernels/qlora.py says how it rides along instead, and
back. On a CPU, for few rows (whose kernels never make W) and for other schemes there is nothing to gain: `fused` answers None.
Proved in tests/quant/test_low_rank.py."""

import torch
from torch import Tensor, nn

from minift.quant.blocks import FourBit, for_kernels, on_gpu
from minift.quant.linear import FEW, QuantizedLinear
from minift_kernels.codes import four_bit_map


def fused(base: nn.Module, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor | None:
    """(..., N), or None where base and change are better computed apart."""
    if not (isinstance(base, QuantizedLinear) and isinstance(base.q, FourBit) and on_gpu(x) and x.numel() > FEW * x.shape[-1]):
        return None
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if torch.finfo(x.dtype).bits > torch.finfo(base.q.dtype).bits:                    # W would get more digits than `weight` has
        return None
    from minift_kernels.qlora import qlora_linear                                     # triton: only where a GPU is

    absmax, *nested = for_kernels(base.q)
    y = qlora_linear(x, base.q.packed, absmax, four_bit_map(base.q.scheme, x.device), A, B, scale, base.q.block_size, *nested)
    return y if base.bias is None else y + base.bias.to(y.dtype)
