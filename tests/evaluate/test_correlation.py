"""Correlations: values worked by hand, ties, and what a constant list gives."""

import math

import pytest
import torch

from minift.errors import InputError
from minift.evaluate.correlation import pearson, ranks, regression, spearman


def test_equal_numbers_share_the_mean_of_their_places():
    assert ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]
    assert ranks([7, 7, 7]).tolist() == [2, 2, 2]


def test_pearson_worked_by_hand():                 # deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 x 6)
    assert pearson([1, 2, 3], [1, 1, 4]) == pytest.approx(3 / math.sqrt(12))


def test_spearman_worked_by_hand_with_a_tie():     # ranks (1, 2, 3) and (1.5, 1.5, 3): deviations (-.5, -.5, 1): 1.5 / sqrt(2 x 1.5)
    assert spearman([1, 2, 3], [5, 5, 900]) == pytest.approx(1.5 / math.sqrt(3))


def test_only_order_counts_for_spearman_and_only_the_line_for_pearson():
    x = torch.tensor([0.0, 1, 2, 3], dtype=torch.float64)
    assert spearman(x, x.exp()) == pytest.approx(1) and spearman(x, -x.exp()) == pytest.approx(-1)
    assert pearson(x, x.exp()) < 0.95 and pearson(x, 1e-9 * x + 1e3) == pytest.approx(1)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_constant_list_gives_nan_and_no_error(correlation):
    assert math.isnan(correlation([0.1] * 3, [1, 2, 3])) and math.isnan(correlation([1, 2, 3], [0.1] * 3))
    assert math.isnan(correlation([1], [2]))


def test_regression_worked_by_hand():              # errors 0, 1, -2
    scores = regression([1, 3, 1], [1, 2, 3])
    assert scores["mse"] == pytest.approx(5 / 3) and scores["rmse"] == pytest.approx(math.sqrt(5 / 3)) and scores["mae"] == 1 and scores["rows"] == 3
    assert scores["pearson"] == pytest.approx(0, abs=1e-15) and scores["spearman"] == pytest.approx(0, abs=1e-15)


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="found 2 x, 3 y"):
        pearson([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="predictions: row 0 has NaN"):
        regression([math.nan], [1.0])
