"""Dequantize 4 bits: two codes in a byte -> two numbers.

    w[2i], w[2i+1] = map[p[i] >> 4] a, map[p[i] & 15] a              p: (n/2,) bytes       a: absmax of the block of w[2i]
    a = absmax[b]                                                     b = 2i / block_size
    a = nested_map[absmax[b]] nested_absmax[b / 256] + offset         where absmax itself is in 8 bits ("double quantization")

Computed in float32 and rounded once, so the values equal bitsandbytes' to the bit (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).
Bound: bytes. n weights to bf16 move n (0.5 + 2 + 4 / 64) bytes, or n (0.5 + 2 + 1 / 64 + 4 / 16384) with double quantization; 14336 x 4096
takes 34 us at 4.3 TB/s (an H200's copy as chips.py was given it). The look-up decides whether that can be reached, since beyond 17
instruction slots a weight the instructions take longer than the bytes. Counted in sm90 machine code (Triton 3.6.0, all instructions; counts,
no speeds): a tree of 15 selects 25.9; byte by byte with a load from a 64-byte table in L1 16.4 (double quantization 20.2); in words of 8
codes, whose weights share one absmax, and with 128-bit loads and stores 8.1 (8.5); the same with tl.gather, which keeps the table in shared
memory and needs no 64-bit address, 6.6 (6.9): this file.
One kernel where others take three (8-bit absmax -> absmax, add the offset, dequantize): the absmax never goes through memory.
Proved in tests/kernels/test_registry.py and tests/parity/test_bitsandbytes.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.fourbit import NESTED_BLOCK, dequantize_reference
from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import INTERPRETED, can_launch, chip
from minift_kernels.weight import check_weight

CONFIG = {("", "small"): (128, 4), ("", "large"): (512, 4), ("gfx942", "large"): (1024, 4)}
"""(chip or any, size) -> (words of 8 weights per program, warps). Chosen by instruction counts, not timed yet."""

LARGE = 2**22
"""Weights from which on there are programs enough for large ones."""


@triton.jit
def load_absmax(absmax, nested_absmax, nested_map, offset, block, mask, NESTED: tl.constexpr):
    """The absmax of these blocks, float32, from either form."""
    if NESTED:
        code = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        scale = tl.load(nested_absmax + block // 256, mask=mask, other=0.0)
        return tl.load(nested_map + code) * scale + tl.load(offset)
    else:
        return tl.load(absmax + block, mask=mask, other=0.0)


@triton.jit
def dequantize_kernel(
    packed, absmax, nested_absmax, nested_map, offset, code_map, out, n,
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, WHOLE: tl.constexpr, EVEN: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """WORDS groups of 8 weights. WHOLE: packed is int32, a load takes 8 codes. EVEN: no program is cut short, no mask is needed."""
    first = tl.program_id(0).to(tl.int64) * WORDS                                     # int64 here only: what follows counts from `first`
    left = tl.minimum(n - 8 * first, 8 * WORDS).to(tl.int32)                          # this program's weights
    word, eight = tl.arange(0, WORDS), tl.arange(0, 8)
    there = (8 * word < left) | EVEN                                                  # (WORDS,)
    if WHOLE:
        codes = tl.load(packed + first + word, mask=there, other=0)                   # (WORDS,) of 8 codes each
    else:
        byte = 4 * word[:, None] + tl.arange(0, 4)[None, :]
        four = tl.load(packed + 4 * first + byte, mask=2 * byte < left, other=0).to(tl.int32)
        codes = tl.sum(four << 8 * tl.arange(0, 4)[None, :], axis=1)                  # the same, byte by byte
    code = (codes[:, None] >> 4 * (eight ^ 1)[None, :]) & 15                          # (WORDS, 8): the high nibble of each byte comes first
    values = tl.gather(tl.load(code_map + tl.arange(0, 16)), tl.reshape(code, (8 * WORDS,)), 0)
    a = load_absmax(absmax, nested_absmax, nested_map, offset, (first + word) // (BLOCK_SIZE // 8), there, NESTED)
    place = 8 * word[:, None] + eight[None, :]
    tl.store(out + 8 * first + place, tl.reshape(values, (WORDS, 8)) * a[:, None], mask=(place < left) | EVEN)


@torch.library.custom_op("minift::dequantize_4bit", mutates_args=())
def dequantize_4bit(
    packed: Tensor, absmax: Tensor, code_map: Tensor, n: int, block_size: int, dtype: torch.dtype,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(n,) numbers in `dtype`. packed: (ceil(n/2),) uint8; code_map: (16,) float32; absmax: (blocks,) float32, or uint8 with
    nested_absmax (ceil(blocks/256),) float32, nested_map (256,) float32 and offset () float32."""
    check_weight("dequantize", (n,), packed, absmax, code_map, block_size, nested_absmax, nested_map, offset)
    odd = dtype not in (torch.float32, torch.float16, torch.bfloat16) or dtype == torch.bfloat16 and INTERPRETED
    unless = f"it does not write {dtype} here" if odd else f"it does not serve blocks of {block_size}" if block_size % 8 else ""
    if not can_launch("dequantize", packed, absmax, code_map, nested_absmax, nested_map, offset, unless=unless):
        return dequantize_reference(packed, absmax, code_map, n, block_size, dtype, nested_absmax, nested_map, offset)
    out = torch.empty(n, dtype=dtype, device=packed.device)
    size = "large" if n >= LARGE else "small"
    words, warps = CONFIG.get((chip(packed.device), size), CONFIG["", size])
    whole = packed.numel() % 4 == 0 and packed.storage_offset() % 4 == 0 and packed.data_ptr() % 4 == 0
    nested = (absmax, absmax, absmax) if nested_absmax is None else (nested_absmax, nested_map, offset)    # pointers that are never followed
    dequantize_kernel[(triton.cdiv(n, 8 * words),)](
        packed.view(torch.int32) if whole else packed, absmax, *nested, code_map, out, n,
        BLOCK_SIZE=block_size, NESTED=nested_absmax is not None, WHOLE=whole, EVEN=n % (8 * words) == 0, WORDS=words, num_warps=warps,
    )  # fmt: skip
    return out


