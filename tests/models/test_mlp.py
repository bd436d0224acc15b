"""The MLP's gate by hand: SwiGLU's numbers and gradients are those of the formula, to the bit in the forward pass; what is kept is two rows a token, not four.

Tolerance of gradients: float64 on both sides, products of three numbers of size 1: 1e-14."""

import weakref

import pytest
import torch

from minift.models.config import ModelConfig
from minift.models.mlp import MLP, SwiGLU

C, M, TOKENS = 6, 10, (2, 7)


def mlp(activation: str = "silu", gated: bool = True) -> MLP:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=11, hidden_size=C, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_size=M, max_positions=9, gated=gated, activation=activation)
    return MLP(config).double()


def formula(one: MLP, x):
    h = one.act(one.gate(x)) * one.up(x) if one.gate is not None else one.act(one.up(x))
    return one.down(h)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("gated", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(activation, gated):
    one, x = mlp(activation, gated), torch.randn(*TOKENS, C, dtype=torch.float64, requires_grad=True)
    plain, found = formula(one, x), one(x)
    assert torch.equal(found, plain)
    leaves = (x, *one.parameters())
    for our, their in zip(torch.autograd.grad(found.square().sum(), leaves), torch.autograd.grad(plain.square().sum(), leaves)):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-14)


def test_a_number_by_hand():
    """silu(1) = 0.73106, silu'(1) = s + s (1 - s) = 0.73106 + 0.19661; times u = 2 and dh = 3."""
    gate, up = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0))
    h = SwiGLU.apply(gate, up)
    h.backward(torch.tensor([3.0], dtype=torch.float64))
    torch.testing.assert_close(torch.cat([h.detach(), gate.grad, up.grad]), torch.tensor([1.46212, 5.56602, 2.19318], dtype=torch.float64), rtol=0, atol=1e-5)


def test_two_rows_a_token_are_kept():
    """Somebody else's hooks hide remade.py's, so they see what it would have hidden: gate, up, h, but no silu(gate). Without them h goes as well."""
    one, x = mlp(), torch.randn(*TOKENS, C, dtype=torch.float64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        one(x)
    assert len({t.untyped_storage().data_ptr() for t in kept if t.untyped_storage().nbytes() == 14 * M * 8}) == 3
    made, plain = [], one.gated
    one.gated = lambda gate, up: made.append(weakref.ref(h := plain(gate, up))) or h
    y = one(x)
    assert made[0]() is None
    y.sum().backward()
    assert len(made) == 2


def test_a_gradient_of_a_gradient():
    one, x = mlp(), torch.randn(*TOKENS, C, dtype=torch.float64, requires_grad=True)
    leaves = (x, one.gate.weight, one.up.weight)
    second = []
    for y in (one(x), formula(one, x)):
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for our, their in zip(*second):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-14 * max(1.0, their.abs().max().item()))
