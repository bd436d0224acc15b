"""Losses of classifiers, worked by hand: probabilities 1/2, 1/4, 1/4 and 1/8, 3/4, 1/8."""

import math

import pytest
import torch
import torch.nn.functional as F

from minift.losses.classification import balanced, multi_label, single_label, squared_error

SCORES = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=torch.float64).log() + torch.tensor([[3.0], [-1.0]])   # a shift changes nothing
LABELS = torch.tensor([0, 2])
WEIGHTS = torch.tensor([1.0, 5.0, 10.0], dtype=torch.float64)
LN2, LN4, LN8 = math.log(2), math.log(4), math.log(8)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_label_worked_by_hand():
    total, rows = single_label(SCORES, LABELS)
    assert rows == 2 and total.item() == pytest.approx(LN2 + LN8, abs=1e-12)


def test_smoothing_gives_a_share_to_all_labels_alike():
    """e = 0.3: 0.7 log 2 + 0.1 (log 2 + 2 log 4), and 0.7 log 8 + 0.1 (2 log 8 - log 3/4)."""
    total, _ = single_label(SCORES, LABELS, smoothing=0.3)
    assert total.item() == pytest.approx(0.7 * LN2 + 0.1 * (LN2 + 2 * LN4) + 0.7 * LN8 + 0.1 * (2 * LN8 - math.log(0.75)), abs=1e-12)


def test_a_weight_is_that_of_the_rows_label_and_the_count_is_of_rows():
    total, rows = single_label(SCORES, LABELS, weights=WEIGHTS)
    assert rows == 2 and total.item() == pytest.approx(1 * LN2 + 10 * LN8, abs=1e-12)
    assert (total / rows).item() != pytest.approx(F.cross_entropy(SCORES, LABELS, weight=WEIGHTS).item(), abs=0.5)     # torch divides by 11
    total, _ = single_label(SCORES, LABELS, weights=WEIGHTS, smoothing=0.3)            # the row's weight, on all of its loss
    assert total.item() == pytest.approx(0.7 * LN2 + 0.1 * (LN2 + 2 * LN4) + 10 * (0.7 * LN8 + 0.1 * (2 * LN8 - math.log(0.75))), abs=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_batches_add_up_to_the_whole(weights):
    scores, labels = draw(7, 3, seed=1), torch.tensor([0, 1, 1, 2, 0, 2, 2])
    held = F.one_hot(labels, 3).double()
    for loss, answers in ((single_label, labels), (multi_label, held)):
        whole = loss(scores, answers, weights=weights)
        parts = [loss(scores[some], answers[some], weights=weights) for some in (slice(0, 2), slice(2, 7))]
        assert sum(part[0] for part in parts).item() == pytest.approx(whole[0].item(), abs=1e-12) and sum(part[1] for part in parts) == whole[1] == 7


def test_several_labels_worked_by_hand():
    """sigmoid = 3/4 and 1/4: held or not, -log of 3/4 or 1/4; the mean over a row's labels, the sum over rows."""
    s = math.log(3)
    scores, held = torch.tensor([[s, -s], [-s, -s]], dtype=torch.float64), torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    low, high = math.log(4), -math.log(0.75)
    total, rows = multi_label(scores, held)
    assert rows == 2 and total.item() == pytest.approx(((high + low) + (high + low)) / 2, abs=1e-12)
    weighed, rows = multi_label(scores, held, weights=torch.tensor([2.0, 5.0], dtype=torch.float64))
    assert rows == 2 and weighed.item() == pytest.approx(((2 * high + 5 * low) + (high + 5 * low)) / 2, abs=1e-12)


def test_a_number_is_missed_by_its_square():
    total, rows = squared_error(torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([3.0, -2.0, 1.0]))
    assert rows == 3 and total.item() == 4.25


def test_gradients_by_finite_differences():
    scores, labels, held = draw(4, 3, seed=1).requires_grad_(), torch.tensor([0, 2, 1, 2]), (draw(4, 3, seed=2) > 0).double()
    assert torch.autograd.gradcheck(lambda s: single_label(s, labels, weights=WEIGHTS, smoothing=0.2)[0], (scores,))
    assert torch.autograd.gradcheck(lambda s: multi_label(s, held, weights=WEIGHTS)[0], (scores,))
    assert torch.autograd.gradcheck(lambda s: squared_error(s, torch.arange(4.0))[0], (scores[:, :1].detach().requires_grad_(),))


def test_balanced_weights_worked_by_hand():
    """Of 8 rows 5, 2 and 1: 8 / (3 x 5), 8 / (3 x 2), 8 / 3. Their mean over the rows is 1, and every label has the same sum."""
    labels = torch.tensor([0] * 5 + [1] * 2 + [2])
    weights = balanced(labels, 3)
    torch.testing.assert_close(weights, torch.tensor([8 / 15, 8 / 6, 8 / 3]))
    assert weights[labels].mean().item() == pytest.approx(1) and weights[labels].split([5, 2, 1])[0].sum().item() == pytest.approx(8 / 3)
    more = balanced(labels, 4)                                                  # a label that no row has changes nothing for the others
    torch.testing.assert_close(more[:3], weights)
    assert torch.isfinite(more).all()


def test_balanced_weights_of_several_labels_even_out_yes_and_no():
    """Label 0 holds in 1 of 4 rows, 1 in 3 of 4, 2 in none, 3 in all: 3 / 1, 1 / 3, and no zero and no infinity for the last two."""
    held = torch.tensor([[1.0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]])
    weights = balanced(held, 4)
    torch.testing.assert_close(weights, torch.tensor([3.0, 1 / 3, 4.0, 0.25]))
