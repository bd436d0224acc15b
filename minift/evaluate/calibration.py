"""Expected calibration error (Guo et al. 2017, arXiv:1706.04599): of the answers given with 80 % confidence, are 80 % right?

    ECE = sum_b (n_b / N) |accuracy_b - confidence_b|        b: bins of equal width over (0, 1], closed on the right

The bins are the bars of a reliability plot. ECE depends on how many there are, so the number is part of the result; 15 as in
the paper. Confidence is the largest class's probability, not that of one fixed class (which is another plot, of binary tasks).
Proved in tests/evaluate/test_calibration.py; the bins equal sklearn's in tests/parity/test_metrics_sklearn.py.
Left out: bins of equal counts, temperature scaling."""

from dataclasses import dataclass

import numpy as np

from minift.errors import InputError
from minift.evaluate.arrays import numbers, same_length


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability plot: bin b holds confidences in (edges[b], edges[b + 1]]."""

    edges: np.ndarray
    """(bins + 1,) from 0 to 1."""
    counts: np.ndarray
    """(bins,) int64: answers in each bin."""
    accuracy: np.ndarray
    """(bins,) share of right answers; NaN where a bin is empty."""
    confidence: np.ndarray
    """(bins,) mean confidence; NaN where a bin is empty."""

    @property
    def ece(self) -> float:
        """From 0 (calibrated) to 1. Empty bins weigh nothing."""
        gaps = np.where(self.counts > 0, np.abs(self.accuracy - self.confidence), 0.0)
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(confidence, correct, bins: int = 15) -> Reliability:
    """confidence (N,): probability given to the answer, from 0 to 1. correct (N,): was it right? Raises InputError."""
    confidence, correct = numbers(confidence, "confidence", 1), numbers(correct, "correct", 1)
    same_length(confidence=confidence, correct=correct)
    if bins < 1:
        raise InputError(f"bins is {bins}: at least 1 is wanted")
    if confidence.min() < 0 or confidence.max() > 1:
        raise InputError(f"confidences from {confidence.min():g} to {confidence.max():g}: probabilities are wanted, so softmax comes first")
    edges = np.linspace(0, 1, bins + 1)
    which = np.searchsorted(edges[1:-1], confidence)                          # (N,); an edge belongs to the bin on its left
    counts = np.bincount(which, minlength=bins)
    mean = lambda values: np.divide(np.bincount(which, values, bins), counts, out=np.full(bins, np.nan), where=counts > 0)
    return Reliability(edges, counts, mean(correct), mean(confidence))
