"""Measures of what rounding a weight costs."""

import math

import pytest
import torch

from minift.quant import quantize
from minift.quant.errors import error, in_blocks, output_error
from minift.quant.tensor import dequantize


def test_relative_errors_worked_by_hand():
    # int8, row 1: 127 and 1.5 have scale 1, so 1.5 becomes 2: 0.5 lost. Row 2: 254 and 3 have scale 2, so 3 becomes 4: 1 lost.
    W = torch.tensor([[127.0, 1.5], [254.0, 3.0]])
    found = error(W, quantize(W, "int8"))
    assert found.weight == pytest.approx(math.sqrt((0.25 + 1) / (127**2 + 1.5**2 + 254**2 + 9)))
    assert found.worst_block == pytest.approx(0.5 / math.sqrt(127**2 + 1.5**2)) and found.output is None is found.nearest


def test_the_worst_block_is_one_that_shares_a_scale():
    W = torch.ones(3, 150)
    W[1, 130] = 0.37                                                        # the second group of 128 in row 1; the other numbers are on the grid
    q = quantize(W, "int4", 128)
    wrong = 0.37 - dequantize(q)[1, 130].item()
    assert abs(wrong) == pytest.approx(6 / 15 - 0.37, rel=1e-2)
    assert error(W, q).worst_block == pytest.approx(abs(wrong) / math.sqrt(21 + 0.37**2), rel=1e-2)   # scales are float16


@pytest.mark.parametrize("scheme, size, shape", [("nf4", 64, (6, 64)), ("fp4", 32, (12, 32)), ("int8", None, (5, 71)), ("int4", 16, (25, 16))])
def test_blocks_are_the_schemes_own_and_hold_every_number_once(scheme, size, shape):
    W = torch.arange(1.0, 5 * 71 + 1).view(5, 71)
    found = in_blocks(W, quantize(W, scheme, size))
    assert found.shape == shape and sorted(found[found > 0].tolist()) == sorted(W.flatten().tolist())
    assert found.abs().sum() == W.sum()


def test_what_is_lost_nowhere_is_0_and_zeros_are_no_division():
    assert error(torch.zeros(2, 9), quantize(torch.zeros(2, 9), "nf4")).weight == 0
    W = torch.tensor([[127.0, 5.0, -3.0], [0.0, 0.0, 0.0]])
    assert error(W, quantize(W, "int8")) == error(W, quantize(W, "int8")).__class__(0.0, 0.0)


def test_a_block_that_came_out_as_zeros_has_lost_all_of_itself():
    W = torch.cat([torch.ones(1, 64), torch.full((1, 64), 1e-9)])
    q = quantize(W, "nf4", 64)
    q.absmax.codes.zero_(), q.absmax.absmax.zero_(), q.absmax.offset.zero_()
    assert error(W, q).worst_block == pytest.approx(1) and error(W, q).weight == pytest.approx(1)


def test_the_output_error_is_that_of_the_outputs():
    torch.manual_seed(0)
    X, W = torch.randn(40, 13) @ torch.randn(13, 13), torch.randn(7, 13)
    rounded = dequantize(quantize(W, "int4", 8))
    wanted = ((X @ (W - rounded).T).norm() / (X @ W.T).norm()).item()
    assert output_error(W, rounded, 2 * X.T @ X) == pytest.approx(wanted, rel=1e-4)
    assert output_error(W, W, 2 * X.T @ X) == 0 and output_error(W, torch.zeros(7, 13), X.T @ X) == pytest.approx(1)
