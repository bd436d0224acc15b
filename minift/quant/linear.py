"""A linear whose frozen weight is in 4 or 8 bits.

    y = x WT + b        dx = dy W         W = dequantize(q), made for the product and let go of         x: (..., K)      W: (N, K)

To everything around it (adapters, merging, saving) it is an nn.Linear whose `weight` is computed when it is asked for. The backward pass
dequantizes again instead of keeping W: 4 bits stay in memory where 16 or 32 would. W has no gradient.
`.to(torch.bfloat16)` changes the dtype of what it computes, never its codes and scales. y has the dtype of x, whichever it is: where
nn.Linear refuses another dtype than its weight's, W is made in that of x.

    rows of x     on a CPU                                       on a GPU, nf4 and fp4
    1             pieces of W in float32, each times x           gemv_4bit (to 7 rows)
    to 256        pieces of W in x's dtype                       gemm_4bit
    more          W as a whole, in x's dtype                     W as a whole

int8 inside `token_by_token` on a CPU: the whole numbers as they are, and x is rounded, too (whole_numbers.py), however many rows there are.
Left out: gradients of gradients. Proved in tests/quant/test_linear.py; timed in docs/quant_cpu.md."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.linear import Linear, asks_no_gradient, linear, listened_to
from minift.models.linear import rows as rows_of
from minift.quant import whole_numbers
from minift.quant.blocks import FourBit, for_kernels, on_gpu
from minift.quant.int8 import Int8
from minift.quant.lookup import on_cpu
from minift.quant.state import state_of, with_state
from minift.quant.lookup import one_thread
from minift.quant.tensor import Quantized, Scheme, dequantize, quantize, rows, tensors, with_tensors
from minift_kernels.codes import four_bit_map

FEW = 256
"""Rows of x up to which W is never made as a whole."""
ALONE = 16
"""Rows of x up to which one thread multiplies."""
_local = threading.local()


@contextlib.contextmanager
def token_by_token(exact: bool = False, prompt: bool = False) -> Iterator[None]:
    """Inside the block each row of x is the next token of some text, and int8 may round it, in this thread. exact: nothing changes. prompt: rows are tokens of
    what a text is written behind, which are many."""
    before, _local.rounding = getattr(_local, "rounding", None), None if exact else "prompt" if prompt else "token"
    try:
        yield
    finally:
        _local.rounding = before


def rounding() -> str | None:
    """"token" or "prompt" inside `token_by_token`, where nobody asks for a gradient."""
    return getattr(_local, "rounding", None) if asks_no_gradient() else None


class QuantizedLinear(nn.Linear):
    """Linear4bit and Linear8bit are this; `QuantizedLinear.of(linear, "nf4")` makes the right one."""

    def __init__(self, q: Quantized, bias: Tensor | None = None):
        nn.Module.__init__(self)                                                      # nn.Linear's would make a weight
        self.out_features, self.in_features = q.shape
        self.q = q
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False))

    @staticmethod
    def of(base: nn.Linear, scheme: Scheme, block_size: int | None = None, double_quant: bool = True) -> "QuantizedLinear":
        """The same linear, rounded. Raises InputError if it is quantized already."""
        if isinstance(base, QuantizedLinear):
            raise InputError(f"this linear is in {base.q.scheme} already: rounding twice would add the errors. Start from the full weights")
        q = quantize(base.weight, scheme, block_size, double_quant)
        return wrap(q, base.bias).train(base.training)

    @property
    def weight(self) -> Tensor:
        """(N, K), computed anew each time. It cannot be assigned."""
        return dequantize(self.q)

    def forward(self, x: Tensor) -> Tensor:                                           # (..., K) -> (..., N)
        if not x.is_floating_point() or x.shape[-1:] != (self.in_features,):
            raise InputError(f"x is {x.dtype} {tuple(x.shape)}: this linear takes floating-point numbers (..., {self.in_features})")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = product(x, self.q) if asks_no_gradient() else FrozenProduct.apply(x, self.q)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn, recurse=True):
        """What .to, .cuda and .half go through: devices follow, dtypes of codes and scales do not."""
        moved = {name: t.to(fn(t).device) for name, t in tensors(self.q).items()}
        dtype = fn(torch.empty(0, dtype=self.q.dtype)).dtype
        self.q = dataclasses.replace(with_tensors(self.q, moved), dtype=dtype)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: t for name, t in state_of(self.q).items()}

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
        own = {prefix + name for name in state_of(self.q)}
        state = {name.removeprefix(prefix): t for name, t in state_dict.items() if name in own}
        self.q, missing, wrong = with_state(self.q, state, prefix, local_metadata.get("assign_to_params_buffers", False))
        missing_keys += [prefix + name for name in missing if strict]
        error_msgs += wrong
        rest = {name: t for name, t in state_dict.items() if name not in own}         # nn.Module would call ours unexpected
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, scheme={self.q.scheme}"


class Linear4bit(QuantizedLinear):
    """nf4, fp4 or int4."""


class Linear8bit(QuantizedLinear):
    """int8."""


def rounded(layer: nn.Module) -> nn.Module | None:
    """A float32 Linear in int8, to be read inside `token_by_token`, where both its factors are whole numbers (whole_numbers.by_both); made once for the weight as it is, and kept with the
    layer. None for any other, and for one that somebody listens to (hooks)."""
    if type(layer) is not Linear or layer.weight.dtype != torch.float32 or not on_cpu(layer.weight) or not whole_numbers.takes(*layer.weight.shape):
        return None
    if listened_to(layer) or layer.weight.is_inference():                             # which has no version
        return None
    now = tuple((p.data_ptr(), p._version) for p in layer.parameters())               # a write through .data goes unseen, as in peft/dora.py
    before, made = _rounded.get(layer, (None, None))
    if before != now:
        made = QuantizedLinear.of(layer, "int8")
        _rounded[layer] = now, made
    return made


_rounded: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, nn.Module]] = weakref.WeakKeyDictionary()


def wrap(q: Quantized, bias: Tensor | None = None) -> QuantizedLinear:
    """The linear of a quantized weight."""
    return (Linear8bit if q.bits == 8 else Linear4bit)(q, bias)


class FrozenProduct(torch.autograd.Function):
    """x WT, keeping q for the backward pass and nothing else."""

    @staticmethod
    def forward(ctx, x: Tensor, q: Quantized) -> Tensor:
        ctx.q = q
        return product(x, q)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return linear(dy, weight_for(dy, ctx.q).T), None                              # dy W


def product(x: Tensor, q: Quantized) -> Tensor:
    """x WT, (..., K) -> (..., N)."""
    flat = rows_of(x)                                                                 # (M, K)
    if 0 < len(flat) and (way := quick(flat, q)):
        return way(flat, q).view(*x.shape[:-1], q.shape[0])
    return linear(x, weight_for(x, q))


def quick(x: Tensor, q: Quantized) -> Callable[[Tensor, Quantized], Tensor] | None:
    """A way to x WT that never holds W as a whole, if there is one for so few rows, or for the next token of each text."""
    if (written := rounding()) and x.dtype == q.dtype == torch.float32 and on_cpu(x) and isinstance(q, Int8):
        if way := whole_numbers.way(q, prompt=written == "prompt"):
            return way
    if len(x) > FEW:
        return None
    if on_gpu(x):
        return by_kernel if isinstance(q, FourBit) and x.dtype == q.dtype else None
    return by_pieces if on_cpu(x) else None


def by_pieces(x: Tensor, q: Quantized) -> Tensor:                                     # (M, K) -> (M, N)
    """Some rows of W at a time. A single row of x is multiplied in float32: rounding W to anything less would take longer. A product of a
    few rows waits for memory, and is through before a second thread is awake."""
    single, n = len(x) == 1, 0
    dtype = torch.promote_types(x.dtype, torch.float32) if single else x.dtype
    shorten = narrower(q.dtype, x.dtype)                                              # as weight_for does
    wide, y = x.to(dtype), x.new_empty(len(x), q.shape[0], dtype=dtype)
    threads = one_thread() if len(x) <= ALONE else contextlib.nullcontext()
    with torch.autocast("cpu", enabled=False), threads:
        for W in rows(q):
            if dtype != torch.float32:
                buffer = W.new_empty(W.shape, dtype=dtype) if n == 0 else buffer[: len(W)]
                W = buffer.copy_(W.to(q.dtype) if shorten else W)
            elif shorten:
                W = W.to(q.dtype).float()
            if single:
                torch.mv(W, wide[0], out=y[0, n : n + len(W)])
            else:
                y[:, n : n + len(W)] = wide @ W.T
            n += len(W)
    return y.to(x.dtype)


def by_kernel(x: Tensor, q: FourBit) -> Tensor:                                       # (M, K) -> (M, N)
    """minift_kernels decode W where they multiply."""
    from minift_kernels.gemm import gemm_4bit                                         # triton: only where a GPU is
    from minift_kernels.gemv import gemv_4bit

    absmax, *nested = for_kernels(q)
    product = gemv_4bit if len(x) <= 7 else gemm_4bit
    return product(x.contiguous(), q.packed, absmax, four_bit_map(q.scheme, x.device), q.shape[0], q.block_size, *nested)


def weight_for(x: Tensor, q: Quantized) -> Tensor:
    """W in x's dtype; never with more digits than q.dtype has, so that it equals `weight`."""
    return dequantize(q).to(x.dtype) if narrower(q.dtype, x.dtype) else dequantize(q, x.dtype)


def narrower(a: torch.dtype, b: torch.dtype) -> bool:
    return torch.finfo(a).bits < torch.finfo(b).bits
