"""Embeddings whose first numbers are embeddings: cuts, lengths, weights, counts."""

import pytest
import torch

from minift.losses.contrastive import info_nce
from minift.losses.distance import unit
from minift.losses.matryoshka import matryoshka
from minift.losses.mining import batch_all
from minift.losses.similarity import cosine_mse


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot_mse(u, v):
    """A loss that sees lengths."""
    return ((u * v).sum(1) - 0.5).square().sum(), len(u)


def test_worked_by_hand():
    """u = (3, 4, 12), v = (3, -4, 12). First two: 3/5, 4/5 and 3/5, -4/5, cosine -7/25. All: (9 - 16 + 144) / 169. Weights 2 and 1."""
    u, v = torch.tensor([[3.0, 4.0, 12.0]], dtype=torch.float64), torch.tensor([[3.0, -4.0, 12.0]], dtype=torch.float64)
    total, pairs = matryoshka(dot_mse, (u, v), dims=(2, 3), weights=(2, 1))
    assert pairs == 1 and total.item() == pytest.approx(2 * (-7 / 25 - 0.5) ** 2 + (137 / 169 - 0.5) ** 2, abs=1e-12)


def test_weights_are_1_unless_given():
    u, v = draw(4, 6, seed=1), draw(4, 6, seed=2)
    total, pairs = matryoshka(dot_mse, (u, v), dims=(6, 1, 3))
    wanted = sum(dot_mse(unit(u[:, :d]), unit(v[:, :d]))[0] for d in (1, 3, 6))
    assert pairs == 4 and total.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_first_numbers_learn_from_every_dim_and_the_last_from_one():
    u, v = draw(4, 6, seed=1).requires_grad_(), draw(4, 6, seed=2)
    small = torch.autograd.grad(matryoshka(dot_mse, (u, v), dims=(2,))[0], u)[0]
    assert small[:, :2].abs().min() > 0 and not small[:, 2:].any()
    both, whole = (torch.autograd.grad(matryoshka(dot_mse, (u, v), dims=dims)[0], u)[0] for dims in ((2, 6), (6,)))
    torch.testing.assert_close(both, small + whole)


def test_any_number_of_columns_of_any_number_of_rows():
    a, p, n = (draw(rows, 5, seed=rows).requires_grad_() for rows in (3, 3, 7))
    loss = lambda *columns: info_nce(*columns, temperature=0.3)
    wanted = 0.5 * loss(a[:, :2], p[:, :2], n[:, :2])[0] + loss(a, p, n)[0]
    total, rows = matryoshka(loss, (a, p, n), dims=(2, 5), weights=(0.5, 1.0))
    assert rows == 3 and total.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda *x: matryoshka(loss, x, dims=(2, 5))[0], (a, p, n))


def test_counts_that_differ_from_dim_to_dim_weigh_the_means_not_the_sums():
    x, labels = draw(8, 6, seed=3), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    loss = lambda e: batch_all(e, labels, margin=0.3)
    parts = [loss(unit(x[:, :d])) for d in (2, 6)]
    assert parts[0][1] != parts[1][1]
    total, count = matryoshka(loss, (x,), dims=(2, 6))
    assert count == max(n for _, n in parts) and (total / count).item() == pytest.approx(sum((t / n).item() for t, n in parts), rel=1e-12)


def test_a_dim_with_nothing_to_learn_adds_nothing():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 9.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    loss = lambda e: batch_all(e, labels, margin=1.9)                            # of the first number alone: -1 is 2 from 1
    assert loss(unit(x[:, :1])) == (0, 0) and loss(unit(x))[1] > 0
    torch.testing.assert_close(matryoshka(loss, (x,), dims=(1, 2)), loss(unit(x)))
    assert matryoshka(loss, (x,), dims=(1,)) == (0, 0)


@pytest.mark.parametrize("dims", [(), (0, 2), (2, 7), (2, 2), (-1,)])
def test_dims_that_no_embedding_has_are_refused(dims):
    with pytest.raises(ValueError, match=r"dims are .*: wanted at least one, each once, from 1 to the embeddings' width of 6"):
        matryoshka(cosine_mse, (draw(4, 6, seed=1), draw(4, 6, seed=2)), dims=dims)


def test_a_weight_for_each_dim():
    with pytest.raises(ValueError, match="1 weights for 2 dims"):
        matryoshka(dot_mse, (draw(4, 6, seed=1), draw(4, 6, seed=2)), dims=(2, 6), weights=(1.0,))
