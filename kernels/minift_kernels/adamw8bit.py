"""AdamW whose two averages take 8 bits a number, all tensors in one launch (Dettmers et al. 2021, arXiv:2110.02861).

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2                          g: gradient, n numbers as p, the weights
    p = (1 - lr wd) p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)          t: the step, from 1

Between steps m and v are codes, in blocks of 256 with one float32 absmax each; minift_kernels/averages.py says how and is the reference.
Everything between is float32. bfloat16 weights and gradients move 2 + 2 + 2 bytes, codes 2 + 2, absmax 4 * 4 / 256: 10.06 a number, so 1e9
weights take 2340 us at 4.3 TB/s (chips.py); float32 averages make it 22.

Which of 256 values is nearest? A binary search takes 8 dependent loads. But the map is 7 decades, decade i cut into 2^i slices (2^(i+1)
unsigned), so |x| -> place in the map is piecewise linear, and concave: the smallest of 7 straight lines. It is right to within half a
slice, and one comparison with the exact boundary settles the rest, bit for bit as `torch.bucketize` over all boundaries.
Even so a number takes about 116 instructions (counted in sm90 code of Triton 3.7.1; 129 with the branches seldom taken), and in the time its
bytes take an H200 has room for 69: instructions bound this kernel. The dearest are the 14 lines of the two look-ups, and the
addresses of four table loads.
Many small tensors (LoRA's) would be many small launches. Here one launch serves them all: a table says which tensor a program works on.
Left out: the maps in shared memory instead of L1, which only a GPU can judge.
Proved in tests/kernels/test_registry.py, tests/kernels/test_adamw8bit.py and tests/parity/test_bitsandbytes_optim.py."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.averages import BLOCK, adamw8bit_reference, boundaries, encode, rates_of
from minift_kernels.codes import dynamic_map
from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import can_launch, require

ROWS = 4
"""Blocks of one program."""
TRITON = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def nearest(x, bounds, SIGNED: tl.constexpr):
    """Codes of x in [-1, 1]. Decade i begins at 10^(i-7) and has `slices` 2^i or 2^(i+1): line i is slices * (1 + (10^(7-i) |x| - 1) / 9)."""
    size = tl.abs(x)
    place = tl.full(x.shape, 256.0, tl.float32)
    slices = 1.0 if SIGNED else 2.0
    tens = 1e7
    for _ in tl.static_range(7):
        place = tl.minimum(place, size * (slices * tens / 9) + slices * 8 / 9)
        slices, tens = slices * 2, tens / 10
    if SIGNED:                                                                        # 127 negative codes, zero is 127
        below = tl.maximum(place - 0.5, 0.0).to(tl.int32)                             # steps away from zero, or one less
        code = tl.where(x < 0, tl.maximum(126 - below, 0), tl.minimum(127 + below, 254))
    else:
        code = tl.minimum(tl.maximum(place - 1.5, 0.0).to(tl.int32), 254)
    return code + (x > tl.load(bounds + code)).to(tl.int32)


@triton.jit
def pointer(addresses, tensor, which: tl.constexpr, dtype: tl.constexpr):
    """The memory of one of the six tensors that belong to a parameter."""
    return tl.multiple_of(tl.load(addresses + tensor * 6 + which).to(tl.pointer_type(dtype)), 16)


@triton.jit
def adamw8bit_kernel(
    owner, first_block, sizes, addresses, rates, m_map, v_map, m_bounds, v_bounds, P: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tensor = tl.load(owner + program).to(tl.int64)
    n = tl.load(sizes + tensor)
    if EVEN:
        n = tl.multiple_of(n, 16)                                                     # then 16 numbers share a mask: loads of 128 bits
    block = tl.load(first_block + program) + tl.arange(0, ROWS)                       # (ROWS,) int64
    place = block[:, None] * 256 + tl.arange(0, 256)[None, :]                         # (ROWS, 256)
    there, real = place < n, block * 256 < n
    p_at, g_at = pointer(addresses, tensor, 0, P) + place, pointer(addresses, tensor, 1, G) + place
    m_at, v_at = pointer(addresses, tensor, 2, tl.uint8) + place, pointer(addresses, tensor, 4, tl.uint8) + place
    m_absmax, v_absmax = pointer(addresses, tensor, 3, tl.float32) + block, pointer(addresses, tensor, 5, tl.float32) + block
    rate = rates + tensor * 8
    beta1, rest1, beta2, rest2 = tl.load(rate), tl.load(rate + 1), tl.load(rate + 2), tl.load(rate + 3)
    unbias, eps, keep, minus_step = 1 / tl.load(rate + 4), tl.load(rate + 5), tl.load(rate + 6), tl.load(rate + 7)

    g = tl.load(g_at, mask=there, other=0.0).to(tl.float32)
    m = tl.load(m_map + tl.load(m_at, mask=there, other=0).to(tl.int32)) * tl.load(m_absmax, mask=real, other=0.0)[:, None]
    v = tl.load(v_map + tl.load(v_at, mask=there, other=0).to(tl.int32)) * tl.load(v_absmax, mask=real, other=0.0)[:, None]
    m = tl.where(there, tl.fma(g, rest1, m * beta1), 0.0)                             # past the end: nothing that an absmax could see
    v = tl.where(there, tl.fma(g * rest2, g, v * beta2), 0.0)
    p = tl.load(p_at, mask=there, other=0.0).to(tl.float32)
    tl.store(p_at, p * keep + minus_step * (m / (tl.sqrt(v) * unbias + eps)), mask=there)

    m_largest, v_largest = tl.max(tl.abs(m), axis=1), tl.max(v, axis=1)               # (ROWS,)
    tl.store(m_absmax, m_largest, mask=real)
    tl.store(v_absmax, v_largest, mask=real)
    one, least = tl.cast(1.0, tl.float32), tl.cast(1e-38, tl.float32)                 # a block of zeros is divided by something
    m_inverse, v_inverse = tl.div_rn(one, tl.maximum(m_largest, least)), tl.div_rn(one, tl.maximum(v_largest, least))
    tl.store(m_at, nearest(m * m_inverse[:, None], m_bounds, True).to(tl.uint8), mask=there)
    tl.store(v_at, nearest(v * v_inverse[:, None], v_bounds, False).to(tl.uint8), mask=there)


@functools.lru_cache(maxsize=16)
def table(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Program -> its tensor, program -> its first block, tensor -> its size. The same for every step of a training."""
    programs = torch.tensor([-(-n // (BLOCK * ROWS)) for n in sizes])
    owner = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), programs)
    before = torch.cumsum(programs, 0) - programs
    first_block = (torch.arange(len(owner)) - before[owner.long()]) * ROWS
    return owner.to(device), first_block.to(device), torch.tensor(sizes).to(device)


@torch.library.custom_op("minift::adamw8bit", mutates_args=("params", "m", "m_absmax", "v", "v_absmax"))
def adamw8bit(
    params: list[Tensor], grads: list[Tensor], m: list[Tensor], m_absmax: list[Tensor], v: list[Tensor], v_absmax: list[Tensor],
    rates: Tensor,
) -> None:  # fmt: skip
    """One step for all tensors, in place. params, grads: any shape, floating-point. m, v: codes, uint8, that shape; m_absmax, v_absmax:
    (ceil(n/256),) float32. rates: (tensors, 8) float32, a line of `rates_of` for each."""
    if not can_launch("adamw8bit", *params, *grads, *m, *m_absmax, *v, *v_absmax, dtypes=tuple(TRITON)):
        return adamw8bit_reference(params, grads, m, m_absmax, v, v_absmax, rates)
    device = params[0].device
    require("adamw8bit", rates=(rates, torch.float32))
    lists = list(zip(params, grads, m, m_absmax, v, v_absmax, strict=True))
    for p, g, m_codes, m_largest, v_codes, v_largest in lists:
        require("adamw8bit", params=(p, p.dtype), grads=(g, g.dtype), m=(m_codes, torch.uint8), m_absmax=(m_largest, torch.float32),
                v=(v_codes, torch.uint8), v_absmax=(v_largest, torch.float32))  # fmt: skip
        found, wanted = (g.shape, m_codes.numel(), v_codes.numel(), len(m_largest), len(v_largest)), (p.numel(), -(-p.numel() // BLOCK))
        if found != (p.shape, wanted[0], wanted[0], wanted[1], wanted[1]):
            raise ValueError(f"adamw8bit: beside a tensor of shape {tuple(p.shape)} stand {found}: wanted a gradient of its shape, a code for each "
                             f"number and {wanted[1]} absmax")  # fmt: skip
        if any(t.data_ptr() % 16 for t in (p, g, m_codes, m_largest, v_codes, v_largest)):
            raise ValueError("adamw8bit: a tensor begins at an address that is no multiple of 16: clone() a view before it becomes a parameter")
    maps = dynamic_map(True, device), dynamic_map(False, device), boundaries(True, device), boundaries(False, device)
    kinds = [(p.dtype, g.dtype, p.numel() % 16 == 0) for p, g in zip(params, grads)]  # a launch for each: in practice one
    for P, G, EVEN in dict.fromkeys(kinds):
        these = [i for i, kind in enumerate(kinds) if kind == (P, G, EVEN) and params[i].numel()]
        if not these:
            continue
        owner, first_block, sizes = table(tuple(params[i].numel() for i in these), device)
        addresses = torch.tensor([[t.data_ptr() for t in lists[i]] for i in these]).to(device)
        chosen = rates.to(device)[these] if len(these) < len(params) else rates.to(device)
        adamw8bit_kernel[(len(owner),)](
            owner, first_block, sizes, addresses, chosen, *maps, P=TRITON[P], G=TRITON[G], EVEN=EVEN, ROWS=ROWS, num_warps=4)


@adamw8bit.register_fake
def _(params, grads, m, m_absmax, v, v_absmax, rates):
    return None


def make(device: str, seed: int, sizes: tuple[int, ...], dtype: torch.dtype, step: int = 3) -> dict:
    draw = torch.Generator(device).manual_seed(seed)
    normal = lambda n: torch.randn(n, device=device, generator=draw)
    state = [(encode(normal(n) * 0.1, True), encode(normal(n).square() * 0.01, False)) for n in sizes]
    return dict(
        params=[normal(n).to(dtype) for n in sizes], grads=[(normal(n) * 0.1).to(dtype) for n in sizes],
        m=[m[0] for m, _ in state], m_absmax=[m[1] for m, _ in state], v=[v[0] for _, v in state], v_absmax=[v[1] for _, v in state],
        rates=torch.tensor([rates_of(step + i + seed, 1e-3 * (i + 1), (0.9, 0.99), 1e-8, 0.1) for i in range(len(sizes))], device=device),
    )  # fmt: skip


def work(sizes: tuple[int, ...], dtype: torch.dtype, step: int = 3) -> Work:
    return Work(sum(sizes) * (3 * dtype.itemsize + 4 + 16 / BLOCK), 16 * sum(sizes))


def builds() -> list[Build]:
    numbers = dict(owner=torch.int32, first_block=torch.int64, sizes=torch.int64, addresses=torch.int64, rates=torch.float32,
                   m_map=torch.float32, v_map=torch.float32, m_bounds=torch.float32, v_bounds=torch.float32, ROWS=ROWS)  # fmt: skip
    return [
        Build(f"{str(p)[6:]} weights, {str(g)[6:]} gradients", adamw8bit_kernel, {**numbers, "P": TRITON[p], "G": TRITON[g], "EVEN": True},
              expect={chip: ("LDG.E.64", "STG.E.64") for chip in ("sm80", "sm90")})
        for p, g in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16))
    ]  # fmt: skip


KERNEL = Kernel(
    name="adamw8bit", op=adamw8bit, reference=adamw8bit_reference, make=make, work=work, builds=builds,
    mutates=("params", "m", "m_absmax", "v", "v_absmax"),
    tests={
        f"{name}, {str(dtype)[6:]}": dict(sizes=sizes, dtype=dtype)
        for name, sizes, dtype in (
            ("one number", (1,), torch.float32), ("one block and one number", (257,), torch.float32), ("whole blocks", (1024,), torch.float32),
            ("five tensors", (1025, 3, 256, 4999, 255), torch.float32), ("two tensors", (2047, 769), torch.float16),
        )
    },
    benches={
        "1e8 numbers": dict(sizes=(25_000_000,) * 4, dtype=torch.bfloat16),
        "LoRA r 16 of 32 blocks": dict(sizes=(16 * 4096, 4096 * 16) * 128 + (16 * 4096, 14336 * 16) * 64 + (16 * 14336, 4096 * 16) * 32,
                                       dtype=torch.float32),
    },
)  # fmt: skip
