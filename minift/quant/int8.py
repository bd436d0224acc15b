"""int8: each row of a matrix as whole numbers from -127 to 127 and one scale. Weights only.

    a[n] = max |W[n]|          q[n, k] = round(127 / a[n] W[n, k])          W ~ q a / 127          W: (N, K)      a: (N,)

127 a may be beyond float32, so W is q (a / 256) (256 / 127): the same bits, unless a / 256 is below float32's normal range.
8 + 32 / K bits per weight. One large number makes its whole row coarse: that is why LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) keeps
outlying columns of the activations apart; here the activations are not rounded at all, but in one place: where a text is written on a CPU
(whole_numbers.py). Exact halves go to the even number.
Files are as bitsandbytes writes them (weight, SCB), and its quantization of a matrix is this to the bit; but its linears round their weights
to float16 before, so a file has the same bytes only where float16 holds the weights.
Proved in tests/quant/test_int8.py and tests/parity/test_bitsandbytes.py."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minift.models.linear import FEW_ROWS
from minift.quant import lookup

SMALLEST = 1e-36
"""What an absmax is taken for when it is divided by, if it is smaller: 127 / SMALLEST is finite."""


@dataclass(frozen=True)
class Int8:
    """A matrix in int8."""

    packed: Tensor
    """(N, K) int8."""
    absmax: Tensor
    """(N,) float32."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    scheme: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8

    def __getstate__(self) -> dict:
        """Copies make the properties below again: oneDNN's order is no memory that could be copied."""
        return {name: value for name, value in vars(self).items() if name != "ordered"}

    @functools.cached_property
    def scale(self) -> Tensor:
        """(N,) float32: what a whole number stands for."""
        return self.absmax / 127

    @functools.cached_property
    def ordered(self) -> Tensor:
        """packed in the order in which oneDNN multiplies whole numbers by a few rows: a copy of the same size."""
        return torch.ops.onednn.qlinear_prepack(self.packed, [FEW_ROWS, self.packed.shape[1]])

    @functools.cached_property
    def in_whole_steps(self) -> bool:
        """PyTorch's kernel for int8 reads 16 numbers at a time from addresses that are multiples of 16, and does not check that it can. 4 rows at a time are its usual way."""
        N, K = self.packed.shape
        return K % 16 == 0 and N % 4 == 0 and self.packed.is_contiguous() and self.packed.data_ptr() % 16 == 0


def quantize(weight: Tensor) -> Int8:
    """weight: (N, K), any float dtype; computed in float32, some rows at a time."""
    N, K = weight.shape
    packed, absmax = (torch.empty(shape, dtype=dtype, device=weight.device) for shape, dtype in (((N, K), torch.int8), (N, torch.float32)))
    R = lookup.rows_at_a_time(N, K)
    for W, q, a in zip(weight.detach().split(R), packed.split(R), absmax.split(R)):
        W = W.float()
        torch.amax(W.abs(), 1, out=a)
        q.copy_((W * (127 / a.clamp(min=SMALLEST))[:, None]).round_())
    return Int8(packed, absmax, tuple(weight.shape), weight.dtype)


def rows(q: Int8) -> Iterator[Tensor]:
    """The rows, float32, some at a time in a buffer that is used again: look, use, let go."""
    R = lookup.rows_at_a_time(*q.shape)
    buffer = torch.empty(R, q.shape[1], dtype=torch.float32, device=q.packed.device)
    for numbers, a in zip(q.packed.split(R), q.absmax.split(R)):
        yield buffer[: len(a)].copy_(numbers).mul_(a[:, None] / 256).mul_(256 / 127)


def dequantize(q: Int8, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers, in q.dtype or `dtype`: computed in float32, rounded once."""
    if lookup.on_cpu(q.packed):
        return lookup.assemble(rows(q), q.shape, dtype or q.dtype)
    return (q.packed * (q.absmax[:, None] / 256) * (256 / 127)).to(dtype or q.dtype)
