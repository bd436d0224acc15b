"""LoRA and its base in one function: the numbers and gradients of the two terms apart, and only where that is what the base computes.

Tolerance: float64, sums of up to 210 products of numbers of size 1: 1e-12. Under autocast each product rounds to 8 bits (2^-9 of a number of size sqrt(40) or, for A's and
B's gradients, of sums over 210 tokens); both ways round alike but for the order of sums and what is added first: 2 % of the largest number."""

import pytest
import torch
from torch import nn

from minift.models.linear import Linear
from minift.peft.lora import LoRALinear, plus
from minift.peft.low_rank import LowRank, together

K, N, R, TOKENS, SCALE = 40, 24, 3, (7, 30), 0.75


def made(bias: bool = True, dtype=torch.float64, kind=Linear):
    torch.manual_seed(0)
    base = kind(K, N, bias=bias).to(dtype).requires_grad_(False)
    A, B = torch.randn(R, K, dtype=dtype).mul_(0.2).requires_grad_(), torch.randn(N, R, dtype=dtype).requires_grad_()
    return base, torch.randn(*TOKENS, K, dtype=dtype, requires_grad=True), A, B, torch.randn(*TOKENS, N, dtype=dtype)


def apart(base, x, A, B):
    return plus(base(x), nn.functional.linear(x, A), B, SCALE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Linear, nn.Linear])
def test_outputs_and_gradients_are_those_of_two_terms(bias, kind):
    base, x, A, B, dy = made(bias, kind=kind)
    found, plain = together(base, x, A, B, SCALE), apart(base, x, A, B)
    for our, their in zip([found, *torch.autograd.grad(found, (x, A, B), dy)], [plain, *torch.autograd.grad(plain, (x, A, B), dy)]):
        assert our.dtype == torch.float64 and our.shape == their.shape
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


def test_one_number_by_hand():
    """W = 2, b = 1, A = 3, B = 5, s = 0.5, x = 7: y = 14 + 1 + 0.5 * 21 * 5 = 67.5; dx = 2 + 0.5 * 15 = 9.5; dA = 0.5 * 5 * 7 = 17.5; dB = 0.5 * 21 = 10.5."""
    one = lambda value, grad=True: torch.tensor([[float(value)]], requires_grad=grad)
    x, A, B = one(7), one(3), one(5)
    y = LowRank.apply(x, one(2, False), torch.tensor([1.0]), A, B, 0.5, torch.float32)
    y.backward()
    assert [t.item() for t in (y, x.grad, A.grad, B.grad)] == [67.5, 9.5, 17.5, 10.5]


def test_under_autocast_it_rounds_as_the_two_terms_do():
    base, x, A, B, dy = made(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = together(base, x, A, B, SCALE), apart(base, x, A, B)
    assert found.dtype == plain.dtype == torch.bfloat16
    ours, theirs = (torch.autograd.grad(y, (x, A, B), dy.bfloat16()) for y in (found, plain))
    for our, their in zip([found, *ours], [plain, *theirs]):
        assert our.dtype == their.dtype
        assert (our - their).abs().max() <= 0.02 * their.abs().max()
    assert not torch.equal(found.float(), apart(base, x, A, B))                               # it did round


def test_frozen_parts_get_no_gradient_and_the_others_theirs():
    base, x, A, B, dy = made()
    together(base, x.detach(), A, B.detach(), SCALE).backward(dy)
    right = torch.autograd.grad(apart(base, x, A, B), A, dy)[0]
    torch.testing.assert_close(A.grad, right, rtol=0, atol=1e-12)
    assert B.grad is None and base.weight.grad is None


def test_whoever_wants_more_gets_the_two_terms():
    base, x, A, B, _ = made()
    assert together(base, x, A, B, SCALE) is not None
    with torch.inference_mode():
        assert together(base, x, A, B, SCALE) is None
    assert together(base, x.float(), A, B, SCALE) is None                                     # nn.Linear refuses it, and says so
    assert together(nn.Sequential(base), x, A, B, SCALE) is None
    for listen in (base.register_forward_hook, base.register_forward_pre_hook, base.register_full_backward_hook):
        ear = listen(lambda *heard: None)
        assert together(base, x, A, B, SCALE) is None
        ear.remove()
    for learns in base.parameters():
        learns.requires_grad_(True)
        assert together(base, x, A, B, SCALE) is None
        learns.requires_grad_(False)
    assert together(base, x, A, B, SCALE) is not None


def test_lora_takes_it_and_dropout_does_not():
    base, x, _, _, _ = made(dtype=torch.float32)
    for dropout, inside in ((0.0, True), (0.5, False)):
        small = LoRALinear(base, R, SCALE, dropout)
        assert (small(base, x).grad_fn.name() == "LowRankBackward") == inside
        assert small.eval()(base, x).grad_fn.name() == "LowRankBackward"


@pytest.mark.parametrize("tokens", [3, 9000])
@pytest.mark.parametrize("rounded", [False, True])
def test_with_and_without_gradients_and_without_a_change_the_numbers_are_the_same(tokens, rounded):
    """B = 0 is the base, to the bit, in few tokens and in many: the reference of DPO is the base, and at step 0 no policy is far from it."""
    base, _, A, B, _ = made(dtype=torch.float32)
    x = torch.randn(tokens, K, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        learned = together(base, x, A, B, SCALE)
        with torch.no_grad():
            assert torch.equal(together(base, x, A, B, SCALE), learned)
            assert torch.equal(together(base, x, A, torch.zeros_like(B), SCALE), base(x))


def test_a_gradient_of_a_gradient():
    base, x, A, B, _ = made()
    second = []
    for y in (together(base, x, A, B, SCALE), apart(base, x, A, B)):
        first = torch.autograd.grad(y.square().sum(), (x, A, B), create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), (x, A, B)))
    for our, their in zip(*second):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-13 * their.abs().max().item())


def test_no_tokens_at_all():
    base, _, A, B, _ = made()
    y = together(base, torch.empty(0, K, dtype=torch.float64, requires_grad=True), A, B, SCALE)
    y.sum().backward()
    assert y.shape == (0, N) and torch.equal(A.grad, torch.zeros_like(A))
