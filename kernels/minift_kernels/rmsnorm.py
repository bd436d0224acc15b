"""RMSNorm, forward and backward: every row divided by its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467).

    h = x q        q = 1 / sqrt(mean(x^2) + eps)        y = h w             x, y: (rows, C)     w: (C,)      q: one number a row
    dx = q (g - h mean(g h))        g = dy w            dw = sum over rows of dy h

Computed in float32 and rounded once. Bound: bytes. The forward pass reads x and writes y: 8192 rows of 4096 in bfloat16 take 31 us at
4.3 TB/s (chips.py); the backward pass reads x and dy and writes dx: 47 us. Plain torch moves each row several times; here a row stays in registers
from its one load to its one store, which is all there is to win.

Forward: one program, one row. Backward: dx needs one row, but dw needs all of them. Each program walks over every P-th row, keeps its own
sum of dy h in registers and writes it to a line of a (P, C) table; torch adds the P lines up. No atomics, so the same input gives the same
bits. Wider rows than 8,192 are served, but the backward pass then spills registers (88 bytes a thread at 16,384 on sm80): split the row there.
Left out: LayerNorm's mean; the residual added on the way.
Proved in tests/kernels/test_registry.py and tests/kernels/test_rmsnorm.py."""

import importlib.util

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import can_launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def forward_kernel(x, w, y, q, C, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)                                               # 2^31 numbers are 512k rows of 4096: no int32 here
    column = tl.arange(0, BLOCK)                                                      # BLOCK: the power of two at or above C
    there = column < C
    value = tl.load(x + row * C + column, mask=there, other=0.0).to(tl.float32)       # beyond C: 0, which adds nothing to the sum
    scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / C + eps)
    tl.store(q + row, scale)                                                          # 4 bytes a row save the backward pass a sum
    gain = tl.load(w + column, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * C + column, value * scale * gain, mask=there)


@triton.jit
def backward_kernel(dy, x, w, q, dx, partial, rows, C, BLOCK: tl.constexpr):
    first = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    there = column < C
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(first, rows, tl.num_programs(0)):                             # rows first, first + P, first + 2 P ...
        row = tl.cast(number, tl.int64)
        scale = tl.load(q + row)
        h = tl.load(x + row * C + column, mask=there, other=0.0).to(tl.float32) * scale
        slope = tl.load(dy + row * C + column, mask=there, other=0.0).to(tl.float32)
        g = slope * tl.load(w + column, mask=there, other=0.0).to(tl.float32)         # from L1 every time: kept, it would cost registers
        tl.store(dx + row * C + column, scale * (g - h * (tl.sum(g * h, axis=0) / C)), mask=there)
        sums += slope * h
    tl.store(partial + first.to(tl.int64) * C + column, sums, mask=there)