@dequantize_4bit.register_fake
def _(packed, absmax, code_map, n, block_size, dtype, nested_absmax=None, nested_map=None, offset=None):
    return packed.new_empty(n, dtype=dtype)


def make(device: str, seed: int, n: int, block_size: int, dtype: torch.dtype, nested: bool, scheme: str = "nf4") -> dict:
    draw = torch.Generator(device).manual_seed(seed)
    blocks = -(-n // block_size)
    packed = torch.randint(0, 256, (-(-n // 2),), dtype=torch.uint8, device=device, generator=draw)
    absmax = torch.rand(blocks, device=device, generator=draw)
    made = dict(packed=packed, absmax=absmax, code_map=four_bit_map(scheme, device), n=n, block_size=block_size, dtype=dtype)
    if nested:
        made["absmax"] = torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=device, generator=draw)
        made["nested_absmax"] = torch.rand(-(-blocks // NESTED_BLOCK), device=device, generator=draw)
        made["nested_map"], made["offset"] = dynamic_map(True, device), torch.tensor(0.7, device=device)
    return made


def work(n: int, block_size: int, dtype: torch.dtype, nested: bool, scheme: str = "nf4") -> Work:
    absmax = 1 + 4 / NESTED_BLOCK if nested else 4
    return Work(n * (0.5 + dtype.itemsize + absmax / block_size), n)


def builds() -> list[Build]:
    pointers = dict(packed=torch.int32, nested_absmax=torch.float32, nested_map=torch.float32, offset=torch.float32, code_map=torch.float32)
    wide = {name: ("STG.128", "LDG.128") for name in ("sm80", "sm90")}
    kinds = [(("sm80", "sm90"), ("", "large"), True), (("sm80", "sm90"), ("", "large"), False), (("gfx942",), ("gfx942", "large"), True)]
    return [
        Build(
            f"bf16, {'double quant' if nested else 'fp32 absmax'}, {'even' if even else 'any'} size{' for AMD' * ('gfx942' in chips)}",
            dequantize_kernel,
            {**pointers, "absmax": torch.uint8 if nested else torch.float32, "out": torch.bfloat16, "n": 14336 * 4096,
             "BLOCK_SIZE": 64, "NESTED": nested, "WHOLE": True, "EVEN": even, "WORDS": CONFIG[config][0]},
            num_warps=CONFIG[config][1], chips=chips, weights=8 * CONFIG[config][0],
            expect={name: wide[name][: 1 + even] if name in wide else ("buffer_store_dwordx4", "buffer_load_dwordx4") for name in chips},
        )
        for nested in (False, True) for chips, config, even in kinds
    ]  # fmt: skip


KERNEL = Kernel(
    name="dequantize", op=dequantize_4bit, reference=dequantize_reference, make=make, work=work, builds=builds, exact=True,
    tests={
        f"{n} values, block {block}, {str(dtype)[6:]}{', double quant' if nested else ''}{', fp4' if scheme == 'fp4' else ''}":
            dict(n=n, block_size=block, dtype=dtype, nested=nested, scheme=scheme)
        for n, block, dtype, nested, scheme in (
            (4096, 64, torch.float32, False, "nf4"), (4099, 64, torch.float16, True, "nf4"), (1, 64, torch.float32, False, "nf4"),
            (2, 64, torch.float16, False, "nf4"), (63, 64, torch.float32, True, "nf4"),
            (65, 64, torch.float32, False, "fp4"), (2047, 64, torch.float16, True, "nf4"), (2049, 32, torch.float32, True, "nf4"),
            (64 * 257 + 1, 64, torch.float32, True, "nf4"), (8191, 4096, torch.float32, False, "nf4"), (33 * 77, 128, torch.float16, True, "fp4"),
        )
    },
    benches={
        f"{N} x {K}{', double quant' if nested else ''}": dict(n=N * K, block_size=64, dtype=torch.bfloat16, nested=nested)
        for N, K in ((4096, 4096), (14336, 4096)) for nested in (False, True)
    },
)  # fmt: skip
