"""Heads on features: minima, early stops, neighbours worked by hand. That the linear one is sklearn's is tests/parity/test_classifiers.py."""

import math
from functools import partial

import pytest
import torch

from minift.classify.heads import CHOICES, FEW, LinearHead, MLPHead, NearestHead, Standardized, make, chosen_l2
from minift.errors import InputError
from minift.losses.classification import multi_label, single_label, squared_error

N, C, K = 61, 7, 3


def blobs(seed: int = 0, rows: int = N, spread: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around K centres, in units of a thousand and a thousandth, far from zero."""
    dice = torch.Generator().manual_seed(seed)
    centres = torch.randn(K, C, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % K
    scale = torch.tensor([1000.0, 0.001, 1, 1, 50, 1, 1])
    return (centres[labels] + spread * torch.randn(rows, C, generator=dice)) * scale + 5 * scale, labels


# ---- standardized features


def test_standardized_features_have_mean_0_and_variance_1_worked_by_hand():
    one = Standardized(2)
    x = one.learn(torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]]))
    torch.testing.assert_close(x, torch.tensor([[-(1.5**0.5), -(0.5**0.5)], [0.0, -(0.5**0.5)], [1.5**0.5, 2**0.5]]))
    torch.testing.assert_close(one(torch.tensor([[3.0, 20.0]])), torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_a_feature_that_never_changes_becomes_0_whatever_it_is_later():
    one, features = Standardized(3), torch.randn(1003, 3, generator=torch.Generator().manual_seed(0))
    features[:, 1] = 0.1                                                # no sum of it is exact
    features[:, 2] *= 1e-5                                              # little, but it does change
    x = one.learn(features)
    assert x[:, 1].eq(0).all() and x[:, 2].std() == pytest.approx(1, abs=1e-2)
    assert one(torch.full((1, 3), 7.0))[0, 1] == 0
    assert Standardized(3).learn(torch.ones(1, 3)).eq(0).all()           # of one row nothing changes


# ---- linear


def test_a_linear_head_stands_at_the_minimum():
    features, labels = blobs()
    head = LinearHead(C, K).double()
    steps = head.fit(features.double(), labels, single_label, l2=0.01)
    assert 1 < steps < 200
    x = head.standardized(features.double())
    head.zero_grad()
    total, rows = single_label(head.out(x), labels)
    (total / rows + 0.01 / 2 * head.out.weight.square().sum()).backward()
    assert max(p.grad.abs().max().item() for p in head.out.parameters()) < 1e-5
    assert (head(features.double()).argmax(1) == labels).double().mean() > 0.7


# L-BFGS ends when a step gains less than 1e-9; the loss is l2-strongly convex, so W is within sqrt(2e-9 / l2) of the minimum: 1.4e-4 at l2 = 0.1,
# 4.5e-4 at 0.01, and a score of C standardized features within a few times that.


def test_l2_weighs_the_mean_loss_and_not_its_sum_and_leaves_the_bias_alone():
    """Every row twice: the same minimum. An l2 far too large: the scores are those of the labels' shares, 4 of 7, 2 of 7, 1 of 7."""
    features, labels = blobs()
    once, twice = LinearHead(C, K), LinearHead(C, K)
    once.fit(features, labels, single_label, l2=0.1)
    twice.fit(features.repeat(2, 1), labels.repeat(2), single_label, l2=0.1)
    torch.testing.assert_close(once.out.weight, twice.out.weight, atol=1e-3, rtol=0)
    assert once.out.weight.abs().max() > 0.1
    head = LinearHead(C, K)
    head.fit(features[:7], torch.tensor([0, 1, 0, 2, 0, 1, 0]), single_label, l2=1e3)
    torch.testing.assert_close(head(features[:7]).softmax(1), torch.tensor([4 / 7, 2 / 7, 1 / 7]).expand(7, 3), atol=2e-3, rtol=0)


def test_neither_seed_nor_order_nor_unit_nor_an_earlier_fit_changes_a_linear_head():
    features, labels = blobs()
    found = []
    for seed, unit in ((0, 1.0), (1, 1.0), (2, 1e-3)):
        torch.manual_seed(seed)
        order, head = torch.randperm(N), LinearHead(C, K)
        head.fit(features[order] * unit, labels[order], single_label, l2=0.01)
        found.append(head(features * unit))
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=2e-3, rtol=0)
    head.fit(features, labels.flip(0), single_label, l2=0.01)
    head.fit(features, labels, single_label, l2=0.01)
    torch.testing.assert_close(head(features), found[0], atol=2e-3, rtol=0)


