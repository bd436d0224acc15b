"""Is a kernel right on this device, on inputs of a real size?

    exact kernels:      op(inputs) = reference(inputs), to the bit, signs of zeros too
    the others:         |op - true| <= 2 |low - true| + one unit in the last place of the largest value
                        low = reference in the inputs' own dtype, true = reference in float64, |.| the largest over an output

The rule of tests/kernels/test_registry.py, which holds it on small odd shapes in Triton's interpreter. What the op allocates starts as NaN,
so that an element never written shows. An op that fell back to plain torch is not right either: its speed would be another's.
Proved in tests/benchmarks/test_kernels.py."""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minift_kernels.registry import Kernel, floats


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, lists included."""
    return [value] if isinstance(value, Tensor) else [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


def copied(value: Any) -> Any:
    """The same value with its own tensors."""
    if isinstance(value, dict):
        return {name: copied(v) for name, v in value.items()}
    return value.clone() if isinstance(value, Tensor) else type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def poisoned():
    """torch.empty gives NaN, and whole numbers at their largest: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def outputs(kernel: Kernel, function: Callable, arguments: dict[str, Any]) -> list[Tensor]:
    """What the function returns and what it changes in place, on inputs of its own."""
    given = copied(arguments) if kernel.mutates else arguments
    return tensors(function(**given)) + [t for name in kernel.mutates for t in tensors(given[name])]


def accuracy(kernel: Kernel, arguments: dict[str, Any]) -> dict[str, Any]:
    """{"error": largest error, "allowed": ..., "failure": "" or what is wrong}. Errors are absolute; 0 and 0 where bits must agree."""
    said = io.StringIO()
    with torch.no_grad(), contextlib.redirect_stderr(said), poisoned():
        got = outputs(kernel, kernel.op, arguments)
    if "runs as plain torch" in said.getvalue():
        return {"failure": f"not the kernel: {said.getvalue().strip()}"}
    with torch.no_grad():
        low = outputs(kernel, kernel.reference, arguments)
        exact = low if kernel.exact else outputs(kernel, kernel.reference, floats(arguments, torch.float64))
    if [(t.shape, t.dtype) for t in got] != [(t.shape, t.dtype) for t in low]:
        return {"failure": f"gives {[(tuple(t.shape), t.dtype) for t in got]}, wanted {[(tuple(t.shape), t.dtype) for t in low]}"}
    worst = {"error": 0.0, "allowed": 0.0, "failure": ""}
    for ours, plain, true in zip(got, low, exact):
        if kernel.exact or not ours.is_floating_point():
            same = ours == plain
            if ours.is_floating_point():
                same = same & (ours.signbit() == plain.signbit()) | ours.isnan() & plain.isnan()
            if not same.all():
                return {"failure": f"{int((~same).sum())} of {same.numel()} values differ, and none may"}
        elif ours.numel():
            error, of_plain = (float((t.double() - true.double()).abs().max()) for t in (ours, plain))
            allowed = 2 * of_plain + torch.finfo(ours.dtype).eps * float(true.abs().max())
            if not error <= allowed:                                       # NaN too
                return {"failure": f"error {error:.3g}, allowed {allowed:.3g}", "error": error, "allowed": allowed}
            if error * worst["allowed"] >= worst["error"] * allowed:       # the output that comes closest to what it is allowed
                worst |= {"error": error, "allowed": allowed}
    return worst
