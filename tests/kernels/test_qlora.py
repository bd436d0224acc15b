"""The QLoRA linear by hand, both ways of folding, what the backward pass keeps, and bad input. Runs in Triton's interpreter."""

import pytest
import torch

from minift_kernels.codes import four_bit_map
from minift_kernels.dequantize import dequantize_4bit
from minift_kernels.qlora import dequantize_into, make, qlora_linear, qlora_reference
from minift_kernels.runtime import INTERPRETED


def case(T, N, K, r, dtype=torch.float32, nested=False, block_size=64, seed=0):
    return make("cpu", seed, T, N, K, r, dtype, nested, block_size)


def test_worked_by_hand():
    # codes 15, 0 | 7, 15 in one block of absmax 2: W = [[2, -2], [0, 2]]. x = [1, 3]: x WT = [-4, 6]
    # A = [[1, 1]]: low = 4; B = [[1], [-2]], s = 0.5: adds [2, -4]
    y = qlora_linear(torch.tensor([[1.0, 3.0]]), torch.tensor([0xF0, 0x7F], dtype=torch.uint8), torch.tensor([2.0]), four_bit_map("nf4"),
                     torch.ones(1, 2), torch.tensor([[1.0], [-2.0]]), 0.5)  # fmt: skip
    assert y.tolist() == [[-2.0, 2.0]]


def test_gradients_worked_by_hand():
    # the same, and dy = [1, 10]: dx = dy W + s (dy B) A = [2, 18] + 0.5 (-19) [1, 1]; dA = s (dy B) x; dB = s dy low
    x, A, B = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2), torch.tensor([[1.0], [-2.0]])
    inputs = [t.requires_grad_() for t in (x, A, B)]
    y = qlora_linear(x, torch.tensor([0xF0, 0x7F], dtype=torch.uint8), torch.tensor([2.0]), four_bit_map("nf4"), A, B, 0.5)
    dx, dA, dB = torch.autograd.grad(y, inputs, torch.tensor([[1.0, 10.0]]))
    assert dx.tolist() == [[2 - 9.5, 18 - 9.5]] and dA.tolist() == [[-9.5, -28.5]] and dB.tolist() == [[2.0], [20.0]]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24), (9, 7), (7, 9)])      # (N, K): wider, taller, square, sizes 8 does not divide
@pytest.mark.parametrize("r", [1, 8, 11])
def test_gradients_equal_float64_autograd_for_every_way_of_folding(shape, r):
    N, K = shape
    given = case(6, N, K, r)
    exact = {name: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for name, t in given.items()}
    results = []
    for function, arguments in ((qlora_linear, given), (qlora_reference, exact)):
        inputs = [arguments[name].requires_grad_() for name in ("x", "A", "B")]
        y = function(**arguments)
        results.append([y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y) + torch.arange(N))])
    for got, wanted in zip(*results):                                                  # sums of at most 40 + 11 products in float32
        assert float((got - wanted).abs().max()) <= 51 * 2**-23 * float(wanted.abs().max())


@pytest.mark.parametrize(("N", "K", "block"), [(5, 24, 64), (64, 40, 64), (3, 8, 32), (6, 7, 64), (33, 24, 20)])
@pytest.mark.parametrize("nested", [True, False])
def test_rows_that_stand_apart_hold_the_weight_and_the_gaps_are_not_touched(N, K, block, nested):
    given = case(1, N, K, 1, nested=nested, block_size=block)
    weight = {name: given[name] for name in ("packed", "absmax", "code_map", "block_size", "nested_absmax", "nested_map", "offset") if name in given}
    space = torch.full((N + 2, 48), 7.0)
    dequantize_into(space[1:-1, :K], **weight)
    assert torch.equal(space[1:-1, :K].flatten(), dequantize_4bit(n=N * K, dtype=torch.float32, **weight))
    space[1:-1, :K] = 7
    assert (space == 7).all()


def test_nothing_of_the_weight_s_size_is_kept_for_the_backward_pass():
    given, kept = case(2, 64, 96, 2), []
    given["x"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        qlora_linear(**given)
    assert kept and all(t.nbytes <= 64 * 96 // 2 for t in kept)                        # the packed weight itself is the largest


def test_an_input_that_needs_no_gradient_gets_none():
    given = case(2, 16, 24, 2)
    given["A"].requires_grad_(), given["B"].requires_grad_()
    qlora_linear(**given).sum().backward()
    assert given["x"].grad is None and given["A"].grad.shape == (2, 24) and given["B"].grad.shape == (16, 2)


def test_adapters_may_be_wider_than_the_activations():
    given = case(2, 16, 24, 2, torch.float16)
    given["A"], given["B"] = given["A"].float().requires_grad_(), given["B"].float().requires_grad_()
    y = qlora_linear(**given)
    y.sum().backward()
    assert y.dtype == torch.float16 and given["A"].grad.dtype == given["B"].grad.dtype == torch.float32


def test_any_number_of_axes():
    given = case(6, 16, 24, 2)
    flat = qlora_linear(**given)
    given["x"] = given["x"].view(2, 3, 24)
    assert torch.equal(qlora_linear(**given), flat.view(2, 3, 16))


@pytest.mark.parametrize(("change", "text"), [
    (dict(x=torch.zeros(2, 23)), r"qlora: x is \(2, 23\), A \(2, 24\), B \(16, 2\): wanted \(\.\.\., K\), \(r, K\), \(N, r\)"),
    (dict(B=torch.zeros(16, 3)), r"B \(16, 3\): wanted"),
    (dict(absmax=torch.zeros(5)), "qlora: absmax has 5 values, wanted 6 for W of 16 x 24 in blocks of 64"),
    (dict(code_map=torch.zeros(15)), "qlora: code_map has 15 values, wanted 16"),
    (dict(packed=torch.zeros(192, dtype=torch.int8)), r"qlora: packed is torch.int8, wanted torch.uint8"),
])  # fmt: skip
def test_bad_input_is_named(change, text):
    with pytest.raises(ValueError, match=text):
        qlora_linear(**{**case(2, 16, 24, 2), **change})


def test_this_file_runs_the_kernel():
    assert INTERPRETED
