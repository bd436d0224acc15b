"""InfoNCE, worked by hand, longhand over ids, and cut into fake processes.

By hand: anchors (1, 0) and (0, 2), positives (1, 0) and (0.6, 0.8), temperature 0.5. Cosines [[1, 0.6], [0, 0.8]], so scores [[2, 1.2], [0, 1.6]]."""

import math

import pytest
import torch

from minift.losses.contrastive import LearnedTemperature, info_nce, info_nce_symmetric, simcse, simcse_supervised

ANCHORS, POSITIVES, NEGATIVES = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, -3.0]])
BOTH = pytest.mark.parametrize("loss", [info_nce, info_nce_symmetric])


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def longhand(scores, own, allowed):
    """One row's loss: scores of all candidates, the right one, those in the sum."""
    return math.log(sum(math.exp(s) for s, yes in zip(scores, allowed) if yes)) - scores[own]


def test_worked_by_hand():                          # log(1 + e^-0.8) + log(1 + e^-1.6)
    total, rows = info_nce(ANCHORS, POSITIVES, temperature=0.5)
    assert rows == 2 and total.item() == pytest.approx(0.371101 + 0.183901, abs=2e-6)


def test_hard_negatives_count_for_every_row():      # (0, -3): scores 0 and -2. log(1 + e^-0.8 + e^-2) + log(1 + e^-1.6 + e^-3.6)
    total, rows = info_nce(ANCHORS, POSITIVES, NEGATIVES, temperature=0.5)
    assert rows == 2 and total.item() == pytest.approx(0.460373 + 0.206380, abs=2e-6)


def test_symmetric_worked_by_hand():                # the other way round: log(1 + e^-2) + log(1 + e^-0.4); half of all four
    total, rows = info_nce_symmetric(ANCHORS, POSITIVES, temperature=0.5)
    assert rows == 2 and total.item() == pytest.approx((0.371101 + 0.183901 + 0.126928 + 0.513015) / 2, abs=2e-6)
    total, _ = info_nce_symmetric(ANCHORS, POSITIVES, NEGATIVES, temperature=0.5)
    assert total.item() == pytest.approx((0.460373 + 0.206380 + 0.126928 + 0.513015) / 2, abs=2e-6)


@BOTH
def test_embeddings_that_say_nothing_lose_the_logarithm_of_the_number_of_candidates(loss):
    same = torch.ones(5, 3)
    assert loss(same, same, temperature=0.1)[0].item() == pytest.approx(5 * math.log(5), abs=1e-5)
    assert info_nce(same, same, torch.ones(7, 3), temperature=0.1)[0].item() == pytest.approx(5 * math.log(12), abs=1e-5)


@BOTH
def test_gradients_by_finite_differences(loss):
    a, p, n = (draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 5), (3, 5), (7, 5)]))
    ids = torch.tensor([1, 2, 1]), torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9, 2, 4, 10, 11])
    assert torch.autograd.gradcheck(lambda *x: loss(*x, temperature=0.3)[0], (a, p, n))
    assert torch.autograd.gradcheck(lambda *x: loss(*x, temperature=0.3, ids=ids)[0], (a, p, n))


@BOTH
def test_lengths_do_not_count_and_the_temperature_does(loss):
    a, p = draw(4, 3, seed=1), draw(4, 3, seed=2)
    assert torch.allclose(loss(9 * a, p / 7, temperature=0.2)[0], loss(a, p, temperature=0.2)[0])
    assert abs(loss(a, p, temperature=0.2)[0] - loss(a, p, temperature=0.4)[0]) > 0.1


# ---- trap 41: what is no negative; what is one batch

A_IDS, P_IDS, N_IDS = torch.tensor([0, 1, 0, 3, 4]), torch.tensor([10, 11, 12, 10, 1]), torch.tensor([20, 12, 3])
"""Rows 0 and 2 have the same anchor, 0 and 3 the same positive; row 4's positive is row 1's anchor; hard negative 1 is row 2's positive,
hard negative 2 is row 3's anchor."""
NO_NEGATIVES = {0: {2, 3}, 1: {4}, 2: {0, 6}, 3: {0, 7}, 4: set()}
"""row -> places among the 5 positives and 3 hard negatives"""


