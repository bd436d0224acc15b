"""Triplets within a batch, worked by hand on a line.

Class 0 at 0 and 1, class 1 at 3 and 7; margin 2.5. Distances 0-1: 1, 0-3: 3, 0-7: 7, 1-3: 2, 1-7: 6, 3-7: 4.
Anchor 0: mate at 1, strangers at 3 and 7. Anchor 1: mate at 1, strangers at 2 and 6. Anchor 3: mate at 4, strangers at 3 and 2.
Anchor 7: mate at 4, strangers at 7 and 6."""

import math

import pytest
import torch

from minift.losses.distance import cosine, euclidean, manhattan
from minift.losses.mining import batch_all, batch_hard, batch_hard_soft_margin, batch_semi_hard

POINTS, LABELS = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
WITH_MARGIN = [batch_all, batch_hard, batch_semi_hard]
ALL = [*WITH_MARGIN, batch_hard_soft_margin]
soft = lambda x: math.log1p(math.exp(x))

BY_HAND = [
    (batch_all, 0.5 + 1.5 + 3.5 + 4.5 + 0.5, 5),         # anchor 0: 1 - 3 + 2.5 | 1: 1 - 2 + 2.5 | 3: 4 - 3 + 2.5, 4 - 2 + 2.5 | 7: none, 4 - 6 + 2.5
    (batch_hard, 0.5 + 1.5 + 4.5 + 0.5, 4),
    (batch_semi_hard, 0.5 + 1.5 + 3.5 + 0.5, 4),         # anchor 3: no stranger is beyond its mate at 4, so the furthest, at 3
]


def call(loss, embeddings, labels, margin=2.5, **options):
    return loss(embeddings, labels, **({} if loss is batch_hard_soft_margin else dict(margin=margin)), **options)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss, wanted, count", BY_HAND)
def test_worked_by_hand(loss, wanted, count):
    total, n = loss(POINTS, LABELS, margin=2.5)
    assert n == count and total.item() == pytest.approx(wanted, abs=1e-12)


def test_the_soft_margin_worked_by_hand():
    total, anchors = batch_hard_soft_margin(POINTS, LABELS)
    assert anchors == 4 and total.item() == pytest.approx(soft(1 - 3) + soft(1 - 2) + soft(4 - 2) + soft(4 - 6), abs=1e-12)


def test_a_semi_hard_negative_is_the_nearest_beyond_the_positive():
    """Anchor 0, mate at 2, strangers at 1, 3 and 5: the one at 3. Its mate, at 2: strangers at 1, 1 and 3, the one at 3."""
    points = torch.tensor([[0.0], [2.0], [1.0], [3.0], [5.0]], dtype=torch.float64)
    total, pairs = batch_semi_hard(points, torch.tensor([4, 4, 5, 6, 7]), margin=2.0)
    assert pairs == 2 and total.item() == pytest.approx(2 * (2 - 3 + 2), abs=1e-12)


@pytest.mark.parametrize("distance", [cosine, euclidean, manhattan])
def test_longhand_over_all_triplets(distance):
    x, labels = draw(9, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 3, 1])                    # class 3 has one member
    d = distance(x, x).tolist()
    mates = {a: [p for p in range(9) if p != a and labels[p] == labels[a]] for a in range(9)}
    others = {a: [n for n in range(9) if labels[n] != labels[a]] for a in range(9)}
    every = [d[a][p] - d[a][n] + 0.5 for a in mates for p in mates[a] for n in others[a]]
    total, count = batch_all(x, labels, margin=0.5, distance=distance)
    assert count == sum(v > 0 for v in every) < len(every) and total.item() == pytest.approx(sum(max(0, v) for v in every), rel=1e-12)
    lag = [max(d[a][p] for p in mates[a]) - min(d[a][n] for n in others[a]) for a in mates if mates[a]]
    total, count = batch_hard(x, labels, margin=0.5, distance=distance)
    assert count == len(lag) == 8 and total.item() == pytest.approx(sum(max(0, v + 0.5) for v in lag), rel=1e-12)
    total, count = batch_hard_soft_margin(x, labels, distance=distance)
    assert count == 8 and total.item() == pytest.approx(sum(soft(v) for v in lag), rel=1e-12)
    pairs = [(a, p, [d[a][n] for n in others[a] if d[a][n] > d[a][p]] or [max(d[a][n] for n in others[a])]) for a in mates for p in mates[a]]
    total, count = batch_semi_hard(x, labels, margin=0.5, distance=distance)
    assert count == len(pairs) and total.item() == pytest.approx(sum(max(0, d[a][p] - min(n) + 0.5) for a, p, n in pairs), rel=1e-12)


@pytest.mark.parametrize("loss", ALL)
def test_an_anchor_in_no_triplet_is_left_out(loss):
    """A class of one member is a stranger to the others and no anchor. Far away, it is nobody's hardest negative either."""
    alone = torch.cat([POINTS, torch.tensor([[900.0]], dtype=torch.float64)]), torch.cat([LABELS, torch.tensor([2])])
    if loss is batch_semi_hard:                                                  # anchor 3 has no stranger beyond its mate: now it has
        assert loss(*alone, margin=2.5)[0].item() == pytest.approx(0.5 + 1.5 + 0.5, abs=1e-12) and loss(*alone, margin=2.5)[1] == 4
    else:
        torch.testing.assert_close(call(loss, *alone), call(loss, POINTS, LABELS))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [5, 5, 5, 5]])
def test_a_batch_without_triplets_is_refused(loss, labels):
    with pytest.raises(ValueError, match=f"no triplet among 4 embeddings of {len(set(labels))} classes: a batch needs a class with at least 2 members, and another class"):
        call(loss, POINTS, torch.tensor(labels))


def test_batch_all_has_nothing_to_learn_from_classes_that_are_apart():
    total, count = batch_all(torch.tensor([[0.0], [1.0], [90.0]]), torch.tensor([0, 0, 1]), margin=5.0)
    assert total == 0 and count == 0


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("distance", [cosine, euclidean, manhattan])
def test_gradients_by_finite_differences(loss, distance):
    x, labels = draw(7, 3, seed=2).requires_grad_(), torch.tensor([0, 1, 0, 1, 0, 2, 2])
    assert torch.autograd.gradcheck(lambda e: call(loss, e, labels, 0.7, distance=distance)[0], x)


@pytest.mark.parametrize("loss", ALL)
def test_embeddings_that_are_all_the_same_have_finite_gradients(loss):
    x = torch.ones(4, 3, requires_grad=True)
    total, count = call(loss, x, LABELS)
    total.backward()
    assert total.item() / count == pytest.approx(math.log(2) if loss is batch_hard_soft_margin else 2.5) and x.grad.isfinite().all()


@pytest.mark.parametrize("loss", ALL)
def test_shapes_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"embeddings are \(4,\): wanted \(rows, width\)"):
        call(loss, POINTS[:, 0], LABELS)
    with pytest.raises(ValueError, match=r"labels are \(3,\): wanted one for each of the 4 rows"):
        call(loss, POINTS, LABELS[:3])


@pytest.mark.parametrize("loss", WITH_MARGIN)
def test_a_margin_must_be_above_0(loss):
    with pytest.raises(ValueError, match="margin is 0: wanted a distance above 0"):
        loss(POINTS, LABELS, margin=0)
