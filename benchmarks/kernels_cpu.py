"""What benchmarks/kernels.py can time without a GPU: minift's plain torch beside bitsandbytes' own CPU functions. CPU rows, no more.

NF4, block 64: a matrix that fits into the processor's cache, and one that does not. Packed bytes and values must agree first, to the bit; what
differs gets no time. docs/quant_cpu.md has more sizes, threads and the linears. About a minute on one core.
Proved in tests/benchmarks/test_kernels.py and, with bitsandbytes itself, tests/parity/test_kernels_cpu.py."""

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from benchmarks.intervals import faster
from benchmarks.measure import machine, take_turns
from minift import quant

SIDES = 1024, 4096


def needed_here(record: logging.LogRecord) -> bool:
    """Not what bitsandbytes says on import of a fused product that it gets from a package named kernels, and that no row here uses. In a
    checkout it takes the folder kernels/ for that package."""
    return "gemm_4bit_forward" not in record.getMessage()


def pairs(weight: Tensor) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Row -> (minift, bitsandbytes), both returning what must be equal."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(needed_here)
    from bitsandbytes import functional as theirs

    ours = quant.quantize(weight, "nf4", double_quant=False)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    return {
        "quantize": (
            lambda: quant.quantize(weight, "nf4", double_quant=False).packed.flatten(),
            lambda: theirs.quantize_4bit(weight, quant_type="nf4", blocksize=64)[0].flatten(),
        ),
        "dequantize": (lambda: quant.dequantize(ours), lambda: theirs.dequantize_4bit(packed, state)),
    }


def rows(rounds: int, sides: tuple[int, ...] = SIDES) -> Iterator[str]:
    """Lines to print."""
    on = machine()
    yield f"CPU rows, not the kernels: {on['cpu']}, {on['threads']} thread{'s' * (on['threads'] != 1)}, torch {on['torch']}, NF4"
    if find_spec("bitsandbytes") is None:
        yield "  bitsandbytes is not installed, so there is nothing to stand beside: pip install bitsandbytes"
        return
    for side in sides:
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
            for name, (ours, theirs) in pairs(weight).items():
                yield f"  {side} x {side} {name} {str(dtype)[6:]}: {compared(ours, theirs, rounds)}"
    yield "More sizes, threads and the linears: docs/quant_cpu.md"


def compared(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], rounds: int) -> str:
    if not torch.equal(ours(), theirs()):
        return "WRONG, the two differ; no time"
    seconds = take_turns({"minift": ours, "bitsandbytes": theirs}, rounds)
    times = " ms, ".join(f"{who} (CPU) {1000 * median(each):.2f}" for who, each in seconds.items())
    f = faster(seconds["minift"], seconds["bitsandbytes"])
    return f"{times} ms; minift is {f['median']:.2f}x ({f['low']:.2f} to {f['high']:.2f}) as fast"
