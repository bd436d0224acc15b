"""RMSNorm by hand: PyTorch's function and gradients, with less kept, and only where it helps.

Tolerance: float64 on both sides, sums of 1,005 products of numbers of size 1: 1e-12. In float32 a partial sum of the gain's gradient is up to 100 large, each of the 1,005
additions rounds by eps / 2 of it, 6e-6, to either side: 6e-6 sqrt(1,005) = 2e-4. A gradient of a gradient is up to thousands large: 1e-12 of the largest."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift.models.config import ModelConfig
from minift.models.norm import OffsetRMSNorm, RMSNorm, RootMeanSquare, make_norm, normed, scaled

C, SHAPE = 37, (5, 201, 37)


def made(dtype=torch.float64):
    torch.manual_seed(0)
    norm = RMSNorm(C, eps=1e-3).to(dtype)
    nn.init.normal_(norm.weight)
    return norm, torch.randn(SHAPE, dtype=dtype).mul_(3).requires_grad_(), torch.randn(SHAPE, dtype=dtype)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_output_and_gradients_are_pytorchs(dtype, atol):
    norm, x, dy = made(dtype)
    plain = F.rms_norm(x, (C,), norm.weight, norm.eps)
    theirs = [plain, *torch.autograd.grad(plain, (x, norm.weight), dy)]
    y = norm(x)
    assert isinstance(y.grad_fn, RootMeanSquare._backward_cls)
    ours = [y, *torch.autograd.grad(y, (x, norm.weight), dy)]
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their, rtol=0, atol=atol)


def test_a_row_by_hand():
    """x = (3, 4), eps 0: mean square 12.5. y1 = 3 * 2 / sqrt(12.5) = 1.6971, y2 = 4 / sqrt(12.5) = 1.1314. dy = (1, 0): sum(dy w x) = 6;
    dx = (2 / 3.5355 - 3 * 6 / (44.194 * 2), -4 * 6 / (44.194 * 2)) = (0.36204, -0.27153)."""
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    y = RootMeanSquare.apply(x, torch.tensor([2.0, 1.0], dtype=torch.float64), 0.0)
    torch.testing.assert_close(y.detach(), torch.tensor([[1.6971, 1.1314]], dtype=torch.float64), rtol=0, atol=1e-4)
    y[0, 0].backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.36204, -0.27153]], dtype=torch.float64), rtol=0, atol=1e-5)


def test_rows_that_are_no_matrix_in_memory():
    norm, x, dy = made()
    swapped, change = x.detach().transpose(0, 1).requires_grad_(), dy.transpose(0, 1)
    theirs = torch.autograd.grad(F.rms_norm(swapped, (C,), norm.weight, norm.eps), swapped, change)[0]
    torch.testing.assert_close(torch.autograd.grad(norm(swapped), swapped, change)[0], theirs, rtol=0, atol=1e-12)


def test_a_frozen_gain_or_input_gets_no_gradient():
    norm, x, dy = made()
    norm.requires_grad_(False)
    norm(x).backward(dy)
    assert norm.weight.grad is None and x.grad is not None
    norm.requires_grad_(True)
    norm(x.detach()).backward(dy)
    assert norm.weight.grad is not None


def test_zeros_are_no_division_by_zero():
    norm, x, _ = made(torch.float32)
    nothing = torch.zeros_like(x, requires_grad=True)
    y = norm(nothing)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y)) and nothing.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_pytorchs(dtype):
    """37 squares of 60 are beyond float16's largest number: its sum is float32's business."""
    norm, x, dy = made(dtype)
    x = (20 * x.detach()).requires_grad_()
    plain = F.rms_norm(x, (C,), norm.weight, norm.eps)
    assert torch.equal(norm(x), plain) and plain.abs().max() > 1
    assert torch.equal(torch.autograd.grad(norm(x), x, dy)[0], torch.autograd.grad(plain, x, dy)[0])


def test_with_and_without_gradients_the_numbers_are_the_same():
    """A policy is compared with itself, so a ratio of equal ones is 1. In inference mode, where nothing is compared, PyTorch's is faster."""
    norm, x, _ = made(torch.float32)
    learned = norm(x)
    with torch.no_grad():
        assert torch.equal(norm(x), learned)
    with torch.inference_mode():
        assert torch.equal(norm(x), F.rms_norm(x, (C,), norm.weight, norm.eps))


def test_a_gradient_of_a_gradient():
    norm, x, dy = made()
    ours = torch.autograd.grad(norm(x), (x, norm.weight), dy, create_graph=True)
    plain = torch.autograd.grad(F.rms_norm(x, (C,), norm.weight, norm.eps), (x, norm.weight), dy, create_graph=True)
    second = [torch.autograd.grad(first.square().sum() + gain.square().sum(), (x, norm.weight)) for first, gain in (ours, plain)]
    for our, their in zip(*second):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12 * their.abs().max().item())


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_a_norm_that_somebody_listens_to_is_not_made_again_behind_their_back(kind):
    norm, x, W = make_norm(config(norm=kind)), torch.randn(SHAPE), torch.randn(C, 3, requires_grad=True)
    norm.register_forward_hook(lambda module, given, y: 2 * y + 1)
    (right,) = torch.autograd.grad((norm(x) @ W).square().sum(), W)
    with normed(norm, x) as y:
        z = (y @ W).square().sum()
    assert torch.equal(torch.autograd.grad(z, W)[0], right)


def config(**changes) -> ModelConfig:
    return ModelConfig(vocab_size=11, hidden_size=C, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_size=5, max_positions=9, norm_eps=1e-3, **changes)


@pytest.mark.parametrize("norm, again", [
    (make_norm(config()), True), (make_norm(config(norm="layernorm", norm_bias=True)), True), (make_norm(config(norm="layernorm")), True),
    (OffsetRMSNorm(C, 1e-3, 1.0), False),
])  # fmt: skip
def test_what_a_reader_keeps(norm, again):
    """A product of y and a weight keeps y for the weight's gradient: inside `normed` it keeps how to make it, and the gradient is the same to the bit."""
    torch.manual_seed(0)
    for own in norm.parameters():                                  # a bias of zero would hide that it is left out
        nn.init.normal_(own)
    x, W = torch.randn(SHAPE, requires_grad=True), torch.randn(C, 3, requires_grad=True)
    leaves = (x, W, *norm.parameters())
    plain = torch.autograd.grad((norm(x) @ W).square().sum(), leaves)
    with normed(norm, x) as y:
        z, alive = (y @ W).square().sum(), weakref.ref(y)
    del y
    assert (alive() is None) == again
    assert all(torch.equal(our, their) for our, their in zip(torch.autograd.grad(z, leaves), plain))


def test_the_weights_are_those_of_the_forward_pass():
    """peft.disabled swaps a norm's weight for its base's while the reference reads: what is made again is of that time."""
    norm, x, _ = made(torch.float32)
    W = torch.randn(C, 3, requires_grad=True)
    (right,) = torch.autograd.grad((norm(x) @ W).square().sum(), W)
    with normed(norm, x) as y:
        z = (y @ W).square().sum()
    norm.weight = nn.Parameter(torch.zeros(C))
    assert torch.equal(torch.autograd.grad(z, W)[0], right)


def test_scaled_is_what_the_norm_says():
    norm, x, _ = made(torch.float32)
    y, r = scaled(x, norm.weight, norm.eps)
    assert torch.equal(norm(x), y) and r.shape == (5 * 201, 1)