def test_trap41_a_positive_that_another_row_shares_or_that_is_its_anchor_is_no_negative():
    a, p, n = draw(5, 3, seed=1), draw(5, 3, seed=2), draw(3, 3, seed=3)
    cos = torch.nn.functional.cosine_similarity(a[:, None], torch.cat([p, n]), dim=-1) / 0.2
    wanted = sum(longhand(cos[i].tolist(), i, [j not in NO_NEGATIVES[i] for j in range(8)]) for i in range(5))
    assert info_nce(a, p, n, temperature=0.2, ids=(A_IDS, P_IDS, N_IDS))[0].item() == pytest.approx(wanted, rel=1e-12)
    assert info_nce(a, p, n, temperature=0.2)[0] > wanted + 0.1
    back = sum(longhand(cos[:, i].tolist(), i, [i not in NO_NEGATIVES[j] for j in range(5)]) for i in range(5))
    symmetric, _ = info_nce_symmetric(a, p, n, temperature=0.2, ids=(A_IDS, P_IDS, N_IDS))
    assert symmetric.item() == pytest.approx((wanted + back) / 2, rel=1e-12)


def test_trap41_a_twin_is_not_pushed_away():
    """Two rows with one positive and nothing else: nothing to learn, though the positive stands in the batch twice."""
    a, p = draw(2, 3, seed=1).requires_grad_(), draw(1, 3, seed=2).repeat(2, 1).requires_grad_()
    total, _ = info_nce(a, p, temperature=0.1, ids=(torch.tensor([0, 1]), torch.tensor([5, 5])))
    total.backward()
    assert total == 0 and not a.grad.any() and not p.grad.any()
    assert info_nce(a, p, temperature=0.1)[0] > 0.5


@BOTH
def test_trap41_ids_that_all_differ_change_nothing(loss):
    a, p, n = draw(5, 3, seed=1), draw(5, 3, seed=2), draw(3, 3, seed=3)
    ids = torch.arange(5), torch.arange(5, 10), torch.arange(10, 13)
    assert torch.equal(loss(a, p, n, temperature=0.2, ids=ids)[0], loss(a, p, n, temperature=0.2)[0])


def test_trap41_two_processes_with_two_hard_negatives_each_are_one_batch():
    """Each scores its own anchors; the other's candidates are further negatives, in whatever order they were gathered. Values and the
    gradients through what was gathered add up to those of the whole batch."""
    a, p, n1, n2 = (draw(6, 4, seed=seed).requires_grad_() for seed in range(4))
    whole, rows = info_nce(a, p, torch.cat([n1, n2]), temperature=0.1)
    mine, other = slice(0, 3), slice(3, 6)
    first = info_nce(a[mine], p[mine], torch.cat([n1[mine], n2[mine], p[other], n1[other], n2[other]]), temperature=0.1)
    by_rows = torch.stack([p, n1, n2], 1)[mine].flatten(0, 1)                    # P N N P N N P N N
    second = info_nce(a[other], p[other], torch.cat([by_rows, n1[other], n2[other]]), temperature=0.1)
    assert rows == first[1] + second[1] == 6
    torch.testing.assert_close(first[0] + second[0], whole, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(first[0] + second[0], (a, p, n1, n2)), torch.autograd.grad(whole, (a, p, n1, n2))):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@BOTH
def test_trap41_two_small_batches_are_an_easier_question_than_one_large(loss):
    a, p = draw(6, 4, seed=1), draw(6, 4, seed=2)
    halves = sum(loss(a[part], p[part], temperature=0.1)[0] for part in (slice(0, 3), slice(3, 6)))
    assert halves < loss(a, p, temperature=0.1)[0] - 1


# ---- SimCSE

def test_simcse_is_info_nce_of_two_views_and_knows_repeated_texts():
    first, second = draw(4, 3, seed=1), draw(4, 3, seed=2)
    assert torch.equal(simcse(first, second)[0], info_nce(first, second, temperature=0.05)[0])
    ids = torch.tensor([7, 8, 7, 9])
    cos = torch.nn.functional.cosine_similarity(first[:, None], second, dim=-1) / 0.05
    wanted = sum(longhand(cos[i].tolist(), i, [i == j or ids[i] != ids[j] for j in range(4)]) for i in range(4))
    assert simcse(first, second, ids=ids)[0].item() == pytest.approx(wanted, rel=1e-12)