def test_the_scale_of_new_rows_is_that_of_the_training_rows():
    features, labels = blobs()
    head = LinearHead(C, K)
    head.fit(features, labels, single_label, l2=0.01)
    torch.testing.assert_close(head(features)[5:6], head(features[5:6]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_a_number_is_ridge_regression(l2):
    """W = (X'X / N + l2 / 2)^-1 X'y / N of the squared error, whose gradient has a 2; the bias is the mean."""
    features, _ = blobs()
    values = 1000 + features[:, 0] / 100 + torch.randn(N, generator=torch.Generator().manual_seed(3))
    head = LinearHead(C, 1).double()
    head.fit(features.double(), values.double(), squared_error, l2=l2)
    x, y = head.standardized(features.double()), values.double() - values.double().mean()
    wanted = torch.linalg.solve(x.T @ x / N + l2 / 2 * torch.eye(C).double(), x.T @ y / N)
    torch.testing.assert_close(head.out.weight[0], wanted, atol=1e-3, rtol=1e-4)
    assert head.out.bias.item() == pytest.approx(values.double().mean().item(), abs=1e-2)


# ---- MLP


def rings(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc in a ring: no line tells them apart."""
    dice = torch.Generator().manual_seed(seed)
    angle, labels = 2 * math.pi * torch.rand(rows, generator=dice), torch.arange(rows) % 2
    radius = 1.0 + 2.0 * labels + 0.3 * torch.rand(rows, generator=dice)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def test_an_mlp_tells_apart_what_no_line_can():
    (x, y), held_out = rings(0, 201), rings(1, 101)
    line, bent = LinearHead(2, 2), MLPHead(2, 2, hidden=33)
    line.fit(x, y, single_label, l2=1e-3)
    epochs = bent.fit(x, y, single_label, l2=1e-2, lr=1e-2, held_out=held_out)
    right = lambda head: (head.eval()(held_out[0]).argmax(1) == held_out[1]).float().mean()
    assert right(line) < 0.7 and right(bent) > 0.97 and 1 < epochs <= 100


def test_the_best_epoch_stays_and_patience_counts_epochs_without_a_gain():
    """Held-out labels are the training ones turned round: nothing is gained after the first epochs."""
    x, y = blobs()
    wrong = (x, (y + 1) % K)
    head = MLPHead(C, K, hidden=9)
    assert head.fit(x, y, single_label, l2=0.0, lr=1e-2, patience=3, held_out=wrong) == 4
    first = MLPHead(C, K, hidden=9)
    assert first.fit(x, y, single_label, l2=0.0, lr=1e-2, epochs=1, held_out=wrong) == 1
    assert not head.training and all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), first.state_dict().values()))


def test_an_mlp_depends_on_its_seed_and_on_nothing_else():
    x, y = blobs()
    made = []
    for seed, outside in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(outside)
        head = MLPHead(C, K, hidden=9)
        before = torch.random.get_rng_state()
        assert head.fit(x, y, single_label, l2=0.01, seed=seed, epochs=3) == 3
        assert torch.equal(before, torch.random.get_rng_state())
        made.append(head(x))
    assert torch.equal(made[0], made[1]) and not torch.allclose(made[0], made[2], atol=0.01)
    assert torch.equal(head(x), head(x))                                # dropout is over


def test_an_mlp_drops_hidden_numbers_while_it_trains():
    head = MLPHead(C, K, hidden=9).train()
    assert not torch.equal(head(torch.ones(1, C)), head(torch.ones(1, C)))
    head.eval()
    x = torch.randn(5, C)
    by_hand = (x @ head.inner.weight.T + head.inner.bias).clamp(min=0) @ head.out.weight.T + head.out.bias
    torch.testing.assert_close(head(x), by_hand)


# ---- nearest neighbours


def directions(*degrees: float) -> torch.Tensor:
    turn = torch.tensor([math.radians(d) for d in degrees])
    return torch.stack([turn.cos(), turn.sin()], 1)


def nearest(problem: str, answers, k: int, outputs: int = 3) -> NearestHead:
    head = NearestHead(2, outputs, problem, k=k)
    head.fit(directions(0, 20, 50, 90, 180) * torch.tensor([[1.0], [9.0], [0.1], [3.0], [2.0]]), answers)     # lengths say nothing
    return head


def test_the_shares_of_the_nearest_labels_worked_by_hand():
    head = nearest("single", torch.tensor([0, 1, 1, 2, 2]), k=3)
    chances = head(directions(5, 170)).softmax(1)                        # near 5 degrees: 0, 20, 50; near 170: 180, 90, 50
    torch.testing.assert_close(chances, torch.tensor([[1 / 3, 2 / 3, 0.0], [0.0, 1 / 3, 2 / 3]]), atol=3e-6, rtol=0)
    assert torch.isfinite(head(directions(5))).all()


def test_the_shares_of_several_labels_worked_by_hand():
    held = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]).float()
    chances = nearest("multi", held, k=3)(directions(5)).sigmoid()
    torch.testing.assert_close(chances, torch.tensor([[2 / 3, 2 / 3, 0.0]]), atol=3e-6, rtol=0)
    assert nearest("multi", held, k=2)(directions(5))[0].tolist()[1] == pytest.approx(0, abs=1e-6)            # one of two: neither yes nor no


def test_the_mean_of_the_nearest_numbers_worked_by_hand():
    assert nearest("regression", torch.tensor([1.0, 2.0, 6.0, 100.0, 100.0]), k=3, outputs=1)(directions(5)).tolist() == [[3.0]]


def test_of_two_rows_that_are_as_near_the_earlier_counts():
    head = NearestHead(2, 4, "single", k=1)
    head.fit(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([3, 1, 0, 2]))
    assert head(torch.tensor([[1.0, 0.0]])).argmax().item() == 1


def test_many_questions_are_answered_in_blocks_and_in_their_order():
    x, y = blobs(rows=1500)
    head = NearestHead(C, K, "single", k=5)
    head.fit(x[:100], y[:100])
    whole = head(x)
    assert whole.shape == (1500, K) and torch.equal(head(x[1100:1101]), whole[1100:1101]) and torch.equal(head(x[7:8]), whole[7:8])


def test_more_neighbours_than_rows_are_refused():
    with pytest.raises(InputError, match="6 neighbours of 5 training rows: take fewer"):
        nearest("single", torch.tensor([0, 1, 1, 2, 2]), k=6)


@pytest.mark.parametrize("problem, outputs", [("single", K), ("multi", K), ("regression", 1)])
@pytest.mark.parametrize("kind", ["linear", "mlp", "knn"])
def test_every_head_fits_every_problem_and_its_numbers_come_back(kind, problem, outputs):
    x, y = blobs()
    answers = {"single": y, "multi": torch.stack([y == 0, y != 1, y == 2], 1).float(), "regression": 10.0 * y}[problem]
    loss = {"single": partial(single_label, smoothing=0.1), "multi": multi_label, "regression": squared_error}[problem]
    shape = dict(kind=kind, width=C, outputs=outputs, problem=problem, hidden=9, k=3)
    head = make(**shape)
    head.fit(x, answers) if kind == "knn" else head.fit(x, answers, loss, 1e-3)
    again = make(**shape, rows=N if kind == "knn" else 0)
    again.load_state_dict(head.state_dict())
    assert head.eval()(x).shape == (N, outputs) and torch.equal(again.eval()(x), head(x)) and head(x).std() > 0.1


def test_a_large_l2_is_chosen_where_features_say_nothing_and_a_small_one_where_they_say_all():
    dice = torch.Generator().manual_seed(5)
    shape = dict(kind="linear", width=41, outputs=3, problem="single")
    features = torch.randn(150, 41, generator=dice)
    told = features[:, :3].argmax(1)
    blind = torch.randint(0, 3, (150,), generator=dice)
    assert chosen_l2(features, blind, single_label, shape) == CHOICES[0]
    assert chosen_l2(features, told, single_label, shape) < 0.2
    order = told.argsort()                                                  # a file that is sorted by label has every label in its fifth
    assert chosen_l2(features[order], told[order], single_label, shape) < 0.2
    assert chosen_l2(features[:14], told[:14], single_label, shape) == FEW
