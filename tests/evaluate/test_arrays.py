"""What the metrics take and refuse."""

import numpy as np
import pytest
import torch

from minift.errors import InputError
from minift.evaluate.arrays import directions, numbers, whole_numbers


@pytest.mark.parametrize("values", [[1.5, 2.0], (1.5, 2.0), np.float32([1.5, 2]), torch.tensor([1.5, 2]), torch.tensor([1.5, 2], dtype=torch.bfloat16, requires_grad=True)])
def test_lists_arrays_and_tensors_are_the_same_numbers(values):
    found = numbers(values, "x", 1)
    assert found.dtype == np.float64 and found.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("values, text", [
    ([[1.0]], r"x: shape \(1, 1\), but 1 axes"),
    ([], "x: shape .* nothing to score"),
    ([1.0, float("nan")], "x: row 1 has NaN or infinity"),
    ([float("inf")], "x: row 0 has NaN or infinity"),
    (["cat"], "x: no array of numbers"),
    ([[1, 2], [3]], "x: no array of numbers"),
])
def test_what_is_no_list_of_numbers_is_refused(values, text):
    with pytest.raises(InputError, match=text):
        numbers(values, "x", 1)


def test_classes_are_whole_numbers_below_their_count():
    assert whole_numbers(torch.tensor([0, 2]), "labels", 3).dtype == np.int64
    with pytest.raises(InputError, match="labels: row 1 is 3, but there are 3 classes, 0 to 2"):
        whole_numbers([0, 3], "labels", 3)
    with pytest.raises(InputError, match="labels: row 1 is -100, but whole numbers from 0"):
        whole_numbers([0, -100], "labels", 3)
    with pytest.raises(InputError, match="row 0 is 0.5"):
        whole_numbers([0.5], "labels")


def test_a_row_of_zeros_has_no_direction():
    assert directions([[3.0, 4.0]], "x").tolist() == [[0.6, 0.8]]
    with pytest.raises(InputError, match="x: row 1 is all zeros"):
        directions([[3.0, 4.0], [0.0, 0.0]], "x")
