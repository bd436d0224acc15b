"""How much arithmetic a training step is, and how much of it this machine could do in the time: FLOP, the matmul peak, MFU.

    FLOP of a step = 6 n (numbers in linears and head) + 12 L n T H D          full training, n = B T tokens, none of them without a target
    MFU = FLOP / seconds / peak                                                 Chowdhery et al. 2022, arXiv:2204.02311, appendix B

Only matrix products count, two operations for each multiply-add; they are seen one by one as they run, by torch's formulas for each, so a frozen
weight costs 4 and not 6, and an embedding's rows nothing. Attention counts the whole T x T square, masked half included, and its backward pass
twice its forward pass: that fused kernels compute the scores once more is their affair. torch counts that (2.5 times), and does not know the
CPU's kernel at all. With checkpointing the second forward pass is counted too, so what comes out is the hardware's utilisation (HFU).
The peak is the best of square products in the dtype of the run's, before it starts: a bound that real shapes seldom reach.
Proved in tests/train/test_profile.py. Left out: Triton kernels (4-bit weights on a GPU), which torch does not show us."""

import contextlib
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, mm_flop, sdpa_flop_count, shape_wrapper

from minift.models.linear import fast_products

LONG = 0.05
"""Seconds of a product that is large enough to be the peak's."""


def attention(query, key, value, *rest, out_shape=None, **named) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward(above, query, key, value, *rest, out_shape=None, **named) -> int:
    return 2 * sdpa_flop_count(query, key, value)


def addmm(start, a, b, *rest, out_shape=None, **named) -> int:
    return mm_flop(a, b)


aten = torch.ops.aten
OWN = {
    aten.addmm_: addmm,                                                         # in place: torch lists the others only
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    **{kernel: attention_backward for kernel in (
        aten._scaled_dot_product_flash_attention_for_cpu_backward, aten._scaled_dot_product_flash_attention_backward,
        aten._scaled_dot_product_efficient_attention_backward, aten._scaled_dot_product_cudnn_attention_backward)},
}  # fmt: skip
FORMULAS = flop_registry | {operator: shape_wrapper(formula) for operator, formula in OWN.items()}


class Counter(TorchDispatchMode):
    """While it is entered: .total is the FLOP of what ran."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator, types, args=(), named=None):
        out = operator(*args, **(named or {}))
        formula = FORMULAS.get(getattr(operator, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **(named or {}), out_val=out)
        return out


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of the fastest of some square products, each side twice the last one's, until one takes LONG."""
    best, side, seconds = 0.0, 512, 0.0
    while seconds < LONG and side <= 16384:
        a = torch.linspace(-1, 1, side * side, device=device).to(dtype).view(side, side)
        for library in (contextlib.nullcontext, fast_products):                 # float32 on a CPU has two to choose from
            with library():
                seconds = min(_timed(a) for _ in range(3))
            best = max(best, 2 * side**3 / seconds)
        side *= 2
    return best


def _timed(a: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    a @ a
    wait()
    return time.perf_counter() - start
