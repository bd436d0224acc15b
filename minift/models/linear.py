"""A linear layer whose large float32 products take the faster of PyTorch's two CPU libraries.

    y = x WT + b      dx = dy W      dW = dyT x      db = sum of dy          x: (..., K)      W: (N, K)      y: (..., N)

PyTorch multiplies float32 matrices on a CPU with MKL. oneDNN, which it uses for bfloat16, does so with a setting that allows oneDNN to
round float32 to bfloat16 where the CPU has units for that (AMX). Where it has none, oneDNN multiplies in float32 like MKL, in another
order, 10 to 40 % faster at the sizes of a small model on the CPU of docs/peft_speed.md. `exact_here` tries which of the two it is.
The setting is on only around these products: attention becomes slower with it, and other people's products are none of our business.
Left out: small products, where it gains nothing; other devices and dtypes, autocast and torch.compile, which choose by themselves.
Proved in tests/models/test_linear.py."""

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**24
"""Multiplications from which on oneDNN is asked: 256 tokens through a 256 x 256 matrix."""


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Inside the block float32 matrix products on the CPU are oneDNN's, if those are float32 all through."""
    with _onednn() if exact_here() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _onednn() -> Iterator[None]:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@functools.cache
def exact_here() -> bool:
    """Does oneDNN, allowed to round, keep all 24 bits of float32 on this CPU? x times the identity is x in float32; in bfloat16, or
    in anything shorter, 1 + 2^-20 becomes 1."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.no_grad(), _onednn():
        x = torch.full((512, 512), 1 + 2**-20)
        return torch.equal(x @ torch.eye(512), x)


class Linear(nn.Linear):
    """nn.Linear, faster."""

    def forward(self, x: Tensor) -> Tensor:                                           # (..., K) -> (..., N)
        plain = x.device.type != "cpu" or not x.dtype == self.weight.dtype == torch.float32 or x.numel() * self.out_features < LARGE
        if plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or not exact_here():
            return F.linear(x, self.weight, self.bias)
        return Product.apply(x, self.weight, self.bias)


class Product(torch.autograd.Function):
    """x WT + b. x is kept for the backward pass only if W learns, W only if x wants a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        for_x, for_W, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_W else None, W if for_x else None)
        with fast_products():
            return F.linear(x, W, b)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x, W), (for_x, for_W, for_b) = ctx.saved_tensors, ctx.needs_input_grad
        with fast_products():
            return (
                dy @ W if for_x else None,                                            # (..., K)
                dy.flatten(0, -2).T @ x.flatten(0, -2) if for_W else None,            # (N, K)
                dy.flatten(0, -2).sum(0) if for_b else None,                          # (N,)
            )
