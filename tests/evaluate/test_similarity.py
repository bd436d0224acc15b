"""STS, alignment and uniformity: corners of a square, worked by hand."""

import math

import numpy as np
import pytest
import torch

from minift.errors import InputError
from minift.evaluate import similarity
from minift.evaluate.similarity import alignment, cosine, sts, uniformity

SQUARE = np.array([[1.0, 0], [0, 2], [-3, 0], [0, -4]])                      # lengths differ: only the direction counts


def test_cosine_is_of_row_with_row_and_forgets_lengths():
    assert cosine(SQUARE, SQUARE[[0, 2, 0, 3]]).tolist() == [1, 0, -1, 1]
    assert cosine(torch.tensor([[3.0, 4]]), [[6, 8]]) == pytest.approx([1])


def test_sts_worked_by_hand():                     # cosines 1, 0, -1: any rising gold scale is the same to Spearman
    scores = sts(SQUARE[:3], SQUARE[[0, 2, 0]], [100, 2, 1])
    assert scores["spearman"] == pytest.approx(1) and scores["pairs"] == 3
    assert scores["pearson"] == pytest.approx(99 / math.sqrt(2 * (197**2 + 97**2 + 100**2) / 9))


def test_alignment_worked_by_hand():               # distances 0, sqrt 2, 2
    a, b = SQUARE[:3], SQUARE[[0, 2, 0]]
    assert alignment(a, b) == pytest.approx((0 + 2 + 4) / 3) and alignment(a, b, power=1) == pytest.approx((math.sqrt(2) + 2) / 3)
    assert alignment(a, 7 * a) == pytest.approx(0, abs=1e-15)


def test_uniformity_worked_by_hand():              # six pairs: four at squared distance 2, two at 4
    assert uniformity(SQUARE) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    assert uniformity(SQUARE, t=1) == pytest.approx(math.log((4 * math.exp(-2) + 2 * math.exp(-4)) / 6))
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-14)


def test_uniformity_does_not_depend_on_its_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(23, 5))
    whole = uniformity(x)
    unit = torch.nn.functional.normalize(torch.tensor(x))
    assert whole == pytest.approx(float(torch.pdist(unit).pow(2).mul(-2).exp().mean().log()))     # the paper's own two lines
    monkeypatch.setattr(similarity, "_ROWS", 4)
    assert uniformity(x) == pytest.approx(whole)


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"pairs of shape \(3, 2\) and \(4, 2\)"):
        sts(SQUARE[:3], SQUARE, [1, 2, 3])
    with pytest.raises(InputError, match="found 4 pairs, 3 gold"):
        sts(SQUARE, SQUARE, [1, 2, 3])
    with pytest.raises(InputError, match="b: row 1 is all zeros"):
        alignment(SQUARE[:2], [[1, 0], [0, 0]])
    with pytest.raises(InputError, match="one vector has no pairs"):
        uniformity(SQUARE[:1])
