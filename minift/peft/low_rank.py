"""A linear and a low-rank change beside it as one function on a CPU: what LoRA (Hu et al. 2021, arXiv:2106.09685) runs where the base is in full precision.

    low = x AT        y = x WT + b + s low BT                                    x: (..., K)      W: (N, K), b: (N,) frozen      A: (r, K)      B: (N, r)
    dlow = s dy B     dx = dy W + dlow A        dA = dlowT x        dB = s (lowT dy)T

Both sums are added to in place, where autograd would write three tensors of the size of y or x and add them up. Under autocast x is rounded once, not once for each
product, and W again on the way back instead of being kept in bfloat16 from block to block.
Elsewhere (another base, one that somebody listens to, a GPU, a compiler, generation) `together` answers None, and lora.py computes the two terms apart: the plain version.
Left out: dropout, whose two terms read different x. Proved in tests/peft/test_low_rank.py."""

import contextlib

import torch
from torch import Tensor, nn

from minift.models.linear import Linear, asks_no_gradient, fast_products, gradients_by_formula, is_large, linear, listened_to, rows


def together(base: nn.Module, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor | None:
    """(..., N), or None where base and change are better computed apart."""
    if type(base) not in (nn.Linear, Linear) or not x.is_cpu or torch.compiler.is_compiling() or asks_no_gradient():
        return None
    if any(p.requires_grad for p in base.parameters()) or listened_to(base):
        return None
    rounded = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if rounded else x.dtype
    if not rounded and x.dtype != base.weight.dtype:
        return None                                                                   # nn.Linear refuses it, in its own words
    with torch.autocast("cpu", enabled=False):
        return LowRank.apply(x, base.weight, base.bias, A, B, scale, dtype)


class LowRank(torch.autograd.Function):
    """y in `dtype`, in which all products are; gradients in the dtype of what they belong to."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        flat = rows(x).to(dtype)
        y = linear(flat, W.to(dtype), None if b is None else b.to(dtype))             # as the base alone would, to the bit
        low = linear(flat, A.to(dtype))                                               # (tokens, r)
        with fast_products() if is_large(y) else contextlib.nullcontext():
            y.addmm_(low, B.to(dtype).T, alpha=scale)
        ctx.save_for_backward(x, W, A, B, low)
        ctx.scale, ctx.dtype = scale, dtype
        return y.view(*x.shape[:-1], len(W))

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, W, A, B, low = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda x, A, B: apart(x.to(ctx.dtype), W.to(ctx.dtype), A.to(ctx.dtype), B.to(ctx.dtype), ctx.scale)
            dx, dA, dB = gradients_by_formula(formula, (x, A, B), dy)
            return dx, None, None, dA, dB, None, None
        for_x, _, _, for_A, for_B, *_ = ctx.needs_input_grad
        dy, dtype = rows(dy), dy.dtype
        with fast_products():
            dlow = (dy @ B.to(dtype)).mul_(ctx.scale)                                 # (tokens, r)
            dx = torch.mm(dy, W.to(dtype)).addmm_(dlow, A.to(dtype)) if for_x else None
            dA = (dlow.T @ rows(x).to(dtype)).to(A.dtype) if for_A else None
            dB = (low.T @ dy).mul_(ctx.scale).T.to(B.dtype) if for_B else None        # a wide product, not a tall one
        return None if dx is None else dx.view(x.shape).to(x.dtype), None, None, dA, dB, None, None


def apart(x: Tensor, W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The formula; a bias would not change its gradients."""
    return x @ W.T + scale * (x @ A.T) @ B.T