def config(C: int) -> tuple[int, int]:
    """BLOCK and warps for rows of this width: 16 numbers a thread are two 128-bit loads of bfloat16."""
    block = triton.next_power_of_2(C)
    return block, min(16, max(1, block // 512))


@torch.library.custom_op("minift::rms_norm", mutates_args=())
def rms_norm_with_scale(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y like x, q: (rows,) float32): what `rms_norm` returns and what its backward pass needs."""
    if x.shape[-1:] != w.shape:
        raise ValueError(f"rmsnorm: x is {tuple(x.shape)} and w {tuple(w.shape)}: wanted one gain for each of x's last axis")
    flat = x.reshape(-1, len(w)).contiguous()
    if not flat.numel() or not can_launch("rmsnorm", x, w, dtypes=DTYPES):
        return tuple(t.clone() for t in reference_with_scale(x, w, eps))              # an operator's results must be new tensors
    y, q = torch.empty_like(flat), torch.empty(len(flat), dtype=torch.float32, device=x.device)
    BLOCK, warps = config(len(w))
    forward_kernel[(len(flat),)](flat, w.contiguous(), y, q, len(w), eps, BLOCK=BLOCK, num_warps=warps)
    return y.view(x.shape), q


@rms_norm_with_scale.register_fake
def _(x, w, eps):
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.numel() // max(1, len(w)), dtype=wide)


@torch.library.custom_op("minift::rms_norm_backward", mutates_args=())
def rms_norm_backward(dy: Tensor, x: Tensor, w: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(dx like x, dw like w)."""
    C = len(w)
    dy, flat = dy.reshape(-1, C).contiguous(), x.reshape(-1, C).contiguous()
    if not flat.numel() or not can_launch("rmsnorm", x, w, dtypes=DTYPES):
        h, slope, gain = flat.to(q.dtype) * q[:, None], dy.to(q.dtype), w.to(q.dtype)
        g = slope * gain
        dx = q[:, None] * (g - h * (g * h).mean(1, keepdim=True))
        return dx.to(x.dtype).view(x.shape), (slope * h).sum(0).to(w.dtype)
    programs = min(len(flat), 2 * torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 4)
    dx, partial = torch.empty_like(flat), torch.empty(programs, C, dtype=torch.float32, device=x.device)
    BLOCK, warps = config(C)
    backward_kernel[(programs,)](dy, flat, w.contiguous(), q, dx, partial, len(flat), C, BLOCK=BLOCK, num_warps=warps)
    return dx.view(x.shape), partial.sum(0).to(w.dtype)


@rms_norm_backward.register_fake
def _(dy, x, w, q):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(w, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output) -> None:
    x, w, _ = inputs
    ctx.save_for_backward(x, w, output[1])
    ctx.mark_non_differentiable(output[1])


def _back(ctx, dy, _):
    return *rms_norm_backward(dy, *ctx.saved_tensors), None


rms_norm_with_scale.register_autograd(_back, setup_context=_keep)


def rms_norm(x: Tensor, w: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) * w over the last axis, shape and dtype of x."""
    return rms_norm_with_scale(x, w, eps)[0]


def reference_with_scale(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    q = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)                       # (..., 1)
    return (wide * q * w.to(wide.dtype)).to(x.dtype), q.flatten()


def rms_norm_reference(x: Tensor, w: Tensor, eps: float = 1e-6) -> Tensor:
    return reference_with_scale(x, w, eps)[0]


def make(device: str, seed: int, rows: int, C: int, dtype: torch.dtype) -> dict:
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(rows, C, device=device, generator=draw) * 3
    return dict(x=x.to(dtype), w=torch.randn(C, device=device, generator=draw).to(dtype), eps=1e-6)


def work(rows: int, C: int, dtype: torch.dtype) -> Work:
    """Of the forward pass; the backward pass moves half as much again."""
    return Work((2 * rows * C + C) * dtype.itemsize, 4 * rows * C)


def builds() -> list[Build]:
    made = []
    wide = {"sm80": ("LDG.E.128", "STG.E.128"), "sm90": ("LDG.E.128", "STG.E.128")}
    for C in (4096, 8192):
        BLOCK, warps = config(C)
        numbers = dict(x=torch.bfloat16, w=torch.bfloat16, q=torch.float32, C=C, BLOCK=BLOCK)
        made += [
            Build(f"forward, C {C}", forward_kernel, {**numbers, "y": torch.bfloat16, "eps": 1e-6}, num_warps=warps, expect=wide),
            Build(f"backward, C {C}", backward_kernel, {**numbers, "dy": torch.bfloat16, "dx": torch.bfloat16, "partial": torch.float32,
                                                        "rows": 8192}, num_warps=warps, expect=wide),
        ]  # fmt: skip
    return made


def liger(x: Tensor, w: Tensor, eps: float):
    if not x.is_cuda or importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers.functional import liger_rms_norm

    return lambda: liger_rms_norm(x, w, eps)


def compiled(x: Tensor, w: Tensor, eps: float):
    function = torch.compile(rms_norm_reference)
    return lambda: function(x, w, eps)


KERNEL = Kernel(
    name="rmsnorm", op=rms_norm, reference=rms_norm_reference, make=make, work=work, builds=builds, differentiable=("x", "w"),
    tests={
        f"{rows} rows of {C}, {str(dtype)[6:]}": dict(rows=rows, C=C, dtype=dtype)
        for rows, C, dtype in ((1, 1, torch.float32), (3, 33, torch.float16), (9, 127, torch.float32), (4, 128, torch.float16),
                               (2, 1025, torch.float32), (13, 640, torch.float16))
    },
    benches={f"{rows} x {C}": dict(rows=rows, C=C, dtype=torch.bfloat16) for rows, C in ((8192, 4096), (8192, 8192), (16, 4096))},
    peers={
        "torch": lambda x, w, eps: lambda: F.rms_norm(x, w.shape, w, eps),
        "torch.compile": compiled,
        "liger": liger,
    },
)  # fmt: skip
