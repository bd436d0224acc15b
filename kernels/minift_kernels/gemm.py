"""Few rows times a 4-bit weight, M = 8 ... 256, decoded on the way into the tensor cores.

    y = x W^T                x: (M, K)      W: (N, K) in 4 bits, its values as in dequantize.py      y: (M, N), in x's dtype
    y = x[:, even] high^T + x[:, odd] low^T          high, low: (N, K/2), the two codes of each byte

The second line saves the work of putting the codes side by side: a sum over K may be taken in any order, so the high codes meet the even
columns of x and the low codes the odd ones, in two products of half the length. It is x that is taken apart, and x is the smaller.
The kernel computes y^T = W x^T: W, as the left operand, goes from the registers in which it was decoded straight into the tensor cores, and
its N fills their 64 rows even where M is 16. (As the right operand it would go through shared memory, and M < 64 would miss HGMMA.)
W is rounded to x's dtype as dequantize.py rounds it, so the weights are the same to the bit; the sum is in float32.

Bound: bytes while M is small, N K (0.5 + 4/64), or N K 0.516 with double quantization; 7.7 us for 14336 x 4096 at 4.3 TB/s. Then 2 M N K
operations: at 788 TFLOP/s (both as chips.py was given them for an H200) these take as long from M = 52 on. And each weight is decoded once
per tile of M, in 8 instructions on sm90 (9 at BM = 128, 12 at 256; counted, Triton 3.7.1): 16 us if nothing else were issued. That, not the
tensor cores, is what to shorten.
The table is in registers, for tl.gather: one read by tl.load is taken by Triton's pipeliner for data to fetch ahead, which costs 1.5 more.
Few tiles (N/BN below the number of processors) share K among several programs: each writes its part, and a second kernel adds the parts in
a fixed order, so that the result is the same every time; atomic additions would not be.

Left out: the gradient (training goes through qlora.py) and odd K, where a byte holds codes of two rows: the reference answers.
Proved in tests/kernels/test_registry.py and tests/kernels/test_gemm.py."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.dequantize import load_absmax
from minift_kernels.products import PEERS, POINTERS, check, make, matmul_reference, nearest, no_gradient, processors, servable, work
from minift_kernels.registry import CHIPS, Build, Kernel
from minift_kernels.runtime import chip

MOST_ROWS = 256

CONFIGS = {
    ("sm90", 16): dict(BN=64, BYTES=64, num_warps=4, num_stages=3), ("sm90", 32): dict(BN=64, BYTES=64, num_warps=4, num_stages=3),
    ("sm90", 64): dict(BN=128, BYTES=64, num_warps=8, num_stages=3), ("sm90", 128): dict(BN=128, BYTES=64, num_warps=8, num_stages=3),
    ("sm90", 256): dict(BN=128, BYTES=32, num_warps=8, num_stages=3),
    ("sm80", 16): dict(BN=64, BYTES=64, num_warps=4, num_stages=3), ("sm80", 32): dict(BN=64, BYTES=64, num_warps=4, num_stages=3),
    ("sm80", 64): dict(BN=128, BYTES=32, num_warps=8, num_stages=3), ("sm80", 128): dict(BN=64, BYTES=32, num_warps=4, num_stages=3),
    ("gfx942", 16): dict(BN=64, BYTES=64, num_warps=4, num_stages=2), ("gfx942", 32): dict(BN=64, BYTES=64, num_warps=4, num_stages=2),
    ("gfx942", 64): dict(BN=128, BYTES=32, num_warps=8, num_stages=2), ("gfx942", 128): dict(BN=128, BYTES=32, num_warps=8, num_stages=2),
}  # fmt: skip
"""By chip and BM, the tile's rows of x (the least that holds M, else the most): BN rows of W, BYTES of each in a step. The fewest instructions
a weight that the compile gate found without spilling; not timed."""

PLAIN = dict(BM=16, BN=64, BYTES=32, num_warps=4, num_stages=2)
"""For float32 (not on tensor cores), and where fewer than 32 weights share an absmax for certain: small enough for every chip, and slow."""


@triton.jit
def decode(
    packed, absmax, nested_absmax, nested_map, offset, table, rows, first, N, row_bytes, dtype: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, SPAN: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """High and low codes' values, (rows, BYTES) each, of bytes first ... first + BYTES of these rows of W; zero outside W.

    The block is found by the flat index, since blocks run across rows. One absmax serves SPAN weights that lie in one block for certain."""
    R: tl.constexpr = rows.shape[0]
    GROUPS: tl.constexpr = 2 * BYTES // SPAN
    start = rows.to(tl.int64)[:, None] * row_bytes                                    # (R, 1) each row's first byte
    byte = first + tl.arange(0, BYTES)[None, :]
    codes = tl.load(packed + start + byte, mask=(rows < N)[:, None] & (byte < row_bytes), other=0).to(tl.int32)
    group = first + tl.arange(0, GROUPS)[None, :] * (SPAN // 2)
    there = (rows < N)[:, None] & (group < row_bytes)
    a = load_absmax(absmax, nested_absmax, nested_map, offset, (start + group) * 2 // BLOCK_SIZE, there, NESTED)   # (R, GROUPS)
    a = tl.where(there, a, 0.0)
    a = tl.broadcast_to(a[:, :, None], (R, GROUPS, SPAN // 2)).reshape(R, BYTES)
    flat = codes.reshape(R * BYTES)
    high = tl.gather(table, flat >> 4, 0).reshape(R, BYTES) * a
    low = tl.gather(table, flat & 15, 0).reshape(R, BYTES) * a
    return high.to(dtype), low.to(dtype)


@triton.jit
def gemm_kernel(
    x, packed, absmax, nested_absmax, nested_map, offset, code_map, out, M, N, row_bytes, steps,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, SPAN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BN + tl.arange(0, BN)                                   # of W
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)                                                           # of K: `steps` steps
    table = tl.load(code_map + tl.arange(0, 16))
    y = tl.zeros((BN, BM), tl.float32)                                                # y^T
    for step in range(part * steps, part * steps + steps):
        first = step * BYTES
        high, low = decode(
            packed, absmax, nested_absmax, nested_map, offset, table, rows, first, N, row_bytes, x.dtype.element_ty, BLOCK_SIZE, NESTED, SPAN, BYTES
        )
        column = 2 * first + tl.arange(0, 2 * BYTES)[None, :]
        there = (m < M)[:, None] & (column < 2 * row_bytes)
        pairs = tl.load(x + m.to(tl.int64)[:, None] * (2 * row_bytes) + column, mask=there, other=0.0)              # (BM, 2 BYTES)
        even, odd = tl.split(pairs.reshape(BM, BYTES, 2))
        y = tl.dot(high, even.T, y, input_precision="ieee")
        y = tl.dot(low, odd.T, y, input_precision="ieee")
    place = (part.to(tl.int64) * M + m)[None, :] * N + rows[:, None]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=(m < M)[None, :] & (rows < N)[:, None])


@triton.jit
def sum_parts_kernel(parts, out, n, PARTS, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    at = i
    for _ in range(PARTS):
        total += tl.load(parts + at, mask=i < n, other=0.0)
        at += n
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < n)


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """(parts, M, N) float32 -> (M, N), added in order."""
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    n = out.numel()
    sum_parts_kernel[(triton.cdiv(n, 1024),)](parts, out, n, len(parts), BLOCK=1024, num_warps=4)
    return out


def plain(x: Tensor, block_size: int) -> bool:
    return x.dtype == torch.float32 or math.gcd(x.shape[1], block_size) % 32 > 0


def tile(name: str, M: int) -> dict:
    """The configuration for M rows of x."""
    sizes = sorted(size for its, size in CONFIGS if its == name)
    BM = next((size for size in sizes if M <= size), sizes[-1])
    return CONFIGS[name, BM] | dict(BM=BM)


def launch(x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset) -> Tensor:
    M, K = x.shape
    x = x.contiguous()
    config = PLAIN if plain(x, block_size) else tile(nearest(chip(x.device)), M)
    BM = config["BM"]
    tiles, steps = triton.cdiv(N, config["BN"]) * triton.cdiv(M, BM), triton.cdiv(K // 2, config["BYTES"])
    parts = max(1, min(processors(x.device) // tiles, steps // 8))
    steps = triton.cdiv(steps, parts)
    out = torch.empty((parts, M, N), dtype=x.dtype if parts == 1 else torch.float32, device=x.device)
    nested = (absmax, absmax, absmax) if nested_absmax is None else (nested_absmax, nested_map, offset)    # pointers that are never followed
    gemm_kernel[(triton.cdiv(N, config["BN"]), triton.cdiv(M, BM), parts)](
        x, packed, absmax, *nested, code_map, out, M, N, K // 2, steps,
        BLOCK_SIZE=block_size, NESTED=nested_absmax is not None, SPAN=math.gcd(K, block_size, 2 * config["BYTES"]), **config,
    )  # fmt: skip
    return out[0] if parts == 1 else sum_parts(out, x.dtype)


@torch.library.custom_op("minift::gemm_4bit", mutates_args=())
def gemm_4bit(
    x: Tensor, packed: Tensor, absmax: Tensor, code_map: Tensor, N: int, block_size: int,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (M, N) in x's dtype; x (M, K), M up to 256. W's tensors as in dequantize_4bit, for n = N K. No gradient."""
    check("gemm", MOST_ROWS, x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset)
    if not len(x):
        return x.new_empty(0, N)
    answer = launch if servable("gemm", x, packed, absmax) else matmul_reference
    return answer(x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset)


