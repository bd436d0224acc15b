"""RMSNorm worked by hand, its gradients, and what the generic test does not ask. Runs in Triton's interpreter."""

import pytest
import torch

from minift_kernels.rmsnorm import KERNEL, rms_norm, rms_norm_backward, rms_norm_with_scale


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_worked_by_hand():                                # mean of squares (9 + 16) / 2 = 12.5; with eps 0 the row is divided by sqrt(12.5)
    y = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[0.848528, 11.313708]]), rtol=1e-6, atol=0)


def test_eps_is_inside_the_root():                        # x = 0.001: mean square 1e-6, plus eps 3e-6, root 2e-3
    y = rms_norm(torch.full((1, 4), 1e-3), torch.ones(4), 3e-6)
    torch.testing.assert_close(y, torch.full((1, 4), 0.5), rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    x, w = torch.zeros(2, 5, requires_grad=True), torch.ones(5, requires_grad=True)
    y = rms_norm(x, w)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 5)) and x.grad.isfinite().all() and torch.equal(w.grad, torch.zeros(5))


def test_gradients_of_a_scaled_row_are_orthogonal_to_it():
    # y does not change when x grows along itself (eps 0), so dx . x = 0
    x, w = torch.randn(7, 33, requires_grad=True), torch.randn(33)
    rms_norm(x, w, 0.0).backward(torch.randn(7, 33))
    along = x.grad * x.detach()
    assert float(along.sum(1).abs().max()) < 33 * 2**-23 * float(along.abs().max()) + 1e-6


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 11])        # the interpreter walks with four programs: fewer rows, as many, more
def test_every_row_counts_in_the_gain_s_gradient(rows):
    x, w, dy = torch.randn(rows, 3), torch.randn(3), torch.randn(rows, 3)
    _, q = rms_norm_with_scale(x, w, 1e-6)
    h = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(rms_norm_backward(dy, x, w, q)[1].double(), (dy.double() * h).sum(0), rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits():
    arguments = KERNEL.make(device="cpu", seed=0, rows=9, C=127, dtype=torch.float32)
    x, w = arguments["x"].requires_grad_(), arguments["w"].requires_grad_()
    once, again = (torch.autograd.grad(rms_norm(x, w).square().sum(), (x, w)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_gains_may_be_wider_than_the_activations():
    x, w = torch.randn(3, 6).half(), torch.randn(6, requires_grad=True)
    y = rms_norm(x, w)
    y.sum().backward()
    assert y.dtype == torch.float16 and w.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4), (4,)])
def test_any_shape_keeps_its_shape(shape):
    x = torch.randn(shape, requires_grad=True)
    y = rms_norm(x, torch.ones(4))
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_bfloat16_takes_the_reference_under_the_interpreter():
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gains_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"rmsnorm: x is \(2, 3\) and w \(4,\): wanted one gain for each of x's last axis"):
        rms_norm(torch.zeros(2, 3), torch.ones(4))
