"""Every kernel of the registry against its reference, in Triton's interpreter. The memory it touches is checked by tests/kernels/memcheck.py.

Tolerance: exact kernels equal their reference to the bit. The others may err at most twice as much as the reference does when it computes
in the inputs' own dtype, both against the reference on float64 copies of the same inputs; and by one unit in the last place of the largest
value, because two roundings of the same number may fall to different sides. Integers must be equal."""

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from minift_kernels.registry import CHIPS, Kernel, floats, kernels
from tests.kernels.memcheck import poisoned, surrounded, watched

KERNELS = list(kernels().values())
CASES = [pytest.param(kernel, case, id=f"{kernel.name}: {name}") for kernel in KERNELS for name, case in kernel.tests.items()]
EACH = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def tensors(values) -> list[Tensor]:
    """All tensors in a value, lists included."""
    return [values] if isinstance(values, Tensor) else [t for v in values for t in tensors(v)] if isinstance(values, list | tuple) else []


def copied(arguments: dict) -> dict:
    again = lambda v: v.clone() if isinstance(v, Tensor) else type(v)(map(again, v)) if isinstance(v, list | tuple) else v
    return {name: again(value) for name, value in arguments.items()}


def outputs(kernel: Kernel, function, arguments: dict) -> list[Tensor]:
    """What the function returns and what it changes in place."""
    returned = tensors(function(**arguments))
    return returned + [t for name in kernel.mutates for t in tensors(arguments[name])]


def check(kernel: Kernel, got: list[Tensor], low: list[Tensor], exact: list[Tensor]) -> None:
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in low]
    for ours, plain, true in zip(got, low, exact):
        if kernel.exact or not ours.is_floating_point():
            same = ours == plain
            if ours.is_floating_point():
                same = same & (ours.signbit() == plain.signbit()) | ours.isnan() & plain.isnan()
            assert same.all(), f"{int((~same).sum())} of {same.numel()} differ, the first at {tuple((~same).nonzero()[0].tolist())}"
            continue
        error, allowed = (float((t.double() - true.double()).abs().max()) if t.numel() else 0.0 for t in (ours, plain))
        floor = torch.finfo(ours.dtype).eps * float(true.abs().max()) if ours.numel() else 0.0
        assert error <= 2 * allowed + floor, f"error {error:.3g}, plain {ours.dtype} {allowed:.3g}, largest value {float(true.abs().max()):.3g}"


def expected(kernel: Kernel, arguments: dict) -> tuple[list[Tensor], list[Tensor]]:
    low = outputs(kernel, kernel.reference, copied(arguments))
    return low, low if kernel.exact else outputs(kernel, kernel.reference, floats(copied(arguments), torch.float64))


@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_a_kernel_equals_its_reference_and_stays_within_its_tensors(kernel, case):
    arguments = kernel.make(device="cpu", seed=0, **case)
    low, exact = expected(kernel, arguments)
    given = {name: surrounded(value) for name, value in copied(arguments).items()}
    with poisoned(), watched(*tensors(list(given.values()))) as launches:
        got = outputs(kernel, kernel.op, given)
    check(kernel, got, low, exact)
    assert launches or any(t.dtype == torch.bfloat16 for t in tensors(list(arguments.values()))), "the reference answered, not the kernel"
    assert all(len(launch.programs) <= 256 for launch in launches)
    for name, value in arguments.items():
        for before, after in zip(tensors(value), tensors(given[name])):
            assert name in kernel.mutates or torch.equal(before, after), f"{name} was changed"


@EACH
def test_other_layouts_and_dtypes_are_refused_or_served(kernel):
    case = max(kernel.tests.values(), key=lambda case: kernel.work(**case).bytes)
    arguments = kernel.make(device="cpu", seed=1, **case)
    low, exact = expected(kernel, arguments)
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or name in kernel.mutates:
            continue
        apart = torch.stack([value, torch.full_like(value, 1)], dim=-1)[..., 0]                   # every second element of a larger tensor
        other = value.to(torch.float64 if value.is_floating_point() else torch.int16 if value.dtype == torch.uint8 else torch.float32)
        for changed in (apart, other):
            given = {**copied(arguments), name: changed}
            try:
                got = outputs(kernel, kernel.op, given)
            except ValueError as error:
                assert kernel.name.split("_")[0] in str(error).lower() or name in str(error), f"what is wrong with {name}? {error}"
                continue
            assert [t.shape for t in got] == [t.shape for t in low], name
            if got[0].dtype == low[0].dtype:
                check(kernel, got, low, exact)


@EACH
def test_gradients_equal_float64_autograd_through_the_reference(kernel):
    case = max(kernel.tests.values(), key=lambda case: kernel.work(**case).bytes)
    arguments = kernel.make(device="cpu", seed=2, **case)

    def gradients(function, arguments, dtype=None):
        arguments = floats(copied(arguments), dtype) if dtype else copied(arguments)
        inputs = [arguments[name].requires_grad_() for name in kernel.differentiable]
        results = [t for t in outputs(kernel, function, arguments) if t.requires_grad]
        draw = torch.Generator().manual_seed(3)
        towards = [torch.randn(t.shape, generator=draw).to(t.dtype) for t in results]
        return list(torch.autograd.grad(results, inputs, towards))

    if kernel.differentiable:
        got, low = gradients(kernel.op, arguments), gradients(kernel.reference, arguments)
        check(kernel, got, low, gradients(kernel.reference, arguments, torch.float64))


@EACH
def test_torch_compile_takes_it_without_a_break(kernel):
    arguments = kernel.make(device="cpu", seed=4, **next(iter(kernel.tests.values())))
    compiled = torch.compile(lambda given: kernel.op(**given), fullgraph=True, backend="aot_eager")
    once, again = tensors(compiled(copied(arguments))), tensors(kernel.op(**copied(arguments)))
    assert len(once) == len(again) and all(torch.equal(a, b) for a, b in zip(once, again))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if isinstance(k.op, CustomOpDef)], ids=lambda kernel: kernel.name)
def test_the_operator_says_of_itself_what_it_does(kernel):
    torch.library.opcheck(kernel.op, (), kernel.make(device="cpu", seed=5, **next(iter(kernel.tests.values()))),
                          test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))  # fmt: skip


@EACH
def test_what_the_registry_says_is_whole(kernel):
    assert kernel.name and kernel.tests and kernel.benches and all(chip in CHIPS for build in kernel.builds() for chip in build.expect)
    names = [build.name for build in kernel.builds()]
    assert names and len(set(names)) == len(names)
    for case in (*kernel.tests.values(), *kernel.benches.values()):
        bytes, flops = kernel.work(**case)
        assert bytes > 0 and flops >= 0
    case = next(iter(kernel.tests.values()))
    first, same, other = (tensors(list(kernel.make(device="cpu", seed=seed, **case).values())) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, same)) and not all(torch.equal(a, b) for a, b in zip(first, other)), "seed decides"
