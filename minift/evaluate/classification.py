"""How good is a classifier? Counts in a table first; every score is a fraction of them.

    confusion[t, p] = rows of class t that were given class p            (K, K)
    precision_k = confusion[k, k] / column k     recall_k = confusion[k, k] / row k     F1_k = 2 hits / (column k + row k)
    macro = mean over classes      micro = of the counts added up      samples (multi-label) = mean over rows

Where a fraction is 0/0 the world disagrees. Ours (docs/conventions.md): a class that is never predicted has precision 0, one
that never occurs recall 0, as sklearn's zero_division=0; a class that does neither is not there: its scores are NaN and the macro
mean leaves it out. MCC (Gorodkin 2004) is 0 when labels or predictions are all of one class. AUROC is the chance that a random
positive scores above a random negative, a tie counting one half; without both it is NaN.
Proved in tests/evaluate/test_classification.py, equal to sklearn in tests/parity/test_metrics_sklearn.py.
Left out: weights of rows, curves, thresholds tuned on the test set."""

import math
from collections.abc import Sequence

import numpy as np

from minift.errors import InputError
from minift.evaluate.arrays import numbers, same_length, whole_numbers
from minift.evaluate.calibration import reliability
from minift.evaluate.correlation import ranks


def single_label(logits, labels, names: Sequence[str] | None = None, bins: int = 15) -> dict[str, float]:
    """One class per row. logits (N, K), or log-probabilities; labels (N,) from 0 to K - 1; names: the classes', default their numbers.

    accuracy, mcc, auroc, ece, rows, precision_macro ... f1_micro, and precision[name], recall[name], f1[name] for each class.
    Equal largest logits: the first class is the prediction. auroc: each class's probability against the rest, mean over the
    classes that occur (for K = 2 both have the same). Micro scores all equal accuracy here. Raises InputError."""
    logits = numbers(logits, "logits", 2)
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(f"logits of shape {logits.shape}: one class leaves nothing to decide. A single yes-or-no score is multi_label's")
    labels = whole_numbers(labels, "labels", classes)
    same_length(logits=logits, labels=labels)
    predictions = logits.argmax(1)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    p = odds / odds.sum(1, keepdims=True)                                     # (N, K)
    log_odds = lambda k: logits[:, k] - np.logaddexp.reduce(np.delete(logits, k, axis=1), axis=1)    # orders rows as p_k does, which ties at 1.0
    scores = from_predictions(predictions, labels, classes, names)
    scores["auroc"] = float(np.mean([auroc(log_odds(k), labels == k) for k in np.unique(labels)]))
    scores["ece"] = reliability(p.max(1).clip(0, 1), predictions == labels, bins).ece
    return scores


def from_predictions(predictions, labels, classes: int, names: Sequence[str] | None = None) -> dict[str, float]:
    """single_label's scores without those that need probabilities (auroc, ece). predictions, labels: (N,)."""
    table = confusion_matrix(predictions, labels, classes)
    hits, predicted, labelled = table.diagonal(), table.sum(0), table.sum(1)
    return {
        "accuracy": float(hits.sum() / table.sum()), "mcc": matthews(table), "rows": int(table.sum()),
        **averages(hits, predicted, labelled, names),
    }


def multi_label(logits, labels, names: Sequence[str] | None = None, threshold: float = 0.0) -> dict[str, float]:
    """Any number of classes per row. logits, labels: (N, K), labels 0 or 1. A class is predicted if its logit is above `threshold`
    (0.0: probability one half).

    accuracy (all K right), f1_samples, auroc_macro (over classes that have both), rows, precision_macro ... f1_micro, and
    precision[name], recall[name], f1[name]. A row with neither labels nor predictions has F1 0, as in sklearn. Raises InputError."""
    logits, labels = numbers(logits, "logits", 2), numbers(labels, "labels", 2)
    if logits.shape != labels.shape:
        raise InputError(f"logits of shape {logits.shape} but labels of {labels.shape}: both are (rows, classes), a label per logit")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels hold {labels[~np.isin(labels, (0, 1))][0]:g}: multi-label labels are 0 or 1")
    predicted, wanted = logits > threshold, labels == 1                       # (N, K)
    both = predicted & wanted
    areas = [auroc(logits[:, k], wanted[:, k]) for k in range(logits.shape[1])]
    areas = [area for area in areas if not math.isnan(area)]
    return {
        "accuracy": float((predicted == wanted).all(1).mean()),
        "f1_samples": float(precision_recall_f1(both.sum(1), predicted.sum(1), wanted.sum(1))[2].mean()),
        "auroc_macro": float(np.mean(areas)) if areas else math.nan, "rows": len(logits),
        **averages(both.sum(0), predicted.sum(0), wanted.sum(0), names),
    }


def confusion_matrix(predictions, labels, classes: int) -> np.ndarray:
    """(K, K) int64: row = true class, column = predicted class. Raises InputError for a class outside 0 to K - 1."""
    predictions, labels = whole_numbers(predictions, "predictions", classes), whole_numbers(labels, "labels", classes)
    same_length(predictions=predictions, labels=labels)
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of any one shape -> three arrays of it; 0/0 is 0."""
    ratio = lambda a, b: np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) > 0)
    return ratio(hits, predicted), ratio(hits, labelled), ratio(2 * hits, predicted + labelled)


def averages(hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray, names: Sequence[str] | None = None) -> dict[str, float]:
    """Counts per class, (K,) each -> precision, recall and F1: _macro, _micro, and per class under [name]."""
    names = [str(k) for k in range(len(hits))] if names is None else list(names)
    if len(names) != len(hits) or len(set(names)) != len(names):
        raise InputError(f"{len(set(names))} different names for {len(hits)} classes: one of its own is wanted for each")
    by_class = precision_recall_f1(hits, predicted, labelled)
    together = precision_recall_f1(hits.sum(), predicted.sum(), labelled.sum())
    there = (predicted > 0) | (labelled > 0)
    scores: dict[str, float] = {}
    for metric, each, all_of_them in zip(("precision", "recall", "f1"), by_class, together):
        scores[f"{metric}_macro"] = float(each[there].mean()) if there.any() else 0.0
        scores[f"{metric}_micro"] = float(all_of_them)
        scores |= {f"{metric}[{name}]": float(value) if seen else math.nan for name, value, seen in zip(names, each, there)}
    return scores


def matthews(table: np.ndarray) -> float:
    """Matthews' correlation of K classes, from a confusion matrix: 1 all right, 0 no better than guessing, at least -1.

        (c s - sum_k p_k t_k) / sqrt((s² - sum_k p_k²)(s² - sum_k t_k²))     c right, s all, p_k predicted, t_k labelled"""
    table = table.astype(np.float64)
    right, rows, predicted, labelled = table.trace(), table.sum(), table.sum(0), table.sum(1)
    spread = (rows**2 - predicted @ predicted) * (rows**2 - labelled @ labelled)
    return float((right * rows - predicted @ labelled) / math.sqrt(spread)) if spread > 0 else 0.0


def auroc(scores, positive) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2, from ranks (Mann & Whitney 1947). scores (N,), positive (N,) bool.
    NaN unless there are both."""
    scores, positive = numbers(scores, "scores", 1), numbers(positive, "positive", 1) == 1
    same_length(scores=scores, positive=positive)
    yes = int(positive.sum())
    no = len(positive) - yes
    if not yes or not no:
        return math.nan
    above = ranks(scores)[positive].sum() - yes * (yes + 1) / 2               # pairs in which the positive is ahead
    return float(above / (yes * no))
