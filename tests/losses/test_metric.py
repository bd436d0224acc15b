"""Distances and losses with a margin, worked by hand.

u = (3, 4), v = (0, 5) and (-4, 3): cosines 0.8 and 0; euclidean distances root 10 and root 50; manhattan 4 and 8."""

import math

import pytest
import torch

from minift.losses.distance import cosine, cosines, euclidean, manhattan, rowwise
from minift.losses.metric import contrastive, online_contrastive, triplet

U, V = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[0.0, 5.0], [-4.0, 3.0]])
DISTANCES = [(cosine, [0.2, 1.0]), (euclidean, [math.sqrt(10), math.sqrt(50)]), (manhattan, [4.0, 8.0])]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(*places):
    """Embeddings on a line: euclidean distances are differences."""
    return torch.tensor(places, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("distance, wanted", DISTANCES)
def test_distances_worked_by_hand(distance, wanted):
    torch.testing.assert_close(rowwise(distance, U, V), torch.tensor(wanted))
    torch.testing.assert_close(distance(U[:1], V), torch.tensor([wanted]))


@pytest.mark.parametrize("distance, _", DISTANCES)
@pytest.mark.parametrize("rows", [1, 3, 30])                                     # more than 25: where cdist would switch to the inexact way
def test_a_matrix_of_distances_holds_those_of_each_pair_and_their_gradients(distance, _, rows):
    u, v = draw(rows, 5, seed=1).requires_grad_(), draw(rows, 5, seed=2).requires_grad_()
    torch.testing.assert_close(distance(u, v).diagonal(), rowwise(distance, u, v))
    if rows == 3:
        assert torch.autograd.gradcheck(distance, (u, v)) and torch.autograd.gradcheck(lambda a, b: rowwise(distance, a, b), (u, v))


@pytest.mark.parametrize("distance, _", DISTANCES)
def test_equal_embeddings_are_at_0_with_a_finite_gradient(distance, _):
    u, v = draw(3, 5, seed=1).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    d = rowwise(distance, u, v)
    d.sum().backward()
    assert d.abs().max() < 1e-15 and u.grad.isfinite().all() and v.grad.isfinite().all()


def test_close_embeddings_far_from_the_origin_keep_their_distance():
    """Expanding the square would lose it: 1e6 squared has no digit left for 1e-2 squared in float32."""
    u = torch.full((40, 3), 1000.0)
    torch.testing.assert_close(euclidean(u, u + 0.25), torch.full((40, 40), math.sqrt(3) / 4))


@pytest.mark.parametrize("distance, _", DISTANCES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_distances_are_computed_in_float32_from_half_precision_and_under_autocast(distance, _, half):
    u, v = draw(4, 8, seed=1).to(half), draw(4, 8, seed=2).to(half)
    exact = distance(u.double(), v.double()).float()
    torch.testing.assert_close(distance(u, v), exact, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distance(u.float(), v.float()), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosines(u, v), 1 - cosine(u, v))


# ---- pairs

def test_contrastive_worked_by_hand():              # distances 1, 3, 1, 3; margin 2: 1/2, 9/2, (2 - 1)^2 / 2, nothing
    u, v, same = line(0, 0, 0, 0), line(1, 3, 1, 3), torch.tensor([True, True, False, False])
    for i, wanted in enumerate([0.5, 4.5, 0.5, 0.0]):
        total, pairs = contrastive(u[i : i + 1], v[i : i + 1], same[i : i + 1], margin=2.0, distance=euclidean)
        assert pairs == 1 and total.item() == pytest.approx(wanted, abs=1e-12)
    total, pairs = contrastive(u, v, same.long(), margin=2.0, distance=euclidean)
    assert pairs == 4 and total.item() == pytest.approx(5.5, abs=1e-12)
    assert contrastive(U, V, torch.tensor([1, 0]), margin=1.5)[0].item() == pytest.approx((0.2**2 + 0.5**2) / 2, abs=1e-6)     # cosine unless told


def test_online_contrastive_keeps_the_hard_pairs_only():
    """Together at 1, 3, 5; apart at 2, 4, 9. Hard: together beyond 2, apart within 5. 9 + 25, and with margin 3: (3 - 2)^2 and 0 of the one at 4."""
    u, v, same = line(*[0] * 6), line(1, 3, 5, 2, 4, 9), torch.tensor([1, 1, 1, 0, 0, 0])
    total, pairs = online_contrastive(u, v, same, margin=3.0, distance=euclidean)
    assert pairs == 4 and total.item() == pytest.approx(9 + 25 + 1, abs=1e-12)


def test_online_contrastive_of_pairs_in_order_has_nothing_to_learn():
    total, pairs = online_contrastive(line(0, 0), line(1, 2), torch.tensor([1, 0]), margin=3.0, distance=euclidean)
    assert total == 0 and pairs == 0


@pytest.mark.parametrize("same, wanted", [([1, 1, 1], 36.0), ([0, 0, 0], 4.0 + 1.0)])
def test_online_contrastive_of_one_kind_of_pair_keeps_those_beyond_the_mean(same, wanted):
    """Distances 1, 2, 6, mean 3: only the 6 is far; 1 and 2 are near, and miss a margin of 3 by 2 and 1."""
    total, _ = online_contrastive(line(0, 0, 0), line(1, 2, 6), torch.tensor(same), margin=3.0, distance=euclidean)
    assert total.item() == pytest.approx(wanted, abs=1e-12)


# ---- triplets

def test_triplet_worked_by_hand():                  # 1 - 4 + 2 < 0; 3 - 4 + 2 = 1; 3 - 1 + 2 = 4
    total, triplets = triplet(line(0, 0, 0), line(1, 3, 3), line(4, -4, 1), margin=2.0)
    assert triplets == 3 and total.item() == pytest.approx(5.0, abs=1e-12)


@pytest.mark.parametrize("distance, wanted", DISTANCES)
def test_a_triplet_takes_any_distance(distance, wanted):
    total, _ = triplet(U[:1], V[1:], V[:1], margin=0.25, distance=distance)
    assert total.item() == pytest.approx(wanted[1] - wanted[0] + 0.25, abs=1e-5)


@pytest.mark.parametrize("distance, _", DISTANCES)
def test_gradients_by_finite_differences(distance, _):
    u, v, n = (draw(5, 4, seed=seed).requires_grad_() for seed in (1, 2, 3))
    same = torch.tensor([1, 0, 1, 0, 0])
    for loss in (contrastive, online_contrastive):
        assert torch.autograd.gradcheck(lambda a, b: loss(a, b, same, margin=2.0, distance=distance)[0], (u, v))
    assert torch.autograd.gradcheck(lambda *x: triplet(*x, margin=2.0, distance=distance)[0], (u, v, n))


# ---- bad input

@pytest.mark.parametrize("loss", [contrastive, online_contrastive])
def test_pairs_that_do_not_fit_are_refused(loss):
    same = torch.tensor([1, 0])
    with pytest.raises(ValueError, match=r"u \(2, 2\), v \(1, 2\); wanted \(rows, width\)"):
        loss(U, V[:1], same, margin=1.0)
    with pytest.raises(ValueError, match=r"labels are \(2, 1\): wanted one for each of the 2 rows"):
        loss(U, V, same[:, None], margin=1.0)
    with pytest.raises(ValueError, match="labels other than 0 and 1"):
        loss(U, V, torch.tensor([0.5, 1.0]), margin=1.0)
    with pytest.raises(TypeError):
        loss(U, V, same)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_must_be_above_0(margin):
    for call in (lambda: contrastive(U, V, torch.tensor([1, 0]), margin=margin), lambda: triplet(U, V, V, margin=margin),
                 lambda: online_contrastive(U, V, torch.tensor([1, 0]), margin=margin)):
        with pytest.raises(ValueError, match="margin is .*: wanted a distance above 0"):
            call()


def test_triplets_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"anchors \(2, 2\), positives \(2, 2\), negatives \(2, 3\)"):
        triplet(U, V, torch.ones(2, 3), margin=1.0)
