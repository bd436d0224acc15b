"""Does one list of numbers rise with another? Pearson asks for a straight line, Spearman (1904) only for the same order.

    pearson(x, y) = sum_i (x_i - mean x)(y_i - mean y) / (|x - mean x| |y - mean y|)           x, y: (N,)
    spearman(x, y) = pearson(ranks(x), ranks(y))            equal numbers share the mean of the ranks they take up

A list that is constant has no order: the correlation is 0/0, and the result is NaN, as in scipy. It is not an error, because
a collapsed model (all predictions alike) is just what an evaluation in the middle of a run must survive and show; and it is not
0, which would claim that a question was asked and answered. Proved in tests/evaluate/test_correlation.py, equal to scipy in
tests/parity/test_metrics_sklearn.py. Left out: p-values, Kendall's tau."""

import math

import numpy as np

from minift.evaluate.arrays import numbers, same_length


def ranks(x: np.ndarray) -> np.ndarray:
    """(N,): 1 for the smallest, N for the largest; equal numbers get the mean of the places they take up."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()                                                    # the last place that each distinct number takes up
    return (last - (counts - 1) / 2)[which]


def pearson(x, y) -> float:
    """From -1 to 1; NaN if x or y is constant. Raises InputError for lengths that differ, no rows, NaN."""
    x, y = numbers(x, "x", 1), numbers(y, "y", 1)
    same_length(x=x, y=y)
    if (x == x[0]).all() or (y == y[0]).all():                                # asked before: the mean of equal numbers may be off by an ulp
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def spearman(x, y) -> float:
    """From -1 to 1; NaN if x or y is constant. Raises InputError as pearson."""
    return pearson(ranks(numbers(x, "x", 1)), ranks(numbers(y, "y", 1)))


def regression(predictions, targets) -> dict[str, float]:
    """Scores of predicted numbers (N,): pearson, spearman, mse, rmse and mae (in the targets' unit), rows."""
    predictions, targets = numbers(predictions, "predictions", 1), numbers(targets, "targets", 1)
    same_length(predictions=predictions, targets=targets)
    error = predictions - targets
    mse = float((error**2).mean())
    return {
        "pearson": pearson(predictions, targets), "spearman": spearman(predictions, targets),
        "mse": mse, "rmse": math.sqrt(mse), "mae": float(np.abs(error).mean()), "rows": len(error),
    }
