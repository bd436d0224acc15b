"""Adapters on weights in 4 and 8 bits: QLoRA is LoRA on such a base (Dettmers et al. 2023, arXiv:2305.14314).

    y = x dequantize(q)T + s (x AT) BT        q: codes and scales of W (N, K), frozen        A: (r, K), B: (N, r): float32, learned

No method knows: a quantized linear is a linear, and its backward pass goes through it to x. Two things are done here for all of them.
New numbers get dtype and device from `new_like`, which does not dequantize a weight to see them.
A merge asks for W' = dequantize(q) + change, in float32, and puts a linear of the base's float dtype there. Rounding W' again moves a
code only if the change crosses the middle to the next one, and then by a whole step; a small change crosses few (trap 23). The scales do
move, as each absmax is that of W' and double quantization rounds it anew: with no change at all nine values in ten of a normal W differ a
little. That noise is no part of the change, and at ‖change‖ = 0.01 ‖W‖ it is nearly all that is recovered: size 0.46 at cosine 0.03. So:

    wanted = W' - dequantize(q)        recovered = dequantize(quantize(W')) - dequantize(q)
    cosine = <recovered, wanted> / (‖recovered‖ ‖wanted‖)                  size = ‖recovered‖ / ‖wanted‖

    share = cosine x size = <recovered, wanted> / ‖wanted‖²: how far the weights went along the change

cosine 1 and size 1: all of it is there. The share is what came through. Proved in tests/peft/test_quantized.py; equal to peft on bitsandbytes in
tests/parity/test_peft_qlora.py; measured in docs/qlora.md."""

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from minift.quant import Quantized, QuantizedLinear, quantize
from minift.quant.blocks import FourBit
from minift.quant.int4 import Int4
from minift.quant.linear import wrap
from minift.quant.nested import Nested


class NewLike(TypedDict):
    """As keyword arguments of torch.empty and its like."""

    dtype: torch.dtype
    device: torch.device


def new_like(base: nn.Module) -> NewLike:
    """For new numbers that train beside `base`: where its weight is, and at least float32 (trap 34)."""
    if isinstance(base, QuantizedLinear):
        return NewLike(dtype=torch.promote_types(base.q.dtype, torch.float32), device=base.q.packed.device)
    return NewLike(dtype=torch.promote_types(base.weight.dtype, torch.float32), device=base.weight.device)


def merged_values(small: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """small.merged(base); the weight of a quantized base in float32, not yet rounded to the dtype it computes in."""
    if not isinstance(base, QuantizedLinear):
        return small.merged(base)
    dtype = base.q.dtype if base.bias is None else base.bias.dtype
    return {key: value if key == "weight" else value.to(dtype) for key, value in small.merged(wide(base)).items()}


def wide(base: QuantizedLinear) -> QuantizedLinear:
    """The same codes and scales, standing for float32 numbers."""
    return wrap(dataclasses.replace(base.q, dtype=torch.promote_types(base.q.dtype, torch.float32)), base.bias)


def stand_in(base: QuantizedLinear, values: dict[str, Tensor], requantize: bool) -> nn.Linear:
    """The linear with the merged weight (N, K), and bias if that was merged too: a plain one, or one in the base's own scheme."""
    bias, dtype = values.get("bias", base.bias), base.q.dtype
    if requantize:
        return wrap(dataclasses.replace(quantize_like(base.q, values["weight"]), dtype=dtype), bias).train(base.training)
    with torch.device("meta"):
        linear = nn.Linear(base.in_features, base.out_features, bias=bias is not None)
    linear.weight = nn.Parameter(values["weight"].to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    return linear.train(base.training)


def quantize_like(q: Quantized, weight: Tensor) -> Quantized:
    """`weight` in q's scheme, with q's block size."""
    if isinstance(q, FourBit):
        return quantize(weight, q.scheme, q.block_size, isinstance(q.absmax, Nested))
    return quantize(weight, "int4", q.group_size) if isinstance(q, Int4) else quantize(weight, "int8")


@dataclass(frozen=True)
class Survived:
    """What is left of a change after rounding. They add up: sum(report.values(), Survived()) is the whole model's."""

    product: float = 0.0
    """<recovered, wanted>."""
    recovered: float = 0.0
    """‖recovered‖²."""
    wanted: float = 0.0
    """‖wanted‖²."""

    @property
    def cosine(self) -> float:
        """1: the direction is right. 0: what is left has nothing to do with the change (or there was none)."""
        return self.product / (self.recovered * self.wanted) ** 0.5 if self.recovered and self.wanted else 0.0

    @property
    def size(self) -> float:
        """‖recovered‖ / ‖wanted‖."""
        return (self.recovered / self.wanted) ** 0.5 if self.wanted else 0.0

    @property
    def share(self) -> float:
        """cosine x size: the part of the change that came through; what is recovered across it is noise."""
        return self.product / self.wanted if self.wanted else 0.0

    def __add__(self, other: "Survived") -> "Survived":
        return Survived(self.product + other.product, self.recovered + other.recovered, self.wanted + other.wanted)

    def __str__(self) -> str:
        return f"cosine {self.cosine:.2f}, {self.size:.2f} times its size, {100 * self.share:.0f} % survived"


def survived(base: QuantizedLinear, new: Tensor, rounded: QuantizedLinear) -> Survived:
    """new: the merged weight (N, K) in float32; rounded: the linear that is to hold it."""
    old = wide(base).weight
    wanted, recovered = (new - old).double(), (wide(rounded).weight - old).double()
    return Survived((wanted * recovered).sum().item(), recovered.square().sum().item(), wanted.square().sum().item())
