"""Dequantize 4 bits: two codes in a byte -> two numbers.

    w[2i], w[2i+1] = map[p[i] >> 4] a, map[p[i] & 15] a              p: (n/2,) bytes       a: absmax of the block of w[2i]
    a = absmax[b]                                                     b = 2i / block_size
    a = nested_map[absmax[b]] nested_absmax[b / 256] + offset         where absmax itself is in 8 bits ("double quantization")

Computed in float32 and rounded once, so the values equal bitsandbytes' to the bit (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).
Bound: bytes. n weights to bf16 move n (0.5 + 2 + 4 / 64) bytes, or n (0.5 + 2 + 1 / 64 + 4 / 16384) with double quantization; 14336 x 4096
takes 34 us at 4.3 TB/s. The look-up decides whether that is reached: a tree of 15 selects costs about 26 instructions a weight, more than
the time in which the bytes arrive; a load from a 64-byte table that stays in L1 costs about 10.
One kernel where others take three (8-bit absmax -> absmax, add the offset, dequantize): the absmax never goes through memory.
Proved in tests/kernels/test_registry.py and tests/parity/test_bitsandbytes.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import can_launch, require

NESTED_BLOCK = 256
"""Blocks whose absmax share one nested absmax."""


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
    BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BYTES                                     # this program's bytes: first ... first + BYTES
    byte = first + tl.arange(0, BYTES)
    there = byte < (n + 1) // 2
    codes = tl.load(packed + byte, mask=there, other=0).to(tl.int32)
    a = load_absmax(absmax, nested_absmax, nested_map, offset, (2 * byte) // BLOCK_SIZE, there, NESTED)
    high = tl.load(code_map + (codes >> 4)) * a                                       # the first of each pair
    low = tl.load(code_map + (codes & 15)) * a
    place = 2 * first + tl.arange(0, 2 * BYTES)
    tl.store(out + place, tl.interleave(high, low), mask=place < n)


@torch.library.custom_op("minift::dequantize_4bit", mutates_args=())
def dequantize_4bit(
    packed: Tensor, absmax: Tensor, code_map: Tensor, n: int, block_size: int, dtype: torch.dtype,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(n,) numbers in `dtype`. packed: (ceil(n/2),) uint8; code_map: (16,) float32; absmax: (blocks,) float32, or uint8 with
    nested_absmax (ceil(blocks/256),) float32, nested_map (256,) float32 and offset () float32."""
    require("dequantize", packed=(packed, torch.uint8), absmax=(absmax, torch.float32 if nested_absmax is None else torch.uint8),
            code_map=(code_map, torch.float32), nested_absmax=(nested_absmax, torch.float32), nested_map=(nested_map, torch.float32),
            offset=(offset, torch.float32))  # fmt: skip
    if dtype not in (torch.float32, torch.float16, torch.bfloat16) or not can_launch("dequantize", packed, absmax):
        return dequantize_reference(packed, absmax, code_map, n, block_size, dtype, nested_absmax, nested_map, offset)
    out = torch.empty(n, dtype=dtype, device=packed.device)
    nested = nested_absmax is not None
    BYTES = 1024
    grid = (triton.cdiv(packed.numel(), BYTES),)
    none = absmax                                                                     # a pointer that is never followed
    dequantize_kernel[grid](
        packed, absmax, nested_absmax if nested else none, nested_map if nested else none, offset if nested else none, code_map, out, n,
        BLOCK_SIZE=block_size, NESTED=nested, BYTES=BYTES, num_warps=4,
    )  # fmt: skip
    return out


@dequantize_4bit.register_fake
def _(packed, absmax, code_map, n, block_size, dtype, nested_absmax=None, nested_map=None, offset=None):
    return packed.new_empty(n, dtype=dtype)


def dequantize_reference(packed, absmax, code_map, n, block_size, dtype, nested_absmax=None, nested_map=None, offset=None) -> Tensor:
    """The same in plain torch, a line for each line of the maths."""
    if nested_absmax is not None:
        absmax = nested_map[absmax.long()] * nested_absmax.repeat_interleave(NESTED_BLOCK)[: len(absmax)] + offset
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n]              # (n,)
    return (code_map[codes.long()] * absmax.repeat_interleave(block_size)[:n]).to(dtype)


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
    pointers = dict(packed=torch.uint8, nested_absmax=torch.float32, nested_map=torch.float32, offset=torch.float32, code_map=torch.float32)
    return [
        Build(
            f"bf16, {'double quant' if nested else 'fp32 absmax'}", dequantize_kernel,
            {**pointers, "absmax": torch.uint8 if nested else torch.float32, "out": torch.bfloat16, "n": 14336 * 4096,
             "BLOCK_SIZE": 64, "NESTED": nested, "BYTES": 1024},
            weights=2048, expect={"sm90": ("STG.E.128",), "sm80": ("STG.E.128",)},
        )
        for nested in (False, True)
    ]  # fmt: skip


KERNEL = Kernel(
    name="dequantize", op=dequantize_4bit, reference=dequantize_reference, make=make, work=work, builds=builds, exact=True,
    tests={
        f"{n} values, block {block}, {str(dtype)[6:]}{', double quant' if nested else ''}{', fp4' if scheme == 'fp4' else ''}":
            dict(n=n, block_size=block, dtype=dtype, nested=nested, scheme=scheme)
        for n, block, dtype, nested, scheme in (
            (1, 64, torch.float32, False, "nf4"), (2, 64, torch.float16, False, "nf4"), (63, 64, torch.float32, True, "nf4"),
            (65, 64, torch.float32, False, "fp4"), (2047, 64, torch.float16, True, "nf4"), (2049, 32, torch.float32, True, "nf4"),
            (64 * 257 + 1, 64, torch.float32, True, "nf4"), (8191, 4096, torch.float32, False, "nf4"), (33 * 77, 128, torch.float16, True, "fp4"),
        )
    },
    benches={
        f"{N} x {K}{', double quant' if nested else ''}": dict(n=N * K, block_size=64, dtype=torch.bfloat16, nested=nested)
        for N, K in ((4096, 4096), (14336, 4096)) for nested in (False, True)
    },
)  # fmt: skip
