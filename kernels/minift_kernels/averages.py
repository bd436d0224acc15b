"""Adam's two averages in 8 bits a number, and AdamW's step on them, in plain torch (Dettmers et al. 2021, arXiv:2110.02861).

    absmax = max |x| over a block of 256        code = the nearest value of the map to x / absmax        x ~ map[code] absmax

m, the average of gradients, takes the signed dynamic map; v, the average of their squares, the unsigned one (minift_kernels/codes.py).
A value exactly between two codes takes the lower one; a block of zeros has absmax 0. The step itself, in float32:

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2                          g: gradient
    p = (1 - lr wd) p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)          t: the step, from 1

These are bitsandbytes' rules, and with its plain-torch rounding the states are equal to the bit. Its back ends round differently: on a CPU
it looks codes up in a grid of 65,536 cells over [-1, 1], which never yields a code below 1.5e-5, zero included; on CUDA a negative m never
becomes zero. Proved in tests/kernels/test_adamw8bit.py and tests/parity/test_bitsandbytes_optim.py. The kernel: minift_kernels/adamw8bit.py."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from minift_kernels.codes import dynamic_map

BLOCK = 256
"""Numbers that share one absmax."""


@functools.cache
def boundaries(signed: bool, device: torch.device | str = "cpu") -> Tensor:
    """(255,) float32: x takes the first code whose boundary is not below x. Shared: do not write into it."""
    values = dynamic_map(signed)
    return ((values[:-1] + values[1:]) / 2).to(device)


def rates_of(step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> list[float]:
    """A line of `rates`: what step number `step` (from 1) multiplies with."""
    beta1, beta2 = betas
    return [beta1, 1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, eps, 1 - lr * weight_decay, -lr / (1 - beta1**step)]


def decode(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """Codes of any shape -> numbers, in absmax's dtype."""
    values = dynamic_map(signed, codes.device).to(absmax.dtype)[codes.flatten().long()]
    return (values * absmax.repeat_interleave(BLOCK)[: codes.numel()]).view(codes.shape)


def encode(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes of x's shape, absmax)."""
    n, flat = x.numel(), x.flatten()
    rows = F.pad(flat, (0, -n % BLOCK)).view(-1, BLOCK)             # (blocks, 256), zeros past the end
    absmax = rows.abs().amax(1)
    scaled = rows * (1 / absmax.clamp(min=1e-38))[:, None]
    return torch.bucketize(scaled, boundaries(signed, x.device).to(x.dtype)).flatten()[:n].view(x.shape).to(torch.uint8), absmax


def adamw8bit_reference(params, grads, m, m_absmax, v, v_absmax, rates) -> None:
    """The same in plain torch, one tensor after the other."""
    for p, g, m_codes, m_largest, v_codes, v_largest, rate in zip(params, grads, m, m_absmax, v, v_absmax, rates.tolist(), strict=True):
        beta1, rest1, beta2, rest2, correction, eps, keep, minus_step = rate
        wide = m_largest.dtype
        g, mean, square = g.to(wide), decode(m_codes, m_largest, True), decode(v_codes, v_largest, False)
        mean.mul_(beta1).add_(g, alpha=rest1)
        square.mul_(beta2).addcmul_(g, g, value=rest2)
        p.copy_(p.to(wide, copy=True).mul_(keep).addcdiv_(mean, (square.sqrt() / correction).add_(eps), value=minus_step))
        for average, codes, largest, signed in ((mean, m_codes, m_largest, True), (square, v_codes, v_largest, False)):
            fresh, absmax = encode(average, signed)
            codes.copy_(fresh)
            largest.copy_(absmax)
