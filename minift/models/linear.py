"""Linear layers whose large float32 products take the faster of PyTorch's two CPU libraries.

    y = x WT + b            dx = dy W          dW = dyT x          db = sum of dy          x: (..., K)      W: (N, K)      y: (..., N)
    y = y0 + s low BT       dlow = s dy B      dB = s (lowT dy)T                           low: (..., r)    B: (N, r)

PyTorch multiplies float32 matrices on a CPU with MKL. oneDNN, which it uses for bfloat16, does so with a setting that allows oneDNN to
round float32 to bfloat16 where the CPU has units for that (AMX). Where it has none, oneDNN multiplies in float32 like MKL, in another
order, 10 to 40 % faster at the sizes of a small model on the CPU of docs/peft_speed.md. `exact_here` tries which of the two it is.
The setting is on only around these products: attention becomes slower with it, and other people's products are none of our business.

Writing token by token, each weight meets a few rows and the product waits for the weight. There oneDNN's own linear, which rounds only if PyTorch is told to
(by the setting above) and takes a weight as it lies, is about twice as fast as MKL: `without_gradients` says that nobody will ask for a gradient, which it does not have.
Left out: small products with gradients, where neither gains anything; other devices and dtypes, autocast and torch.compile, which choose by themselves.
Proved in tests/models/test_linear.py."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**18
"""Numbers in x, or in y0, from which on oneDNN is asked: 1,024 tokens of width 256."""
FEW_ROWS = 8
"""For how many rows of x `packed` orders a weight; it is as good for 1 to 32."""
ONEDNN = torch.backends.mkldnn.is_available()
_onednn_linear = torch.ops.mkldnn._linear_pointwise.default if ONEDNN else None


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
    if not ONEDNN:
        return False
    with torch.no_grad(), _onednn():
        x = torch.full((512, 512), 1 + 2**-20)
        return torch.equal(x @ torch.eye(512), x)


def without_gradients() -> contextlib.AbstractContextManager:
    """torch's inference mode, in which `linear` takes a way that has no gradient. Its numbers differ in the last digits from those of other ways, so what is
    compared with numbers of training (a policy's log-probabilities) is not computed in here; nor can what is made in here be kept for a backward pass."""
    return torch.inference_mode()


def asks_no_gradient() -> bool:
    """Are we inside `without_gradients`? A compiler, which cannot ask, chooses by itself."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


class Linear(nn.Linear):
    """nn.Linear, faster."""

    def forward(self, x: Tensor) -> Tensor:                                           # (..., K) -> (..., N)
        return linear(x, self.weight, self.bias)


def is_product(module: nn.Module) -> bool:
    """Is calling it x WT and nothing more?"""
    return type(module) in (nn.Linear, Linear) and module.bias is None


def listened_to(module: nn.Module) -> bool:
    """Would somebody miss it if the module's arithmetic were done without calling it?"""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or torch.nn.modules.module._has_any_global_hook()


def gradients_by_formula(formula: Callable[..., Tensor], inputs: Sequence[Tensor], dy: Tensor) -> list[Tensor | None]:
    """dL/dinput of each input that asks for one, differentiable again: what a backward pass by hand returns to whoever wants a gradient of a gradient (create_graph)."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(formula(*inputs), wanted, dy, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x WT + b, (..., K) -> (..., N): F.linear, faster."""
    if is_large(x, W):
        return Product.apply(x, W, b)
    if asks_no_gradient() and _plain(x, W):
        return _onednn_linear(x, W, b, "none", [], "")                                # without an activation behind it
    return F.linear(x, W, b)


def packed(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A Linear as it is now, to be read many times inside `without_gradients`: from a copy of its weight in oneDNN's own order, twice as fast from 2 rows to 16. The
    copy is as large as the weight and takes as long as some ten products of one row; it goes when what is returned does. Any other module, and one that somebody listens to (hooks), is returned itself."""
    if type(layer) is not Linear or not _plain(layer.weight) or listened_to(layer):
        return layer
    W, b = torch.ops.mkldnn._reorder_linear_weight(layer.weight, FEW_ROWS), layer.bias
    return lambda x: _onednn_linear(x, W, b, "none", [], "")


def plus_product(y: Tensor, low: Tensor, B: Tensor, scale: float) -> Tensor:
    """y + scale low BT in one matrix product, which starts from y instead of zero: no (..., N) intermediate, no pass to add it."""
    if is_large(y, low, B):
        return PlusProduct.apply(y, low, B, scale)
    return torch.addmm(rows(y), rows(low), B.T, alpha=scale).view_as(y)


def rows(x: Tensor) -> Tensor:                                                        # (..., K) -> (tokens, K)
    return x.reshape(-1, x.shape[-1])


def is_large(x: Tensor, *others: Tensor) -> bool:
    """Is a product with x oneDNN's?"""
    return x.numel() >= LARGE and _plain(x, *others) and exact_here()


def _plain(*tensors: Tensor) -> bool:
    """float32 on a CPU where nobody else chooses how to multiply."""
    for t in tensors:                                                                 # in decoding, this is asked at every linear of every token
        if t.dtype != torch.float32 or not t.is_cpu:
            return False
    return ONEDNN and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


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
        flat = rows(dy)                                                               # attention's gradients are no matrix in memory, this is
        with fast_products():
            return (
                (flat @ W).view(*dy.shape[:-1], -1) if for_x else None,               # (..., K)
                flat.T @ rows(x) if for_W else None,                                  # (N, K)
                flat.sum(0) if for_b else None,                                       # (N,)
            )


class PlusProduct(torch.autograd.Function):
    """y + s low BT."""

    @staticmethod
    def forward(ctx, y: Tensor, low: Tensor, B: Tensor, scale: float) -> Tensor:
        _, for_low, for_B, _ = ctx.needs_input_grad
        ctx.save_for_backward(low if for_B else None, B if for_low else None)
        ctx.scale = scale
        with fast_products():
            return torch.addmm(rows(y), rows(low), B.T, alpha=scale).view_as(y)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (low, B), (for_y, for_low, for_B, _) = ctx.saved_tensors, ctx.needs_input_grad
        with fast_products():
            dlow = (ctx.scale * (rows(dy) @ B)).view(*dy.shape[:-1], -1) if for_low else None     # (..., r)
            dB = ctx.scale * (rows(low).T @ rows(dy)).T if for_B else None            # (N, r); a wide product, not a tall one
        return dy if for_y else None, dlow, dB, None
