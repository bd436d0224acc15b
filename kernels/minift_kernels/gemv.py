"""One or two rows times a 4-bit weight: what decoding text does with every layer, token after token. Serves up to 7 rows.

    y[m, n] = sum_b absmax[b] sum_{k in block b} map[code[n, k]] x[m, k]          x: (M, K)      W: (N, K) in 4 bits      y: (M, N)

The scale of a block multiplies the sum and not each weight. Sums and products are in float32; W itself is never rounded.
Bound: bytes. N K (0.5 + 4/64), or N K 0.516 with double quantization: 7.7 us for 14336 x 4096 at the 4.3 TB/s that chips.py was given for an
H200. In that time it issues 3.9 instructions a weight (132 processors, 128 lanes, 1.755 GHz), so every instruction counts:
- A program is one warp. A table of 16 values then lies in its registers, and tl.gather becomes a shuffle between lanes: shift, mask, shuffle,
  multiply-add. A load from a table in memory needs a 64-bit address besides: 2.2 to 2.5 instructions a weight more.
- Codes arrive as words of 8, four words a lane (128 bits), so that 32 weights share one absmax and its address.
- x is loaded once for ROWS rows of W.
This makes 4.8 instructions in the loop on sm90 (5.2 with double quantization; counted, Triton 3.7.1), so at best four fifths of the bandwidth.
Selecting with byte permutes would take fewer, in inline assembly. A second row of x brings it to 6.8, four to 11: the tensor cores of gemm.py,
8 for any M up to 32, need fewer from the third row on, and its kernel answers there.
Little work for the chip (N / ROWS warps) is divided along K as well, the parts added in order by gemm.py's second kernel.

Left out: the gradient (training goes through qlora.py). Where rows of W do not begin at a word, gemm.py's kernel answers; for odd K the reference.
Proved in tests/kernels/test_registry.py and tests/kernels/test_gemv.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.dequantize import load_absmax
from minift_kernels.gemm import launch, sum_parts
from minift_kernels.products import PEERS, POINTERS, check, make, matmul_reference, nearest, no_gradient, processors, servable, work
from minift_kernels.registry import Build, Kernel
from minift_kernels.runtime import chip

MOST_ROWS = 7

CONFIGS = {
    ("sm90", 1, "tall"): dict(ROWS=8, WORDS=4), ("sm90", 1, "short"): dict(ROWS=4, WORDS=4), ("sm90", 2, "tall"): dict(ROWS=4, WORDS=4),
    ("gfx942", 1, "tall"): dict(ROWS=4, WORDS=4), ("gfx942", 2, "tall"): dict(ROWS=4, WORDS=2),
}  # fmt: skip
"""By chip, M and N (tall: from 8192 on; where short is missing tall serves, as sm90 does for sm80): rows of W, and words of 8 codes a lane.
Fewest instructions a weight that compile without spilling; not timed."""


@triton.jit
def eight(x):
    """(M, C, W, 8) -> its eight last columns, (M, C, W) each."""
    M: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    W: tl.constexpr = x.shape[2]
    even, odd = tl.split(x.reshape(M, C, W, 4, 2))                                    # columns 0 2 4 6 and 1 3 5 7
    x04, x26 = tl.split(even.reshape(M, C, W, 2, 2))
    x15, x37 = tl.split(odd.reshape(M, C, W, 2, 2))
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def value(table, words, shift: tl.constexpr):
    """The map's values of the codes at this bit of each word."""
    code = (words >> shift) & 15
    return tl.gather(table, code.reshape(code.numel), 0).reshape(code.shape)


