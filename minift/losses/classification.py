"""What a classifier's scores should be: one label of K, any number of K, or a number.

    single       sum_i w[y_i] (- (1 - e) log p_i[y_i] - e/K sum_k log p_i[k])        p_i = softmax(s_i)         s: (N, K), y: (N,)
    multi        sum_ik (w[k] if y_ik else 1) BCE(s_ik, y_ik) / K                    p_ik = sigmoid(s_ik)       y: (N, K) of 0 and 1
    regression   sum_i (s_i - y_i)^2                                                                            s: (N, 1), y: (N,)

e is label smoothing (Szegedy et al. 2016, arXiv:1512.00567): nobody is to be certain. w are weights of labels. Every loss is a sum with
the number of rows, weights or not: torch's own cross-entropy divides by the weights that happen to be in a batch, so what a rare label counts for
would depend on its batch mates. `balanced` gives weights whose mean over the training rows is 1.
Proved in tests/losses/test_classification.py. Left out: focal loss, label smoothing of several labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def single_label(scores: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """scores (N, K), labels (N,) int64, weights (K,) -> (sum, N)."""
    losses = F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)
    return (losses if weights is None else losses * weights[labels]).sum(), len(labels)


def multi_label(scores: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> tuple[Tensor, int]:
    """scores and labels (N, K), weights (K,) of a label that holds -> (sum of each row's mean over labels, N)."""
    return F.binary_cross_entropy_with_logits(scores, labels, pos_weight=weights, reduction="none").mean(1).sum(), len(labels)


def squared_error(scores: Tensor, values: Tensor) -> tuple[Tensor, int]:
    """scores (N, 1), values (N,) -> (sum, N)."""
    return (scores[:, 0] - values).square().sum(), len(values)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights (K,) of labels (N,) int64: N / (K n_k); or of (N, K) zeros and ones, where a label holds: rows without it / rows with it."""
    if labels.ndim == 2:
        held = labels.sum(0)
        return (len(labels) - held).clamp(min=1) / held.clamp(min=1)         # a label that every row has is still learned
    seen = torch.bincount(labels, minlength=classes)
    return len(labels) / ((seen > 0).sum() * seen.clamp(min=1)).float()
