"""Quantize to 4 bits: blocks of numbers -> two codes in a byte, and one absmax a block.

    a[b] = max |w| over block b           x = w / a[b]           code = order[number of middles below x]
    p[i] = code of w[2i] << 4 | code of w[2i + 1]                     middles: between neighbours of the sorted map; order: their codes

The nearest value of the map, NF4's or FP4's (QLoRA, Dettmers et al. 2023, arXiv:2305.14314); an exact middle goes to the lower one. Codes
and absmax equal those of bitsandbytes' CPU build to the bit, which takes some care: it multiplies by 1 / a in whole blocks and divides by a
in a last, short one; never divides by less than 1e-38, and stores no less for a short block; an odd last byte ends with the code of zero;
and FP4's two zeros are two places: x <= 0 becomes code 0, a small x > 0 code 8.
Bound: bytes. n weights in bf16 move n (2 + 0.5 + 4 / 64) bytes, 35 us for 14336 x 4096 at 4.3 TB/s (chips.py); it runs once per weight.
The 15 comparisons are 4 steps of a binary search: at each, one of 16 middles comes from a table in shared memory. Counted in sm90 machine
code: 31.4 instruction slots a weight (Triton 3.6.0), 3.2 of them in branches that only a subnormal absmax takes; 28 slots are 56 us of an
H200's issue at best: here the instructions are the bound.
Left out: NaN and infinity, which callers refuse; the absmax in 8 bits, which minift/quant/nested.py makes in plain torch: there are few of them.
Proved in tests/kernels/test_registry.py and tests/parity/test_kernels_bitsandbytes.py."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.codes import four_bit_map
from minift_kernels.fourbit import SMALLEST, quantize_reference, thresholds
from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import can_launch, require

CONFIG = (4096, 4)
"""Weights per program (a whole block at least), warps. Chosen by instruction counts, not timed yet."""


@triton.jit
def quantize_kernel(
    weight, middles, order, packed, absmax, n, BLOCK_SIZE: tl.constexpr, BLOCKS: tl.constexpr, EVEN: tl.constexpr, SMALLEST: tl.constexpr,
):
    """BLOCKS blocks. middles: 15, ascending, and +inf; order: place -> code. EVEN: no program is cut short."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS                                    # this program's blocks: first ... first + BLOCKS
    left = tl.minimum(n - first * BLOCK_SIZE, BLOCKS * BLOCK_SIZE).to(tl.int32)       # its weights
    block = tl.arange(0, BLOCKS)
    place = block[:, None] * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[None, :]           # (BLOCKS, BLOCK_SIZE)
    w = tl.load(weight + first * BLOCK_SIZE + place, mask=(place < left) | EVEN, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(w), axis=1)                                               # (BLOCKS,)
    divisor = tl.maximum(largest, tl.full((BLOCKS,), SMALLEST, tl.float32))           # a bare 1e-38, below float32's normal range, is float64
    x = w * tl.div_rn(tl.full((BLOCKS,), 1.0, tl.float32), divisor)[:, None]
    if not EVEN:
        short = (block + 1) * BLOCK_SIZE > left
        x = tl.where(short[:, None], tl.div_rn(w, tl.broadcast_to(divisor[:, None], (BLOCKS, BLOCK_SIZE))), x)
        largest = tl.where(short, divisor, largest)
    tl.store(absmax + first + block, largest, mask=(block * BLOCK_SIZE < left) | EVEN)
    x = tl.reshape(x, (BLOCKS * BLOCK_SIZE,))
    table = tl.load(middles + tl.arange(0, 16))
    lower = tl.zeros((BLOCKS * BLOCK_SIZE,), tl.int32)                                # how many middles are below x, bit by bit
    for bit in tl.static_range(3, -1, -1):
        lower += tl.where(x > tl.gather(table, lower + ((1 << bit) - 1), 0), 1 << bit, 0)
    code = tl.gather(tl.load(order + tl.arange(0, 16)), lower, 0)
    high, low = tl.split(tl.reshape(code, (BLOCKS * BLOCK_SIZE // 2, 2)))
    byte = tl.arange(0, BLOCKS * BLOCK_SIZE // 2)
    tl.store(packed + first * (BLOCK_SIZE // 2) + byte, (high << 4 | low).to(tl.uint8), mask=(2 * byte < left) | EVEN)


@torch.library.custom_op("minift::quantize_4bit", mutates_args=())
def quantize_4bit(weight: Tensor, code_map: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """(packed (ceil(n/2),) uint8, absmax (ceil(n/block_size),) float32). weight: n finite numbers of any shape in fp32, fp16 or bf16."""
    require("quantize", weight=(weight, weight.dtype), code_map=(code_map, torch.float32))
    if not weight.numel() or not weight.is_floating_point() or block_size < 2 or block_size % 2:
        raise ValueError(f"quantize: found weight {weight.dtype} {tuple(weight.shape)} in blocks of {block_size}, wanted floating-point numbers, "
                         "at least one, and an even block size")  # fmt: skip
    odd = block_size & (block_size - 1) or not 32 <= block_size <= 4096
    unless = f"it does not serve blocks of {block_size}" if odd else ""
    if not can_launch("quantize", weight, code_map, dtypes=(torch.float32, torch.float16, torch.bfloat16), unless=unless):
        return quantize_reference(weight, code_map, block_size)
    n, (middles, order) = weight.numel(), thresholds(code_map)
    packed = torch.empty(-(-n // 2), dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-n // block_size), dtype=torch.float32, device=weight.device)
    blocks = max(1, CONFIG[0] // block_size)
    quantize_kernel[(triton.cdiv(len(absmax), blocks),)](
        weight, F.pad(middles, (0, 1), value=torch.inf), order.int(), packed, absmax, n,
        BLOCK_SIZE=block_size, BLOCKS=blocks, EVEN=n % (blocks * block_size) == 0, SMALLEST=SMALLEST, num_warps=CONFIG[1],
    )  # fmt: skip
    return packed, absmax


@quantize_4bit.register_fake
def _(weight, code_map, block_size):
    n = weight.numel()
    return weight.new_empty((n + 1) // 2, dtype=torch.uint8), weight.new_empty((n + block_size - 1) // block_size, dtype=torch.float32)


def make(device: str, seed: int, n: int, block_size: int, dtype: torch.dtype, scheme: str = "nf4") -> dict:
    """Normal weights; some lie on a middle, and a block is zero where there are several."""
    draw = torch.Generator(device).manual_seed(seed)
    weight, code_map = torch.randn(n, device=device, generator=draw), four_bit_map(scheme, device)
    middles = thresholds(code_map)[0]
    weight[: min(n, 16)] = torch.cat([weight[:1].clamp(-1, 1), middles.new_ones(1), middles])[: min(n, 16)]
    weight[16 : min(n, block_size)] /= 8                                              # so that the first block's absmax is about 1
    near = slice(block_size, min(n, 2 * block_size))                                  # within an ulp or two of a middle
    size = len(weight[near])
    weight[near] = middles[torch.randint(0, 15, (size,), device=device, generator=draw)] * 1.3
    weight[near][:1] = 1.3
    weight[2 * block_size : 3 * block_size] = 0
    return dict(weight=weight.to(dtype), code_map=code_map, block_size=block_size)


def work(n: int, block_size: int, dtype: torch.dtype, scheme: str = "nf4") -> Work:
    return Work(n * (dtype.itemsize + 0.5 + 4 / block_size), 5 * n)


def builds() -> list[Build]:
    pointers = dict(middles=torch.float32, order=torch.int32, packed=torch.uint8, absmax=torch.float32)
    return [
        Build(
            f"bf16, blocks of {block}{'' if even else ', any size'}", quantize_kernel,
            {**pointers, "weight": torch.bfloat16, "n": 14336 * 4096, "BLOCK_SIZE": block, "BLOCKS": CONFIG[0] // block,
             "EVEN": even, "SMALLEST": SMALLEST},
            num_warps=CONFIG[1], weights=CONFIG[0],
            expect={"sm80": ("LDG.128",), "sm90": ("LDG.128",), "gfx942": ("buffer_load_dwordx4",)} if even else {},
        )
        for block, even in ((64, True), (64, False), (4096, True))
    ]  # fmt: skip


KERNEL = Kernel(
    name="quantize", op=quantize_4bit, reference=quantize_reference, make=make, work=work, builds=builds, exact=True,
    tests={
        f"{n} values, block {block}, {str(dtype)[6:]}, {scheme}": dict(n=n, block_size=block, dtype=dtype, scheme=scheme)
        for n, block, dtype, scheme in (
            (1, 64, torch.float32, "nf4"), (63, 64, torch.float16, "nf4"), (64, 64, torch.float32, "nf4"), (129, 64, torch.float32, "fp4"),
            (4096, 64, torch.float32, "nf4"), (4097, 64, torch.float32, "nf4"), (4 * 4096 + 65, 32, torch.float16, "fp4"),
            (2 * 4096 + 1, 4096, torch.float32, "nf4"), (33 * 77, 128, torch.float32, "nf4"),
        )
    },
    benches={f"{N} x {K}": dict(n=N * K, block_size=64, dtype=torch.bfloat16) for N, K in ((4096, 4096), (14336, 4096))},
)  # fmt: skip
