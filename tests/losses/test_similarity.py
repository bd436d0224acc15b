"""Judged pairs, worked by hand: u = (3, 4), v = (0, 5), (-4, 3) and (3, 4), whose cosines are 0.8, 0 and 1."""

import math

import pytest
import torch

from minift.losses.similarity import angle, cosent, cosine_mse, softmax_nli, u_v_difference, u_v_difference_product

U = torch.tensor([[3.0, 4.0]], dtype=torch.float64).repeat(3, 1)
V = torch.tensor([[0.0, 5.0], [-4.0, 3.0], [3.0, 4.0]], dtype=torch.float64)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def longhand(scores, targets, temperature):
    return math.log1p(sum(math.exp((low - high) / temperature) for low, y in zip(scores, targets) for high, z in zip(scores, targets) if y < z))


def test_cosine_mse_worked_by_hand():               # 0.3^2 + 0.2^2 + 2^2
    total, pairs = cosine_mse(U, V, torch.tensor([0.5, 0.2, -1.0], dtype=torch.float64))
    assert pairs == 3 and total.item() == pytest.approx(4.13, abs=1e-12)


def test_cosent_worked_by_hand():
    """Targets 3, 3, 1: the last pair, at 1, should be below both others, at 0.8 and 0. The first two have no order. log(1 + e^0.4 + e^2)"""
    total, rankings = cosent(U, V, torch.tensor([3, 3, 1]), temperature=0.5)
    assert rankings == 1 and total.item() == pytest.approx(2.290602, abs=1e-6)


@pytest.mark.parametrize("loss, scores", [(cosent, [0.8, 0.0, 1.0]), (angle, [0.2, 1.0, 1.0])])
def test_only_the_order_of_the_targets_counts(loss, scores):
    """angle: u conj(v) / 25 = 0.8 - 0.6i, 0 - i and 1."""
    for targets in ([0.1, 0.5, 0.2], [1.0, 9.0, 2.0], [-7.0, 8.0, -6.5]):
        total, _ = loss(U, V, torch.tensor(targets), temperature=0.25)
        assert total.item() == pytest.approx(longhand(scores, targets, 0.25), rel=1e-12)


@pytest.mark.parametrize("loss", [cosent, angle])
def test_without_an_order_there_is_nothing_to_learn(loss):
    u = draw(3, 4, seed=1).requires_grad_()
    total, count = loss(u, draw(3, 4, seed=2), torch.ones(3))
    total.backward()
    assert total == 0 and count == 1 and not u.grad.any()


@pytest.mark.parametrize("loss", [cosent, angle])
def test_gradients_by_finite_differences(loss):
    u, v = draw(5, 6, seed=1).requires_grad_(), draw(5, 6, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, torch.tensor([2, 0, 1, 2, 4]), temperature=0.3)[0], (u, v))
    assert torch.autograd.gradcheck(lambda a, b: cosine_mse(a, b, torch.linspace(-1, 1, 5, dtype=torch.float64))[0], (u, v))


def test_scores_far_apart_stay_finite():
    total, _ = cosent(U, V, torch.tensor([3.0, 3.0, 1.0]), temperature=1e-4)      # e^2000 and e^10000
    assert total.item() == pytest.approx(1e4, rel=1e-9)


def test_the_angle_similarity_is_that_of_complex_numbers_and_largest_at_45_degrees():
    turn = lambda degrees: torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]], dtype=torch.float64)
    pair = lambda first, second, targets: angle(torch.cat([turn(first), turn(second)]), turn(0).repeat(2, 1), torch.tensor(targets), temperature=1.0)[0].item()
    for first, second in ((45, 0), (0, 90), (30, -30), (10, 170)):
        s = [abs(math.cos(math.radians(d)) + math.sin(math.radians(d))) for d in (first, second)]
        assert pair(first, second, [0, 1]) == pytest.approx(math.log1p(math.exp(s[0] - s[1])), rel=1e-9)
    u, v = draw(4, 6, seed=1), draw(4, 6, seed=2)
    z, w = torch.complex(u[:, :3], u[:, 3:]), torch.complex(v[:, :3], v[:, 3:])
    inner = (z * w.conj()).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    wanted = longhand((inner.real + inner.imag).abs().tolist(), [0, 1, 2, 3], 0.05)
    assert angle(u, v, torch.arange(4))[0].item() == pytest.approx(wanted, rel=1e-12)


# ---- NLI

def test_softmax_nli_worked_by_hand():
    """u = -2, v = 1: features -2, 1, 3. Two classes: -2 + 3 = 1 and 1 + 1 = 2, so log(1 + e) for class 0."""
    u, v = torch.tensor([[-2.0]]), torch.tensor([[1.0]])
    weight, bias = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0.0, 1.0])
    total, pairs = softmax_nli(u, v, torch.tensor([0]), weight, bias)
    assert pairs == 1 and total.item() == pytest.approx(1.313262, abs=2e-6)
    assert softmax_nli(u, v, torch.tensor([1]), weight, bias)[0].item() == pytest.approx(0.313262, abs=2e-6)
    assert u_v_difference(u, v).tolist() == [[-2, 1, 3]] and u_v_difference_product(u, v).tolist() == [[-2, 1, 3, -2]]


def test_the_head_learns_with_the_embeddings_and_features_may_be_any_function():
    u, v, labels = draw(5, 4, seed=1).requires_grad_(), draw(5, 4, seed=2), torch.tensor([0, 1, 2, 2, 0])
    weight = draw(3, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: softmax_nli(a, v, labels, w, features=lambda u, v: (u - v).abs())[0], (u, weight))


# ---- bad input

@pytest.mark.parametrize("loss", [cosine_mse, cosent, angle])
def test_pairs_that_do_not_fit_are_refused(loss):
    with pytest.raises(ValueError, match=r"u \(3, 2\), v \(2, 2\); wanted"):
        loss(U, V[:2], torch.zeros(3))
    with pytest.raises(ValueError, match=r"targets are \(3, 1\): wanted one for each of the 3 rows"):
        loss(U, V, torch.zeros(3, 1))


def test_a_target_beyond_any_cosine_is_refused():
    for score in (5.0, -1.5, float("nan")):
        with pytest.raises(ValueError, match="a target of .*: a cosine lies within -1 and 1; scale the scores"):
            cosine_mse(U, V, torch.tensor([0.5, score, 0.0]))


@pytest.mark.parametrize("loss", [cosent, angle])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_0(loss, temperature):
    with pytest.raises(ValueError, match="temperature is .*: wanted a number above 0"):
        loss(U, V, torch.arange(3), temperature=temperature)


def test_an_odd_width_has_no_halves():
    with pytest.raises(ValueError, match="embeddings of width 3: wanted an even one"):
        angle(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2))


def test_a_head_for_other_features_is_refused():
    with pytest.raises(ValueError, match=r"the head takes 4 numbers and the features are 6: wanted a weight of \(3, 6\)"):
        softmax_nli(U, V, torch.tensor([0, 1, 2]), torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"labels are \(2,\)"):
        softmax_nli(U, V, torch.tensor([0, 1]), torch.zeros(3, 6, dtype=torch.float64))
