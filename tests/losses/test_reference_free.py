"""Losses of pairs without a reference, worked by hand.

The pair: chosen log p = -4 on 2 tokens (-2 each), rejected -9 on 3 (-3 each). For ORPO the chosen answer's tokens have p = 1/2 on average and the
rejected one's 1/4: odds 1 and 1/3."""

import math

import pytest
import torch

from minift.losses.reference_free import cpo, orpo, simpo

PAIR = torch.tensor([-4.0]), torch.tensor([-9.0]), torch.tensor([2]), torch.tensor([3])
ODDS = torch.tensor([2 * math.log(1 / 2)]), torch.tensor([3 * math.log(1 / 4)]), torch.tensor([2]), torch.tensor([3])
THREE = torch.tensor([-4.0, -2.0, -11.0]), torch.tensor([-9.0, -1.0, -3.0]), torch.tensor([2, 1, 7]), torch.tensor([3, 4, 1])


def test_simpo_worked_by_hand():                    # 2 (-2 + 3) - 0.5 = 1.5, log(1 + e^-1.5) = 0.201413
    total, pairs = simpo(*PAIR, beta=2.0, gamma=0.5)
    assert pairs == 1 and total.item() == pytest.approx(0.201413, abs=1e-6)


def test_cpo_worked_by_hand():                      # 0.1 (-4 + 9) = 0.5, log(1 + e^-0.5) = 0.474077, and 3 times 2 nats a chosen token
    total, pairs = cpo(*PAIR, beta=0.1, sft_weight=3.0)
    assert pairs == 1 and total.item() == pytest.approx(6.474077, abs=1e-6)


def test_orpo_worked_by_hand():                     # sigmoid(log 1 - log 1/3) = 3/4; 0.5 ln(4/3) = 0.143841, and 3 ln 2 = 2.079442
    total, pairs = orpo(*ODDS, beta=0.5, sft_weight=3.0)
    assert pairs == 1 and total.item() == pytest.approx(2.223283, abs=1e-6)


@pytest.mark.parametrize("loss", [simpo, cpo, orpo])
def test_a_batch_is_the_sum_of_its_pairs(loss):
    total, pairs = loss(*THREE)
    torch.testing.assert_close(total, sum(loss(*(values[i : i + 1] for values in THREE))[0] for i in range(3)))
    assert pairs == 3


@pytest.mark.parametrize("loss", [simpo, cpo, orpo])
def test_trap19_gradients_by_finite_differences(loss):
    chosen, rejected = (values.double().requires_grad_() for values in THREE[:2])
    assert torch.autograd.gradcheck(lambda c, r: loss(c, r, *THREE[2:], beta=0.7)[0], (chosen, rejected))


@pytest.mark.parametrize("loss", [simpo, orpo])
def test_trap20_every_token_twice_changes_nothing_where_means_are_compared(loss):
    torch.testing.assert_close(loss(*(2 * values for values in THREE)), loss(*THREE))


def test_cpo_compares_sums_and_only_the_chosen_answers_own_loss_is_a_mean():
    assert abs(cpo(*(2 * values for values in THREE))[0] - cpo(*THREE)[0]) > 0.1
    own = lambda *pairs: cpo(*pairs, sft_weight=1.0)[0] - cpo(*pairs, sft_weight=0.0)[0]
    torch.testing.assert_close(own(*(2 * values for values in THREE)), own(*THREE))
    assert own(*THREE).item() == pytest.approx(2 + 2 + 11 / 7, abs=1e-5)         # a mean over tokens, then a sum over pairs


def test_trap22_every_option_is_used():
    for loss, options in ((simpo, dict(beta=1.0)), (simpo, dict(gamma=0.1)), (cpo, dict(beta=1.0)), (cpo, dict(sft_weight=0.5)),
                          (orpo, dict(beta=1.0)), (orpo, dict(sft_weight=0.5))):                  # fmt: skip
        assert abs(loss(*THREE, **options)[0] - loss(*THREE)[0]) > 1e-2
    with pytest.raises(TypeError):
        orpo(*THREE, gamma=0.5)


def test_simpo_asks_for_a_lead_of_gamma_over_beta():
    """At a lead of gamma / beta per token the loss is ln 2: there the policy begins to be right."""
    chosen, rejected = torch.tensor([-1.0 + 0.25]), torch.tensor([-1.0])
    assert simpo(chosen, rejected, torch.tensor([1]), torch.tensor([1]), beta=2.0, gamma=0.5)[0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("each", [-1e-6, -1e-3, -0.5, -0.69, -0.70, -3.0, -30.0, -200.0])
def test_log_odds_in_float32_are_those_in_float64(each):
    """log(1 - e^x) loses all digits near x = 0 when e^x is rounded first: log(1 - 0.999999) in float32 is off by 0.05."""
    found, wanted = (-orpo(*(torch.tensor([value], dtype=dtype) for value in (each, -1.0)), torch.tensor([1]), torch.tensor([1]), beta=1.0, sft_weight=0.0)[0]
                     for dtype in (torch.float32, torch.float64))                # fmt: skip
    odds = each - math.log(-math.expm1(each)) - (-1.0 - math.log(-math.expm1(-1.0)))
    by_hand = -math.log1p(math.exp(-odds))
    assert wanted.item() == pytest.approx(by_hand, rel=1e-9) and found.item() == pytest.approx(by_hand, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("chosen, rejected", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-9, -2000.0), (-2000.0, -1e-9)])
def test_an_answer_that_is_certain_or_hopeless_leaves_orpo_and_its_gradient_finite(chosen, rejected):
    sums = [torch.tensor([value], requires_grad=True) for value in (chosen, rejected)]
    total, _ = orpo(*sums, torch.tensor([1]), torch.tensor([1]))
    total.backward()
    assert total.isfinite() and all(values.grad.isfinite() for values in sums)
