"""int8: each row of a matrix as whole numbers from -127 to 127 and one scale. Weights only; activations stay as they are.

    a[n] = max |W[n]|          q[n, k] = round(127 W[n, k] / a[n])          W ~ q a / 127          W: (N, K)      a: (N,)

8 + 32 / K bits per weight. One large number makes its whole row coarse: that is why LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) keeps
outlying columns of the activations apart; here the activations are not rounded at all. Files as bitsandbytes writes them (weight, SCB).
Left out: int8 activations. Proved in tests/quant/test_int8.py."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


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


def quantize(weight: Tensor) -> Int8:
    """weight: (N, K), any float dtype; computed in float32."""
    w = weight.detach().float()
    absmax = w.abs().amax(dim=1)
    packed = (w * (127 / absmax.clamp(min=torch.finfo(torch.float32).tiny))[:, None]).round().to(torch.int8)
    return Int8(packed, absmax, tuple(weight.shape), weight.dtype)


def dequantize(q: Int8, dtype: torch.dtype | None = None) -> Tensor:
    return (q.packed * (q.absmax / 127)[:, None]).to(dtype or q.dtype)
