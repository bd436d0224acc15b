"""Losses of reward models, worked by hand: log(1 + e^-1) = 0.313262, log(1 + e^-2) = 0.126928, log(1 + e^-0.5) = 0.474077."""

import math

import pytest
import torch

from minift.losses.reward import bradley_terry, k_wise

CHOSEN, REJECTED = torch.tensor([1.0, 0.5, -2.0]), torch.tensor([0.0, 0.5, -1.0])


def test_bradley_terry_worked_by_hand():            # leads 1, 0 and -1
    total, pairs = bradley_terry(CHOSEN, REJECTED)
    assert pairs == 3 and total.item() == pytest.approx(0.313262 + 0.693147 + 1.313262, abs=2e-6)


def test_a_margin_is_taken_off_the_lead():          # leads 0.5, -1 and -1
    total, pairs = bradley_terry(CHOSEN, REJECTED, margin=torch.tensor([0.5, 1.0, 0.0]))
    assert pairs == 3 and total.item() == pytest.approx(0.474077 + 2 * 1.313262, abs=2e-6)


def test_centring_costs_the_square_of_a_pairs_sum():                             # sums 1, 1 and -3: 11 in all
    apart = bradley_terry(CHOSEN, REJECTED, center=0.01)[0] - bradley_terry(CHOSEN, REJECTED)[0]
    assert apart.item() == pytest.approx(0.11, abs=1e-6)


def test_only_centring_sees_where_the_scores_lie():
    torch.testing.assert_close(bradley_terry(CHOSEN + 5, REJECTED + 5), bradley_terry(CHOSEN, REJECTED))
    assert bradley_terry(CHOSEN + 5, REJECTED + 5, center=0.01)[0] > bradley_terry(CHOSEN, REJECTED, center=0.01)[0] + 1


def test_k_answers_worked_by_hand():                # leads 1, 2, 1 of three pairs; all equal: ln 2; one question counts as one
    total, questions = k_wise(torch.tensor([[2.0, 1.0, 0.0], [4.0, 4.0, 4.0]]))
    assert questions == 2 and total.item() == pytest.approx((2 * 0.313262 + 0.126928) / 3 + math.log(2), abs=2e-6)


def test_two_answers_are_a_pair():
    torch.testing.assert_close(k_wise(torch.stack([CHOSEN, REJECTED], 1)), bradley_terry(CHOSEN, REJECTED))


@pytest.mark.parametrize("K", [2, 3, 4, 5, 9])
def test_a_question_weighs_the_same_however_many_answers_it_has(K):
    assert k_wise(torch.zeros(1, K))[0].item() == pytest.approx(math.log(2), abs=1e-6)
    scores = torch.randn(2, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    longhand = sum(math.log1p(math.exp(-(row[i] - row[j]))) for row in scores.tolist() for i in range(K) for j in range(i + 1, K)) / (K * (K - 1) / 2)
    assert k_wise(scores)[0].item() == pytest.approx(longhand, rel=1e-12)


def test_a_ranking_in_order_costs_less_than_one_upside_down():
    scores = torch.tensor([[3.0, 1.0, 0.5, -2.0]])
    assert k_wise(scores)[0] < math.log(2) < k_wise(scores.flip(1))[0]


@pytest.mark.parametrize("K", [0, 1])
def test_one_answer_is_no_ranking(K):
    with pytest.raises(ValueError, match=f"a ranking of {K} answer .* give at least 2"):
        k_wise(torch.zeros(3, K))


def test_gradients_by_finite_differences():
    chosen, rejected = (values.double().requires_grad_() for values in (CHOSEN, REJECTED))
    margin = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, margin=margin, center=0.3)[0], (chosen, rejected))
    assert torch.autograd.gradcheck(lambda s: k_wise(s)[0], torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_())


def test_scores_far_apart_stay_finite():
    scores = torch.tensor([[-1000.0, 1000.0]], requires_grad=True)
    total, _ = k_wise(scores)
    total.backward()
    assert total == 2000 and scores.grad.tolist() == [[-1.0, 1.0]]
