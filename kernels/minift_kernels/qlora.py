"""The QLoRA linear: a frozen weight in 4 bits and a low-rank change beside it (Dettmers et al. 2023, arXiv:2305.14314).

    y = x WT + s low BT        low = x AT                       x: (T, K)    W: (N, K), 4 bits    A: (r, K)    B: (N, r)    y: (T, N)
    dx = dy W + s (dy B) A     dA = s (dy B)T x     dB = s dyT low

W is dequantized into a scratch matrix just before its product, and again in the backward pass: nothing of its size is kept between.
At 8192 tokens that costs 3 % of the product (34 of 1221 us for 14336 x 4096, both bounds of an H200 by chips.py: computed, not measured); a
product that decodes 4 bits inside repeats the decoding for every tile of x, and by gemm_large.py's count decodes longer than it multiplies.

The costly part is elsewhere: as written, y passes through memory twice more to have s low BT added (by the bytes, 10 % of the product; as
peft writes it, with scaling and casts, 28 %). Folded into the product it costs a copy of x instead:

    y = [x, low] [W, s B]T                 (T, K + r) (N, K + r)T         where N > K: x is the smaller of the two
    dx = [dy, s dy B] [W; A]               (T, N + r) (N + r, K)          where K > N: dy is the smaller

The extra columns are padded to 8 with zeros, so rows stay 16-byte aligned; the kernel here dequantizes into such a matrix directly.
Where the other one is smaller, addmm adds in place. Left out: a bias (add it), dropout before A, several adapters.
Proved in tests/kernels/test_registry.py and tests/kernels/test_qlora.py."""

import importlib.util

import torch
import triton
import triton.language as tl
from torch import Tensor

from minift_kernels.dequantize import dequantize_4bit, dequantize_reference, load_absmax
from minift_kernels.dequantize import make as make_weight
from minift_kernels.registry import Build, Kernel, Work
from minift_kernels.runtime import can_launch
from minift_kernels.weight import check_weight

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORDS = 256
"""Words of 8 weights in a program of 4 warps."""


