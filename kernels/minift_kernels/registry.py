"""What a kernel says of itself, once. Four things read it: the tests, the offline compile gate, the benchmark and `minift kernel NAME`.

    KERNEL = Kernel(name="dequantize", ...)          at the end of each kernel's file; `kernels()` collects them

Proved in tests/kernels/test_registry.py."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

import minift_kernels

CHIPS = ("sm80", "sm90", "gfx942")
"""What the compile gate compiles for: NVIDIA A100, H100 and H200, AMD MI300X."""


class Work(NamedTuple):
    """The least that a case must move and compute, whatever the program: each input read once, each output written once."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Build:
    """One compilation for the gate: what would be launched, without tensors."""

    name: str
    """"bf16, double quant": unique within the kernel."""
    function: Any
    """The @triton.jit function."""
    arguments: Mapping[str, Any]
    """Its arguments by name: a torch.dtype stands for a pointer to such (16-byte aligned), anything else for itself."""
    num_warps: int = 4
    num_stages: int = 3
    expect: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Chip -> instructions that must occur in its machine code ("HGMMA", "LDG.E.128")."""
    chips: tuple[str, ...] = CHIPS
    """Those it is for."""
    weights: int = 0
    """How many 4-bit weights one program decodes, to state instructions per weight; 0: not asked."""
    loop_weights: int = 0
    """Where the program has a loop: how many one turn of it decodes. Then the instructions of the loop are counted."""


@dataclass(frozen=True)
class Kernel:
    """One operation: what it computes, how it is checked, what bounds it."""

    name: str
    op: Callable
    """What users call. Returns a tensor or a tuple of tensors."""
    reference: Callable
    """Same arguments, plain torch; float32 inside, float64 where the arguments are (torch.promote_types(dtype, torch.float32))."""
    make: Callable[..., dict[str, Any]]
    """make(device=, seed=, **case) -> the op's arguments by name, freshly drawn."""
    tests: Mapping[str, Mapping[str, Any]]
    """Name -> case: small and odd, at most 256 programs and a million elements (the interpreter's price is per program)."""
    benches: Mapping[str, Mapping[str, Any]]
    """Name -> case: real shapes, for a GPU."""
    work: Callable[..., Work]
    """work(**case) -> Work."""
    builds: Callable[[], list[Build]]
    """Called in a process where Triton compiles (not under the interpreter)."""
    exact: bool = False
    """Must the op equal its reference to the bit? Otherwise its error against the reference on float64 copies of the floating-point inputs
    is at most twice that of the reference run in the inputs' own dtype."""
    differentiable: tuple[str, ...] = ()
    """Names of the arguments through which the op has a gradient; tests compare it with float64 autograd through the reference."""
    mutates: tuple[str, ...] = ()
    """Names of the arguments (tensors, or lists of them) that op and reference change in place: they count as outputs, after those returned."""
    peers: Mapping[str, Callable[..., Callable[[], Any] | None]] = field(default_factory=dict)
    """Provider ("cuBLAS bf16", "bitsandbytes") -> a function of op's arguments (by name) that returns a closure to time, or None where
    that provider cannot run."""


def kernels() -> dict[str, Kernel]:
    """Name -> kernel, in the order of their files' names. Imports triton."""
    found = {}
    for info in pkgutil.iter_modules(minift_kernels.__path__):
        module = importlib.import_module(f"minift_kernels.{info.name}")
        if hasattr(module, "KERNEL"):
            kernel: Kernel = module.KERNEL
            found[kernel.name] = kernel
    return found


def floats(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same arguments, every floating-point tensor cast to `dtype` (also in lists and tuples), and so every argument that is such a dtype."""

    def cast(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return dtype if value.is_floating_point else value
        if isinstance(value, list | tuple):
            return type(value)(map(cast, value))
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return {name: cast(value) for name, value in arguments.items()}