def test_supervised_simcse_takes_contradictions_as_hard_negatives_of_every_row():
    a, p, n = draw(4, 3, seed=1), draw(4, 3, seed=2), draw(4, 3, seed=3)
    cos = torch.nn.functional.cosine_similarity(a[:, None], torch.cat([p, n]), dim=-1) / 0.05
    wanted = sum(longhand(cos[i].tolist(), i, [True] * 8) for i in range(4))
    total, rows = simcse_supervised(a, p, n)
    assert rows == 4 and total.item() == pytest.approx(wanted, rel=1e-12)


# ---- temperature

@BOTH
def test_a_temperature_may_be_a_tensor_and_learn(loss):
    a, p = draw(4, 3, seed=1), draw(4, 3, seed=2)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    total, _ = loss(a, p, temperature=temperature)
    assert total.item() == pytest.approx(loss(a, p, temperature=0.3)[0].item(), rel=1e-12)
    slope = (loss(a, p, temperature=0.3 + 1e-6)[0] - loss(a, p, temperature=0.3 - 1e-6)[0]) / 2e-6
    assert torch.autograd.grad(total, temperature)[0].item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_learned_temperature_starts_where_asked_and_learns_its_logarithm():
    learned = LearnedTemperature(0.2)
    assert learned().item() == pytest.approx(0.2, rel=1e-6) and [name for name, _ in learned.named_parameters()] == ["log_scale"]
    learned().backward()
    assert learned.log_scale.grad.item() == pytest.approx(-0.2, rel=1e-6)          # d e^-x / dx


def test_a_learned_temperature_is_stopped_at_its_limit_and_can_come_back():
    learned = LearnedTemperature(0.02, largest_scale=100.0)
    learned.log_scale.data.fill_(9.0)
    assert learned().item() == pytest.approx(0.01, rel=1e-5) and learned.log_scale.item() == pytest.approx(math.log(100), rel=1e-6)
    learned().backward()
    assert learned.log_scale.grad.abs() > 1e-3


# ---- precision and bad input

@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_scores_are_computed_in_float32_from_half_precision_and_under_autocast(half):
    a, p = draw(6, 8, seed=1).to(half), draw(6, 8, seed=2).to(half)
    exact = info_nce(a.double(), p.double(), temperature=0.02)[0].item()
    assert info_nce(a, p, temperature=0.02)[0].item() == pytest.approx(exact, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(a.float(), p.float(), temperature=0.02)[0].item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), torch.tensor(0.0)])
def test_a_temperature_must_be_above_0(temperature):
    for loss in (info_nce, info_nce_symmetric):
        with pytest.raises(ValueError, match="temperature is .*: wanted a number above 0"):
            loss(ANCHORS, POSITIVES, temperature=temperature)
    with pytest.raises(ValueError, match="temperature is"):
        LearnedTemperature(float(temperature))


@BOTH
def test_one_row_alone_has_no_negatives(loss):
    with pytest.raises(ValueError, match="1 row and no other candidate: give at least 2 rows, or hard negatives"):
        loss(ANCHORS[:1], POSITIVES[:1], temperature=0.1)
    assert loss(ANCHORS[:1], POSITIVES[:1], NEGATIVES, temperature=0.1)[1] == 1


@BOTH
def test_shapes_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"anchors \(2, 2\), positives \(1, 2\); wanted \(rows, width\)"):
        loss(ANCHORS, POSITIVES[:1], temperature=0.1)
    with pytest.raises(ValueError, match=r"anchors \(2,\), positives \(2,\)"):
        loss(ANCHORS[0], POSITIVES[0], temperature=0.1)
    with pytest.raises(ValueError, match=r"negatives are \(3, 4\): wanted \(any number, 2\)"):
        loss(ANCHORS, POSITIVES, torch.ones(3, 4), temperature=0.1)
    ids = torch.arange(2)
    with pytest.raises(ValueError, match="ids of 2 columns for 3"):
        loss(ANCHORS, POSITIVES, NEGATIVES, temperature=0.1, ids=(ids, ids))
    with pytest.raises(ValueError, match=r"positives' ids are \(1,\): wanted one for each of the 2 rows"):
        loss(ANCHORS, POSITIVES, temperature=0.1, ids=(ids, ids[:1]))
