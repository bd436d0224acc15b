"""Many rows times a 4-bit weight in one kernel: a lesson in when not to fuse. Use dequantize.py and torch's matmul for such M.

    y = x W^T                x: (M, K)      W: (N, K) in 4 bits      y: (M, N)        M from 2048 on

Fusing looks right: W crosses memory at half a byte a weight, and its 16-bit copy is never written. Why it loses all the same:
- Every tile of BM rows of x needs all of W, so W is decoded M / BM times; dequantize.py decodes it once.
- Decoding takes c instructions a weight, on 128 lanes a cycle: c / 128 cycles. The tensor cores use a weight for 2 BM operations; on an H200
  (788 TFLOP/s as chips.py was given it, 132 processors, 1.755 GHz) they do 3400 a cycle: 2 BM / 3400 cycles. The two are equal at BM = 13 c.
- Here c is about 10 (counted by the gate), so a tile of 128 rows spends as long decoding as multiplying: at 14336 x 4096 and M = 2048, 16
  times 20 us, against 305 us of matrix product. Even if all of it ran beside the tensor cores, cuBLAS's kernel has those issue slots to
  itself.
- And there is little to win: one dequantization is bound by 35 us of memory traffic, a tenth of that product, 3 % at M = 8192.
A larger BM is the way out on paper: at 256 the sums alone fill the registers. Or groups of warps that only decode while others only multiply,
which Triton does not offer here.

Written the way one would first: y's tile is 128 x 128, W is the right operand, so what is decoded goes through shared memory. Programs walk
the tiles in groups of 8 tiles of x, so that those running together share their weights in L2. The even and the odd columns as in gemm.py.
Bound: 2 M N K operations. No claim of speed; the benchmark shows this kernel beside dequantize + cuBLAS.
Left out: the gradient (training goes through qlora.py) and odd K, where the reference answers.
Proved in tests/kernels/test_registry.py and tests/kernels/test_gemm.py."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.gemm import PLAIN, build, decode, plain
from minift_kernels.products import PEERS, check, make, matmul_reference, nearest, no_gradient, servable, work
from minift_kernels.registry import Build, Kernel
from minift_kernels.runtime import chip

CONFIGS = {
    "sm90": dict(BM=128, BN=128, BYTES=32, GROUP=8, num_warps=8, num_stages=3),
    "sm80": dict(BM=128, BN=128, BYTES=32, GROUP=8, num_warps=8, num_stages=3),
    "gfx942": dict(BM=128, BN=128, BYTES=32, GROUP=8, num_warps=8, num_stages=2),
}
"""By chip; M large is the only class of shapes. BYTES: 32 of each row of W in a step, 64 weights. From the compile gate, not timed."""


@triton.jit
def gemm_large_kernel(
    x, packed, absmax, nested_absmax, nested_map, offset, code_map, out, M, N, row_bytes,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, SPAN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = tl.program_id(0) // (GROUP * tiles_n)                                     # GROUP tiles of x, all of W
    within = tl.program_id(0) % (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)                               # the last group may be lower
    m = (group * GROUP + within % height) * BM + tl.arange(0, BM)
    rows = (within // height) * BN + tl.arange(0, BN)                                 # of W
    table = tl.load(code_map + tl.arange(0, 16))
    y = tl.zeros((BM, BN), tl.float32)
    for step in range(0, tl.cdiv(row_bytes, BYTES)):
        first = step * BYTES
        high, low = decode(
            packed, absmax, nested_absmax, nested_map, offset, table, rows, first, N, row_bytes, x.dtype.element_ty, BLOCK_SIZE, NESTED, SPAN, BYTES
        )
        column = 2 * first + tl.arange(0, 2 * BYTES)[None, :]
        there = (m < M)[:, None] & (column < 2 * row_bytes)
        pairs = tl.load(x + m.to(tl.int64)[:, None] * (2 * row_bytes) + column, mask=there, other=0.0)              # (BM, 2 BYTES)
        even, odd = tl.split(pairs.reshape(BM, BYTES, 2))
        y = tl.dot(even, high.T, y, input_precision="ieee")
        y = tl.dot(odd, low.T, y, input_precision="ieee")
    place = m.to(tl.int64)[:, None] * N + rows[None, :]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=(m < M)[:, None] & (rows < N)[None, :])


@torch.library.custom_op("minift::gemm_large_4bit", mutates_args=())
def gemm_large_4bit(
    x: Tensor, packed: Tensor, absmax: Tensor, code_map: Tensor, N: int, block_size: int,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (M, N) in x's dtype; x (M, K). W's tensors as in dequantize_4bit, for n = N K. No gradient."""
    arguments = (x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset)
    check("gemm_large", 2**31 - 1, *arguments)
    if not len(x):
        return x.new_empty(0, N)
    if not servable("gemm_large", x, packed, absmax):
        return matmul_reference(*arguments)
    (M, K), config = x.shape, PLAIN | dict(GROUP=8) if plain(x, block_size) else CONFIGS[nearest(chip(x.device))]
    out = torch.empty((M, N), dtype=x.dtype, device=x.device)
    nested = (absmax, absmax, absmax) if nested_absmax is None else (nested_absmax, nested_map, offset)    # pointers that are never followed
    gemm_large_kernel[(triton.cdiv(M, config["BM"]) * triton.cdiv(N, config["BN"]),)](
        x.contiguous(), packed, absmax, *nested, code_map, out, M, N, K // 2,
        BLOCK_SIZE=block_size, NESTED=nested_absmax is not None, SPAN=math.gcd(K, block_size, 2 * config["BYTES"]), **config,
    )  # fmt: skip
    return out


@gemm_large_4bit.register_fake
def _(x, packed, absmax, code_map, N, block_size, nested_absmax=None, nested_map=None, offset=None):
    return x.new_empty(x.shape[0], N)


gemm_large_4bit.register_autograd(no_gradient("gemm_large"))


def builds() -> list[Build]:
    found = [build(gemm_large_kernel, f"{name}{', double quant' if nested else ''}", config, nested, M=2048, N=14336, K=4096, chip=name)
             for name, config in CONFIGS.items() for nested in (False, True)]  # fmt: skip
    return [*found, build(gemm_large_kernel, "plain, K 4098", PLAIN | dict(GROUP=8), True, M=2048, N=14336, K=4098)]


KERNEL = Kernel(
    name="gemm_large", op=gemm_large_4bit, reference=matmul_reference, make=make, work=work, builds=builds, peers=PEERS,
    tests={
        f"{M} x {N} x {K}, block {block}, {str(dtype)[6:]}{', double quant' if nested else ''}{', fp4' if scheme == 'fp4' else ''}":
            dict(M=M, N=N, K=K, dtype=dtype, block_size=block, nested=nested, scheme=scheme)
        for M, N, K, dtype, block, nested, scheme in (
            (128, 128, 128, torch.float32, 64, False, "nf4"), (129, 131, 96, torch.float16, 64, True, "nf4"),
            (3, 5, 34, torch.float32, 64, False, "fp4"), (1153, 258, 64, torch.float16, 64, True, "nf4"),
        )
    },
    benches={
        f"M {M}, {N} x {K}{', double quant' if nested else ''}": dict(M=M, N=N, K=K, dtype=torch.bfloat16, nested=nested)
        for N, K in ((4096, 4096), (14336, 4096)) for M in (2048, 8192) for nested in (False, True)
    },
)  # fmt: skip
