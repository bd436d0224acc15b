"""What the products with a 4-bit weight share: what they refuse, the reference, the cases, and whom they are timed beside.

    y = x W^T                x: (M, K)      W: (N, K) in 4 bits, its values as in dequantize.py      y: (M, N), in x's dtype

gemv.py, gemm.py and gemm_large.py differ in the kernel and in the rows M they are for; the arguments are the same. No rows make an empty y,
as with nn.Linear. None of them has a gradient, and the backward pass says so. Proved in tests/kernels/test_gemm.py and test_gemv.py."""

import torch
from torch import Tensor

from minift_kernels.dequantize import dequantize_4bit, dequantize_reference
from minift_kernels.dequantize import make as make_weight
from minift_kernels.registry import Work
from minift_kernels.runtime import can_launch
from minift_kernels.weight import NESTED_BLOCK, check_weight


def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def check(kernel: str, most: int, x, packed, absmax, code_map, N, block_size, nested_absmax, nested_map, offset) -> None:
    """Refuse what does not fit together."""
    if x.ndim != 2 or not x.is_floating_point() or x.shape[1] < 1 or N < 1:
        raise ValueError(f"{kernel}: x is {x.dtype} of shape {tuple(x.shape)} and N {N}, wanted floating-point rows (M, K) and N from 1 on")
    if len(x) > most:
        raise ValueError(f"{kernel} serves 1 to {most} rows of x, found {len(x)}: for more, dequantize and let torch multiply")
    check_weight(kernel, (N, x.shape[1]), packed, absmax, code_map, block_size, nested_absmax, nested_map, offset)


def no_gradient(kernel: str):
    """The backward pass of a product that has none."""

    def backward(ctx, dy):
        raise ValueError(f"{kernel}_4bit has no gradient: train with minift_kernels.qlora.qlora_linear, "
                         "or dequantize W (dequantize_4bit) and let torch multiply")  # fmt: skip

    return backward


def servable(kernel: str, x: Tensor, packed: Tensor, absmax: Tensor) -> bool:
    """May a kernel that walks W by rows of bytes be launched? Odd K is said and left to the reference."""
    unless = f"K is {x.shape[1]}, odd: it serves rows of whole bytes" if x.shape[1] % 2 else ""
    return can_launch(kernel, x, packed, absmax, dtypes=(torch.float32, torch.float16, torch.bfloat16), unless=unless)


def nearest(name: str) -> str:
    """Whose configuration to take: that of the nearest chip in registry.CHIPS ("sm89" -> "sm80"; sm90 in the interpreter)."""
    return "gfx942" if name.startswith("gfx") else "sm80" if name and int(name[2:]) < 90 else "sm90"


def matmul_reference(x, packed, absmax, code_map, N, block_size, nested_absmax=None, nested_map=None, offset=None) -> Tensor:
    """Dequantize to x's dtype, multiply in float32 (float64 if x is), round once."""
    K, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    W = dequantize_reference(packed, absmax, code_map, N * K, block_size, x.dtype, nested_absmax, nested_map, offset).view(N, K)
    return (x.to(wide) @ W.to(wide).T).to(x.dtype)


def make(device: str, seed: int, M: int, N: int, K: int, dtype: torch.dtype, block_size: int = 64, nested: bool = False, scheme: str = "nf4") -> dict:
    weight = make_weight(device, seed, N * K, block_size, dtype, nested, scheme)
    del weight["n"], weight["dtype"]
    x = torch.randn(M, K, device=device, generator=torch.Generator(device).manual_seed(seed)).to(dtype)
    return dict(x=x, N=N, **weight)


def work(M: int, N: int, K: int, dtype: torch.dtype, block_size: int = 64, nested: bool = False, scheme: str = "nf4") -> Work:
    absmax = 1 + 4 / NESTED_BLOCK if nested else 4
    return Work(N * K * (0.5 + absmax / block_size) + (M * K + M * N) * dtype.itemsize, 2 * M * N * K)


def dense(arguments: dict) -> Tensor:
    """W (N, K), in x's dtype."""
    weight = {name: value for name, value in arguments.items() if name not in ("x", "N")}
    K = arguments["x"].shape[1]
    return dequantize_4bit(**weight, n=arguments["N"] * K, dtype=arguments["x"].dtype).view(arguments["N"], K)


def cublas(**arguments):
    W = dense(arguments)
    return lambda: arguments["x"] @ W.T


def dequantize_then_cublas(**arguments):
    return lambda: arguments["x"] @ dense(arguments).T


def bitsandbytes(x, packed, absmax, code_map, N, block_size, nested_absmax=None, nested_map=None, offset=None):
    try:
        import bitsandbytes as bnb
    except ImportError:
        return None
    from bitsandbytes.functional import QuantState

    scheme = "fp4" if code_map[0] == 0 else "nf4"
    outer = None if nested_absmax is None else QuantState(absmax=nested_absmax, code=nested_map, blocksize=NESTED_BLOCK, dtype=torch.float32)
    state = QuantState(absmax=absmax, shape=torch.Size((N, x.shape[1])), code=code_map, blocksize=block_size, quant_type=scheme, dtype=x.dtype,
                       offset=offset, state2=outer)  # fmt: skip
    call = lambda: bnb.matmul_4bit(x, packed.view(-1, 1).t(), state)
    try:
        call()
    except (RuntimeError, NotImplementedError):
        return None
    return call


PEERS = {"cuBLAS bf16": cublas, "dequantize + cuBLAS": dequantize_then_cublas, "bitsandbytes": bitsandbytes}

POINTERS = dict(x=torch.bfloat16, packed=torch.uint8, nested_absmax=torch.float32, nested_map=torch.float32, offset=torch.float32,
                code_map=torch.float32, out=torch.bfloat16)  # fmt: skip
