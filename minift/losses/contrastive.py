"""InfoNCE: of all candidates in the batch, which one belongs to this anchor?

    s_ij = cos(a_i, c_j) / temperature              a: (B, C) anchors      c: (M, C) candidates: the B positives, then hard negatives
    loss_i = - log( e^{s_ii} / sum over j of e^{s_ij} )                     a softmax over M classes, of which class i is right

Every other row's positive is a negative for free, so a larger batch is a harder question: accumulating gradients does not make one (trap 41),
train/grad_cache.py does. Also known as NT-Xent, N-pair or multiple-negatives ranking loss.
A candidate that answers row i as well as its own is no negative: the same positive in two rows, the anchor's own text, the same anchor twice.
Texts are told apart by `ids`, whole numbers that are equal where the texts are; such candidates are left out of row i's sum.
Hard negatives stand in any order, any number for a row, and count for every row: so other processes' candidates may simply be added to them.

    temperature     a number, or a tensor that learns: LearnedTemperature. Small: only the hardest negatives count.

Every function returns (sum over the rows, B). Sources: van den Oord et al. 2018, arXiv:1807.03748 (eq. 4); Henderson et al. 2017,
arXiv:1705.00652; Gao et al. 2021 (SimCSE), arXiv:2104.08821; Radford et al. 2021 (CLIP), arXiv:2103.00020.
Proved in tests/losses/test_contrastive.py, against sentence-transformers in tests/parity/test_sentence_transformers_losses.py.
Left out: negatives from a queue (MoCo), a guide model that finds false negatives (GIST), anchors as negatives of anchors (GTE)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.losses.distance import alike, cosines, one_each


def info_nce(
    anchors: Tensor, positives: Tensor, negatives: Tensor | None = None, *, temperature: float | Tensor, ids: Sequence[Tensor] | None = None
) -> tuple[Tensor, int]:
    """anchors, positives (B, C), negatives (N, C). ids: of the anchors (B,), the positives (B,) and, where there are any, the negatives (N,).
    Raises ValueError where a row has no negative at all, which is a batch of one row without hard ones."""
    logits, twins = _scores(anchors, positives, negatives, temperature, ids)                     # (B, B + N)
    return _own_class(logits, twins), len(anchors)


def info_nce_symmetric(
    anchors: Tensor, positives: Tensor, negatives: Tensor | None = None, *, temperature: float | Tensor, ids: Sequence[Tensor] | None = None
) -> tuple[Tensor, int]:
    """The mean of two questions: which candidate belongs to this anchor, and which anchor to this positive? (CLIP, figure 3.)
    Hard negatives are candidates in the first only."""
    logits, twins = _scores(anchors, positives, negatives, temperature, ids)
    B = len(anchors)
    back = _own_class(logits[:, :B].T, twins[:, :B].T)                                           # who answers i as well, i answers as well
    return (_own_class(logits, twins) + back) / 2, B


def simcse(first: Tensor, second: Tensor, *, temperature: float | Tensor = 0.05, ids: Tensor | None = None) -> tuple[Tensor, int]:
    """Unsupervised SimCSE, eq. 4: first and second (B, C) are the same B texts, embedded twice with different dropout.
    ids (B,): equal where a text stands in the batch twice."""
    return info_nce(first, second, temperature=temperature, ids=None if ids is None else (ids, ids))


def simcse_supervised(
    premises: Tensor, entailed: Tensor, contradicted: Tensor, *, temperature: float | Tensor = 0.05, ids: Sequence[Tensor] | None = None
) -> tuple[Tensor, int]:
    """Supervised SimCSE, eq. 5: what follows from a premise is its positive, what contradicts it a hard negative, of every row."""
    return info_nce(premises, entailed, contradicted, temperature=temperature, ids=ids)


class LearnedTemperature(nn.Module):
    """temperature = e^-log_scale, log_scale learned: steps are relative, and it stays positive (CLIP, sections 2.3 and 2.5).

    The scale, 1 / temperature, is kept at 100 or less, by setting the parameter back. A clamp inside the loss would give a parameter beyond
    the limit no gradient, and it would never come back. Train it without weight decay, which would pull the temperature to 1."""

    def __init__(self, start: float = 0.07, largest_scale: float = 100.0):
        super().__init__()
        _positive(start)
        self.log_scale, self.limit = nn.Parameter(torch.tensor(-math.log(start))), math.log(largest_scale)

    def forward(self) -> Tensor:
        with torch.no_grad():
            self.log_scale.clamp_(max=self.limit)
        return torch.exp(-self.log_scale)


def _scores(anchors, positives, negatives, temperature, ids) -> tuple[Tensor, Tensor]:
    """Scores (B, M) of all candidates, and which of them (B, M) are no negatives though they stand in another row."""
    alike(anchors=anchors, positives=positives)
    _positive(temperature)
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != anchors.shape[1]):
        raise ValueError(f"negatives are {tuple(negatives.shape)}: wanted (any number, {anchors.shape[1]}), as wide as the anchors")
    candidates = positives if negatives is None else torch.cat([positives, negatives])           # (M, C)
    if len(candidates) < 2:
        raise ValueError(f"{len(anchors)} row and no other candidate: give at least 2 rows, or hard negatives")
    logits = cosines(anchors, candidates) / temperature                                           # (B, M)
    return logits, torch.zeros_like(logits, dtype=torch.bool) if ids is None else _twins(ids, logits)


def _twins(ids: Sequence[Tensor], logits: Tensor) -> Tensor:
    """(B, M): candidate j is row i's own text or positive once more, or answers row i's anchor in another row."""
    B, M = logits.shape
    if len(ids) != 2 + (M > B):
        raise ValueError(f"ids of {len(ids)} columns for {2 + (M > B)}: give anchors', positives' and, where there are any, negatives'")
    for what, values, rows in zip(("anchors' ids", "positives' ids", "negatives' ids"), ids, (B, B, M - B)):
        one_each(what, values, rows)
    anchor, positive, candidate = ids[0][:, None], ids[1][:, None], torch.cat(tuple(ids[1:]))    # (B, 1), (B, 1), (M,)
    twins = (candidate == positive) | (candidate == anchor)
    twins[:, :B] |= ids[0] == anchor
    return twins.fill_diagonal_(False)                                                           # row i's own positive stays


def _own_class(logits: Tensor, twins: Tensor) -> Tensor:
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits.masked_fill(twins, -math.inf), own, reduction="sum")


def _positive(temperature: float | Tensor) -> None:
    if not temperature > 0:                                                                      # nan is not, either
        raise ValueError(f"temperature is {float(temperature)}: wanted a number above 0, such as 0.05")