@triton.jit
def dequantize_rows_kernel(
    packed, absmax, nested_absmax, nested_map, offset, code_map, out, words, stride,
    K: tl.constexpr, BLOCK_SIZE: tl.constexpr, NESTED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Row n of W to out + n * stride. A word, 8 weights, lies in one row since 8 divides K, though a block of 64 need not."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    there, eight = word < words, tl.arange(0, 8)
    codes = tl.load(packed + word, mask=there, other=0)                               # (WORDS,) int32 of 8 codes each
    code = (codes[:, None] >> 4 * (eight ^ 1)[None, :]) & 15                          # (WORDS, 8): the high nibble of each byte comes first
    values = tl.reshape(tl.gather(tl.load(code_map + tl.arange(0, 16)), tl.reshape(code, (8 * WORDS,)), 0), (WORDS, 8))
    a = load_absmax(absmax, nested_absmax, nested_map, offset, word // (BLOCK_SIZE // 8), there, NESTED)
    place = word // (K // 8) * stride + word % (K // 8) * 8
    tl.store(out + place[:, None] + eight[None, :], values * a[:, None], mask=there[:, None])


def dequantize_into(out: Tensor, packed, absmax, code_map, block_size, nested_absmax=None, nested_map=None, offset=None) -> None:
    """W -> out, (N, K), whose rows may stand apart."""
    N, K = out.shape
    ready = out.stride(1) == 1 and out.stride(0) % 8 == 0 and K % 8 == 0 and block_size % 8 == 0 and packed.data_ptr() % 4 == 0
    if not ready or not can_launch("qlora", packed, out, dtypes=DTYPES):
        out.copy_(dequantize_4bit(packed, absmax, code_map, N * K, block_size, out.dtype, nested_absmax, nested_map, offset).view(N, K))
        return
    nested = (absmax, absmax, absmax) if nested_absmax is None else (nested_absmax, nested_map, offset)    # pointers that are never followed
    dequantize_rows_kernel[(triton.cdiv(N * K, 8 * WORDS),)](
        packed.view(torch.int32), absmax, *nested, code_map, out, N * K // 8, out.stride(0),
        K=K, BLOCK_SIZE=block_size, NESTED=nested_absmax is not None, WORDS=WORDS, num_warps=4)  # fmt: skip


def check(x, packed, absmax, code_map, A, B, block_size, nested_absmax, nested_map, offset) -> None:
    (r, K), (N, r_of_B) = A.shape, B.shape
    if x.shape[-1] != K or r != r_of_B:
        raise ValueError(f"qlora: x is {tuple(x.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}: wanted (..., K), (r, K), (N, r)")
    check_weight("qlora", (N, K), packed, absmax, code_map, block_size, nested_absmax, nested_map, offset)


def beside(left: Tensor, right: Tensor) -> Tensor:
    """(T, K), (T, r) -> (T, K + r up to a multiple of 8), zeros in the rest: [x, low]."""
    K, r = left.shape[1], right.shape[1]
    both = torch.empty(len(left), K + -(-r // 8) * 8, dtype=left.dtype, device=left.device)
    both[:, :K], both[:, K : K + r], both[:, K + r :] = left, right, 0
    return both


@torch.library.custom_op("minift::qlora", mutates_args=())
def qlora_with_low(
    x: Tensor, packed: Tensor, absmax: Tensor, code_map: Tensor, A: Tensor, B: Tensor, scale: float, block_size: int,
    nested_absmax: Tensor | None = None, nested_map: Tensor | None = None, offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y, low): what `qlora_linear` returns and what its backward pass needs."""
    check(x, packed, absmax, code_map, A, B, block_size, nested_absmax, nested_map, offset)
    (r, K), N = A.shape, len(B)
    weight = packed, absmax, code_map, block_size, nested_absmax, nested_map, offset
    flat, A, B = x.reshape(-1, K), A.to(x.dtype), B.to(x.dtype)
    low = flat @ A.T                                                                  # (T, r)
    if N > K:
        W = torch.empty(N, K + -(-r // 8) * 8, dtype=x.dtype, device=x.device)
        dequantize_into(W[:, :K], *weight)
        W[:, K : K + r], W[:, K + r :] = scale * B, 0
        y = beside(flat, low) @ W.T
    else:
        W = torch.empty(N, K, dtype=x.dtype, device=x.device)
        dequantize_into(W, *weight)
        y = (flat @ W.T).addmm_(low, B.T, alpha=scale)
    return y.view(*x.shape[:-1], N), low


@qlora_with_low.register_fake
def _(x, packed, absmax, code_map, A, B, scale, block_size, nested_absmax=None, nested_map=None, offset=None):
    return x.new_empty(*x.shape[:-1], len(B)), x.new_empty(x.numel() // x.shape[-1], len(A))


@torch.library.custom_op("minift::qlora_backward", mutates_args=())
def qlora_backward(
    dy: Tensor, x: Tensor, low: Tensor, packed: Tensor, absmax: Tensor, code_map: Tensor, A: Tensor, B: Tensor, scale: float, block_size: int,
    nested_absmax: Tensor | None, nested_map: Tensor | None, offset: Tensor | None, for_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dA, dB); dx is empty unless `for_x`: the first layer's x asks for none."""
    (r, K), N = A.shape, len(B)
    weight = packed, absmax, code_map, block_size, nested_absmax, nested_map, offset
    dy, flat = dy.reshape(-1, N), x.reshape(-1, K)
    dlow = scale * (dy @ B.to(x.dtype))                                               # (T, r)
    if not for_x:
        dx = x.new_empty(0)
    elif K > N:
        W = torch.empty(N + -(-r // 8) * 8, K, dtype=x.dtype, device=x.device)
        dequantize_into(W[:N], *weight)
        W[N : N + r], W[N + r :] = A, 0
        dx = (beside(dy, dlow) @ W).view(x.shape)
    else:
        W = torch.empty(N, K, dtype=x.dtype, device=x.device)
        dequantize_into(W, *weight)
        dx = (dy @ W).addmm_(dlow, A.to(x.dtype)).view(x.shape)
    return dx, (dlow.T @ flat).to(A.dtype), (scale * (dy.T @ low)).to(B.dtype)


@qlora_backward.register_fake
def _(dy, x, low, packed, absmax, code_map, A, B, scale, block_size, nested_absmax, nested_map, offset, for_x):
    return x.new_empty(x.shape if for_x else 0), A.new_empty(A.shape), B.new_empty(B.shape)


def _keep(ctx, inputs, output) -> None:
    x, packed, absmax, code_map, A, B, ctx.scale, ctx.block_size, *nested = inputs
    nested = nested + [None] * (3 - len(nested))
    ctx.save_for_backward(x, output[1], packed, absmax, code_map, A, B, *nested)
    ctx.mark_non_differentiable(output[1])


def _back(ctx, dy, _):
    *kept, nested_absmax, nested_map, offset = ctx.saved_tensors
    dx, dA, dB = qlora_backward(dy, *kept, ctx.scale, ctx.block_size, nested_absmax, nested_map, offset, ctx.needs_input_grad[0])
    return dx if ctx.needs_input_grad[0] else None, None, None, None, dA, dB, None, None, None, None, None


qlora_with_low.register_autograd(_back, setup_context=_keep)


def qlora_linear(x, packed, absmax, code_map, A, B, scale: float, block_size: int = 64, nested_absmax=None, nested_map=None, offset=None) -> Tensor:
    """(..., K) -> (..., N) in x's dtype. The 4-bit weight as `dequantize_4bit` takes it; A: (r, K) and B: (N, r) in any floating-point dtype."""
    return qlora_with_low(x, packed, absmax, code_map, A, B, scale, block_size, nested_absmax, nested_map, offset)[0]


def qlora_reference(x, packed, absmax, code_map, A, B, scale, block_size=64, nested_absmax=None, nested_map=None, offset=None) -> Tensor:
    N, K = len(B), A.shape[1]
    W = dequantize_reference(packed, absmax, code_map, N * K, block_size, x.dtype, nested_absmax, nested_map, offset).view(N, K)
    return x @ W.T + scale * (x @ A.to(x.dtype).T) @ B.to(x.dtype).T


def make(device: str, seed: int, T: int, N: int, K: int, r: int, dtype: torch.dtype, nested: bool = False, block_size: int = 64) -> dict:
    draw = torch.Generator(device).manual_seed(seed + 100)
    normal = lambda *shape: torch.randn(shape, device=device, generator=draw)
    weight = make_weight(device, seed, N * K, block_size, dtype, nested)
    del weight["n"], weight["dtype"]
    return dict(x=normal(T, K).to(dtype), **weight, A=(normal(r, K) / K**0.5).to(dtype), B=normal(N, r).to(dtype), scale=1.5)


def work(T: int, N: int, K: int, r: int, dtype: torch.dtype, nested: bool = False, block_size: int = 64) -> Work:
    """Of the forward pass."""
    weight = N * K * (0.5 + (1 + 4 / 256 if nested else 4) / block_size)
    return Work(weight + (T * (K + N) + r * (K + N)) * dtype.itemsize, 2 * T * N * K + 2 * T * r * (N + K))


def builds() -> list[Build]:
    pointers = dict(packed=torch.int32, nested_absmax=torch.float32, nested_map=torch.float32, offset=torch.float32, code_map=torch.float32)
    return [
        Build(
            f"bf16, {'double quant' if nested else 'fp32 absmax'}, rows of {K} + 16", dequantize_rows_kernel,
            {**pointers, "absmax": torch.uint8 if nested else torch.float32, "out": torch.bfloat16, "words": 14336 * 4096 // 8, "stride": K + 16,
             "K": K, "BLOCK_SIZE": 64, "NESTED": nested, "WORDS": WORDS},
            weights=8 * WORDS, expect={"sm80": ("STG.128",), "sm90": ("STG.128",), "gfx942": ("buffer_store_dwordx4",)},
        )
        for K, nested in ((4096, False), (4096, True), (11008, True))
    ]  # fmt: skip


def two_addmm(x, packed, absmax, code_map, A, B, scale, block_size=64, **nested):
    """Our dequantization, and the low-rank terms added by addmm in either shape."""
    def run():
        W = dequantize_4bit(packed, absmax, code_map, len(B) * A.shape[1], block_size, x.dtype, **nested).view(len(B), -1)
        return (x @ W.T).addmm_(x @ A.T, B.T, alpha=scale)

    return run


def bitsandbytes_unfused(x, packed, absmax, code_map, A, B, scale, block_size=64, **nested):
    """bitsandbytes' 4-bit linear and a LoRA beside it, written as peft writes it."""
    if nested or importlib.util.find_spec("bitsandbytes") is None:
        return None
    import bitsandbytes as bnb

    state = bnb.functional.QuantState(absmax, shape=torch.Size((len(B), A.shape[1])), code=code_map, blocksize=block_size, quant_type="nf4",
                                      dtype=x.dtype)  # fmt: skip
    weight = packed.view(-1, 1)
    return lambda: bnb.matmul_4bit(x, weight.t(), quant_state=state) + torch.nn.functional.linear(torch.nn.functional.linear(x, A), B) * scale


KERNEL = Kernel(
    name="qlora", op=qlora_linear, reference=qlora_reference, make=make, work=work, builds=builds, differentiable=("x", "A", "B"),
    tests={
        f"{T} x {K} -> {N}, r {r}, {str(dtype)[6:]}{', double quant' if nested else ''}": dict(T=T, N=N, K=K, r=r, dtype=dtype, nested=nested)
        for T, N, K, r, dtype, nested in (
            (5, 200, 72, 3, torch.float32, True), (3, 40, 136, 8, torch.float32, False), (7, 96, 64, 4, torch.float16, False),
            (2, 24, 24, 1, torch.float32, False), (4, 9, 104, 16, torch.float16, True),
        )
    },
    benches={
        f"{T} x {K} -> {N}, r 16": dict(T=T, N=N, K=K, r=16, dtype=torch.bfloat16)
        for T, N, K in ((8192, 14336, 4096), (8192, 4096, 14336), (8192, 4096, 4096), (2048, 14336, 4096))
    },
    peers={"two addmm": two_addmm, "bitsandbytes + unfused LoRA": bitsandbytes_unfused},
)  # fmt: skip