@triton.jit
def gemv_kernel(
    x, packed, absmax, nested_absmax, nested_map, offset, code_map, out, N, row_words, steps,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)                               # of W
    part = tl.program_id(1)                                                           # of K: `steps` steps of LANES x WORDS words
    m = tl.arange(0, M)                                                               # 1 or 2 rows of x
    table = tl.load(code_map + tl.arange(0, 16))
    words = packed.to(tl.pointer_type(tl.int32))
    y = tl.zeros((M, ROWS, LANES, WORDS), tl.float32)
    for step in range(part * steps, part * steps + steps):
        word = step * LANES * WORDS + tl.arange(0, LANES) * WORDS                     # each lane's first, within the row
        flat = rows.to(tl.int64)[:, None] * row_words + word[None, :]                 # (ROWS, LANES), within W
        there = (rows < N)[:, None] & (word < row_words)[None, :]
        w = tl.load(words + flat[:, :, None] + tl.arange(0, WORDS)[None, None, :], mask=there[:, :, None], other=0)[None]
        column = 8 * word[:, None] + tl.arange(0, 8 * WORDS)[None, :]
        row = tl.load(x + m[:, None, None] * (8 * row_words) + column[None], mask=(word < row_words)[None, :, None], other=0.0).to(tl.float32)
        x0, x1, x2, x3, x4, x5, x6, x7 = eight(row.reshape(M, LANES, WORDS, 8))
        s = value(table, w, 4) * x0[:, None]                                          # byte 0: high nibble, then low
        s += value(table, w, 0) * x1[:, None]
        s += value(table, w, 12) * x2[:, None]
        s += value(table, w, 8) * x3[:, None]
        s += value(table, w, 20) * x4[:, None]
        s += value(table, w, 16) * x5[:, None]
        s += value(table, w, 28) * x6[:, None]
        s += value(table, w, 24) * x7[:, None]
        a = load_absmax(absmax, nested_absmax, nested_map, offset, flat // (BLOCK_SIZE // 8), there, NESTED)
        y += s * a[None, :, :, None]
    total = tl.sum(tl.sum(y, 3), 2)                                                   # (M, ROWS)
    place = (part.to(tl.int64) * M + m)[:, None] * N + rows[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(rows < N)[None, :])


def config(name: str, M: int, N: int) -> dict:
    """ROWS, LANES and WORDS."""
    name = "sm90" if name == "sm80" else name
    chosen = CONFIGS.get((name, M, "tall" if N >= 8192 else "short"), CONFIGS[name, M, "tall"])
    return chosen | dict(LANES=64 if name == "gfx942" else 32)


@torch.library.custom_op("minift::gemv_4bit", mutates_args=())
def gemv_4bit(
    x: Tensor, packed: Tensor, absmax: Tensor, code_map: Tensor, N: int, block_size: int,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (M, N) in x's dtype; x (M, K), M up to 7. W's tensors as in dequantize_4bit, for n = N K. No gradient."""
    arguments = (x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset)
    check("gemv", MOST_ROWS, *arguments)
    if not len(x):
        return x.new_empty(0, N)
    if not servable("gemv", x, packed, absmax):
        return matmul_reference(*arguments)
    M, K = x.shape
    if M > 2:
        return launch(*arguments)
    chosen = config(nearest(chip(x.device)), M, N)
    lane = 8 * chosen["WORDS"]                                                        # weights that share an absmax
    if K % lane or block_size % lane or packed.data_ptr() % 16:
        return launch(*arguments)
    programs, steps = triton.cdiv(N, chosen["ROWS"]), triton.cdiv(K, lane * chosen["LANES"])
    parts = min(max(1, 4 * processors(x.device) // programs), steps)
    steps = triton.cdiv(steps, parts)
    out = torch.empty((parts, M, N), dtype=x.dtype if parts == 1 else torch.float32, device=x.device)
    nested = (absmax, absmax, absmax) if nested_absmax is None else (nested_absmax, nested_map, offset)    # pointers that are never followed
    gemv_kernel[(programs, parts)](
        x.contiguous(), packed, absmax, *nested, code_map, out, N, K // 8, steps,
        BLOCK_SIZE=block_size, NESTED=nested_absmax is not None, M=M, **chosen, num_warps=1,
    )  # fmt: skip
    return out[0] if parts == 1 else sum_parts(out, x.dtype)


@gemv_4bit.register_fake
def _(x, packed, absmax, code_map, N, block_size, nested_absmax=None, nested_map=None, offset=None):
    return x.new_empty(x.shape[0], N)


gemv_4bit.register_autograd(no_gradient("gemv"))


def builds() -> list[Build]:
    found = []
    for name in ("sm80", "sm90", "gfx942"):
        for M, N in ((1, 14336), (1, 4096), (2, 14336)):
            for nested in (False, True):
                tile = config(name, M, N)
                once = tile["ROWS"] * tile["LANES"] * 8 * tile["WORDS"]
                arguments = {**POINTERS, "absmax": torch.uint8 if nested else torch.float32, "M": M, "N": N, "row_words": 512,
                             "steps": 4096 * tile["ROWS"] // once, "BLOCK_SIZE": 64, "NESTED": nested, **tile}  # fmt: skip
                expect = {name: ("ds_bpermute", "global_load") if name == "gfx942" else ("LDG.E.128", "SHFL.IDX")}
                found.append(Build(f"{name} M {M}, N {N}{', double quant' if nested else ''}", gemv_kernel, arguments, num_warps=1,
                                   chips=(name,), expect=expect, weights=4096 * tile["ROWS"], loop_weights=once))  # fmt: skip
    return found


KERNEL = Kernel(
    name="gemv", op=gemv_4bit, reference=matmul_reference, make=make, work=work, builds=builds, peers=PEERS,
    tests={
        f"{M} x {N} x {K}, block {block}, {str(dtype)[6:]}{', double quant' if nested else ''}{', fp4' if scheme == 'fp4' else ''}":
            dict(M=M, N=N, K=K, dtype=dtype, block_size=block, nested=nested, scheme=scheme)
        for M, N, K, dtype, block, nested, scheme in (
            (1, 9, 128, torch.float32, 64, False, "nf4"), (1, 5, 96, torch.float16, 64, True, "nf4"),
            (1, 3, 2080, torch.float32, 64, True, "nf4"),
            (2, 7, 1056, torch.float16, 128, False, "fp4"),
            (3, 5, 160, torch.float32, 32, True, "fp4"), (5, 17, 40, torch.float16, 4096, False, "nf4"),
            (7, 13, 264, torch.float32, 64, True, "nf4"), (4, 3, 34, torch.float32, 64, False, "nf4"),
        )
    },
    benches={
        f"M {M}, {N} x {K}{', double quant' if nested else ''}": dict(M=M, N=N, K=K, dtype=torch.bfloat16, nested=nested)
        for N, K in ((4096, 4096), (14336, 4096)) for M in (1, 2, 4, 7) for nested in (False, True)
    },
)  # fmt: skip
