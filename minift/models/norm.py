"""The norms: LayerNorm is PyTorch's; RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) has a gradient by hand.

    r = 1 / sqrt(mean(x^2) + eps)      y = x r w                              x: (..., C)      r: (..., 1)      w: (C,)
    dx = r dy w - x r^3 / C sum(dy w x)      dw = sum over tokens of dy x r   both sums are products of one matrix, dy x, with a vector

On a CPU PyTorch makes it of six operations and keeps x and x r for the backward pass, which takes a dozen more; this keeps x and r and takes a quarter of the time. GPUs, compilers, 16 bits
(whose squares need float32) and generation get PyTorch's own. With and without gradients the numbers are the same: a policy is compared with itself.
Proved in tests/models/test_norm.py, against float64 and PyTorch's."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.config import ModelConfig
from minift.models.linear import asks_no_gradient, gradients_by_formula, listened_to, rows
from minift.models.remade import remade


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm, faster where it learns."""

    def forward(self, x: Tensor) -> Tensor:                                           # (..., C) -> (..., C)
        return RootMeanSquare.apply(x, self.weight, self.eps) if _by_hand(x, self.weight) and not asks_no_gradient() else super().forward(x)


def _by_hand(x: Tensor, w: Tensor) -> bool:
    return x.is_cpu and x.dtype == w.dtype and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


class RootMeanSquare(torch.autograd.Function):
    """x r w."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, eps: float) -> Tensor:
        y, r = scaled(x, w, eps)
        ctx.save_for_backward(x, w, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, w, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients_by_formula(lambda x, w: F.rms_norm(x, w.shape, w, ctx.eps), (x, w), dy), None
        flat, dy = rows(x), rows(dy)
        both = dy * flat                                                              # (tokens, C)
        dw = both.T @ r[:, 0] if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dw, None
        towards = (both @ w)[:, None] * r.pow(3).div_(-len(w))                        # (tokens, 1): how much of x to take away
        return torch.mul(dy, w, out=both).mul_(r).addcmul_(flat, towards).view(x.shape), dw, None


def scaled(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y, of x's shape, and r, (tokens, 1)."""
    flat = rows(x)
    r = torch.linalg.vector_norm(flat, dim=1, keepdim=True).square_().div_(len(w)).add_(eps).rsqrt_()
    return (flat * r).mul_(w).view(x.shape), r


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose stored weight w acts as (offset + w), in float32 as Gemma does it."""

    def __init__(self, width: int, eps: float, offset: float):
        super().__init__(width, eps=eps)
        self.offset = offset
        nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.offset + self.weight.float(), self.eps).to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    if config.norm_offset:
        return OffsetRMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)
    return RMSNorm(config.hidden_size, eps=config.norm_eps)


@contextlib.contextmanager
def normed(norm: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """norm(x), which those who read it in the block make again for their backward passes instead of keeping it."""
    if not torch.is_grad_enabled():
        yield norm(x)
        return
    y, make = norm(x), _again(norm, x)
    with contextlib.nullcontext() if make is None or y.dtype != x.dtype else remade(y, make, x, *norm.parameters()):
        yield y


def _again(norm: nn.Module, x: Tensor) -> Callable[[], Tensor] | None:
    """norm(x) of the weights as they are now; None for a norm that is more than its numbers: one that is wrapped, or listened to."""
    if norm.weight.dtype != x.dtype or listened_to(norm):
        return None
    x = x.detach()
    if type(norm) is RMSNorm and _by_hand(x, norm.weight):
        return lambda w=norm.weight: scaled(x, w, norm.eps)[0]
    if type(norm) is nn.LayerNorm:
        return lambda w=norm.weight, b=norm.bias: F.layer_norm(x, norm.normalized_shape, w, b, norm.eps)
    return None
