"""x WT with an int8 W, from its whole numbers as they are: W is never made. Where a text is written, on a CPU.

    by_one:    y[m, n] = scale[n] sum_k x[m, k] q[n, k]                                                       x in bfloat16
    by_both:   y[m, n] = scale[n] s[m] sum_k i[m, k] q[n, k]      s[m] = max |x[m]| / 127      i[m, k] = round(x[m, k] / s[m])

x: (M, K) float32, q: (N, K) int8 and scale: (N,) of an Int8, y: (M, N) float32. by_one turns q into float32 number by number, so that many rows of x are no faster
than with a float32 W; it only reads less. by_both's sum is of whole numbers, which a CPU with VNNI multiplies and adds four at a time, exactly; that is LLM.int8()'s
product (Dettmers et al. 2022, arXiv:2208.07339). An i is off by half of s at most and by s / sqrt 12 in the mean square: max |x| / 440, 1 % of the others where the largest number is
4.4 times their root mean square, 7 % where it is 32 times. A row with a still larger one, an outlier as that paper calls it, is multiplied by_one.
What becomes of a row does not depend on how many there are.
Left out: the paper's outlying columns, which it multiplies apart (here it is the row, as a whole); several numbers that outweigh the rest only together; letting go of
`ordered`, which once a text was written holds every large matrix a second time. Proved in tests/quant/test_whole_numbers.py; its cost and speed: docs/generation_speed.md."""

import functools
import platform
from collections.abc import Callable

import torch
from torch import Tensor

from minift.models.linear import ONEDNN
from minift.quant.int8 import Int8

FAST = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2") or platform.machine() in ("aarch64", "arm64")
"""Has PyTorch a kernel for by_one here, and not just a loop?"""
LARGE = 2**20
"""Numbers in q from which on by_both is faster, with one row as with eight: of a model 768 wide the MLP's matrices, not attention's. Rounding x takes ten small operations."""
OUTLYING = 32
"""Times the root mean square of a row's other numbers, from which on its largest keeps the row from being rounded to 8 bits."""


@functools.cache
def exact_sums() -> bool:
    """Has this CPU an instruction for products of whole numbers (VNNI), and does oneDNN use it? What it has for others cuts sums off at 16 bits."""
    if not ONEDNN or not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    with torch.no_grad():
        q = Int8(torch.full((16, 64), 127, dtype=torch.int8), torch.full((16,), 127.0), (16, 64), torch.float32)
        i = torch.full((2, 64), 127, dtype=torch.int8)
        return all((product == 64 * 127 * 127).all() for product in (single(i[:1], q), several(i, q)))


def takes(N: int, K: int) -> bool:
    """Is by_both the way of a matrix of this size?"""
    return N * K >= LARGE and N % 4 == 0 and K % 16 == 0 and FAST and exact_sums()


def way(q: Int8, prompt: bool) -> Callable[[Tensor, Int8], Tensor] | None:
    """by_both, by_one or neither. prompt: of the many rows that a text is written behind, for which by_one is too slow."""
    if not q.in_whole_steps:
        return None
    if takes(*q.shape):
        return by_both
    return by_one if FAST and not prompt else None


def by_one(x: Tensor, q: Int8) -> Tensor:                                             # (M, K) -> (M, N)
    return torch._weight_int8pack_mm(x.bfloat16().contiguous(), q.packed, ones(q.shape[0])) * q.scale


def by_both(x: Tensor, q: Int8) -> Tensor:                                            # (M, K) -> (M, N)
    x = x.contiguous()
    top = x.abs().amax(1, keepdim=True)                                               # (M, 1)
    s = top / 127
    i = (x / s).round_().to(torch.int8)                                               # of a row of zeros it may be anything: s is 0
    y = (single(i, q) if len(x) == 1 else several(i, q)).mul_(s)
    outlying = top > OUTLYING / (x.shape[1] - 1 + OUTLYING**2) ** 0.5 * torch.linalg.vector_norm(x, dim=1, keepdim=True)      # so solved, the norm may hold top
    if outlying.any():
        y[outlying[:, 0]] = by_one(x[outlying[:, 0]], q)
    return y


def single(i: Tensor, q: Int8) -> Tensor:                                             # (1, K) -> (1, N)
    return torch._int_mm(i, q.packed.T) * q.scale                                     # with one row there is nothing to put in order


def several(i: Tensor, q: Int8) -> Tensor:                                            # (M, K) -> (M, N)
    """The same numbers, faster for more rows. The kernel takes 0 to 255, of which it takes 128 off."""
    return torch.ops.onednn.qlinear_pointwise(i.view(torch.uint8) ^ 128, 1.0, 128, q.ordered, q.scale, zeros(q.shape[0]), None, 1.0, 0, torch.float32, "none", [], "")


@functools.cache
def ones(n: int) -> Tensor:
    """by_one's kernel would like its scales in bfloat16, which is too short for them."""
    return torch.ones(n, dtype=torch.bfloat16, device="cpu")


@functools.cache
def zeros(n: int) -> Tensor:
    """What by_both's kernel is to take off q."""
    return torch.zeros(n, dtype=torch.int64, device="cpu")