@gemm_4bit.register_fake
def _(x, packed, absmax, code_map, N, block_size, nested_absmax=None, nested_map=None, offset=None):
    return x.new_empty(x.shape[0], N)


gemm_4bit.register_autograd(no_gradient("gemm"))


def build(function, name: str, config: dict, nested: bool, M: int, N: int, K: int, chip: str = "") -> Build:
    """For one chip, with its tensor-core instruction, or for all. Also gemm_large.py's."""
    once, shape = 2 * config["BYTES"] * config["BN"], {key: value for key, value in config.items() if not key.startswith("num_")}
    arguments = {**POINTERS, "absmax": torch.uint8 if nested else torch.float32, "M": M, "N": N, "row_bytes": K // 2,
                 "steps": K // 2 // config["BYTES"], "BLOCK_SIZE": 64, "NESTED": nested, "SPAN": math.gcd(K, 64), **shape}  # fmt: skip
    wanted = {"sm90": ("HGMMA",), "sm80": ("HMMA",), "gfx942": ("v_mfma",)}
    return Build(name, function, {key: arguments[key] for key in function.arg_names}, config["num_warps"], config["num_stages"],
                 expect={chip: wanted[chip]} if chip else {}, chips=(chip,) if chip else CHIPS, weights=K * config["BN"],
                 loop_weights=once)  # fmt: skip


def builds() -> list[Build]:
    found = [Build("sum of parts", sum_parts_kernel, dict(parts=torch.float32, out=torch.bfloat16, n=16 * 4096, PARTS=4, BLOCK=1024),
                   expect=dict(sm80=("LDG.128",), sm90=("LDG.128",)))]  # fmt: skip
    for name, BM in CONFIGS:
        for nested in (False, True):
            label = f"{name} {BM} rows{', double quant' if nested else ''}"
            found.append(build(gemm_kernel, label, tile(name, BM), nested, M=BM, N=14336, K=4096, chip=name))
    found.append(build(gemm_kernel, "plain, K 4098", PLAIN, True, M=9, N=14336, K=4098))
    return found


KERNEL = Kernel(
    name="gemm", op=gemm_4bit, reference=matmul_reference, make=make, work=work, builds=builds, peers=PEERS,
    tests={
        f"{M} x {N} x {K}, block {block}, {str(dtype)[6:]}{', double quant' if nested else ''}{', fp4' if scheme == 'fp4' else ''}":
            dict(M=M, N=N, K=K, dtype=dtype, block_size=block, nested=nested, scheme=scheme)
        for M, N, K, dtype, block, nested, scheme in (
            (8, 64, 128, torch.float32, 64, False, "nf4"), (9, 65, 96, torch.float16, 64, False, "nf4"), (17, 3, 34, torch.float32, 64, True, "nf4"),
            (33, 131, 258, torch.float16, 32, True, "fp4"), (9, 40, 2080, torch.float16, 64, True, "nf4"),
            (65, 66, 320, torch.float16, 128, False, "fp4"), (130, 5, 200, torch.float32, 4096, False, "nf4"),
            (256, 130, 64, torch.float16, 64, False, "nf4"),
        )
    },
    benches={
        f"M {M}, {N} x {K}{', double quant' if nested else ''}": dict(M=M, N=N, K=K, dtype=torch.bfloat16, nested=nested)
        for N, K in ((4096, 4096), (14336, 4096)) for M in (8, 16, 32, 64, 128, 256) for nested in (False, True)
    },
)  # fmt: skip
