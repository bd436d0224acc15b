"""Distances with a margin: bring together what belongs together, and push the rest apart until it is far enough.

    contrastive          1/2 d^2 of a pair that belongs together,   1/2 max(0, margin - d)^2 of one that does not
    online contrastive   d^2 and max(0, margin - d)^2 of the hard pairs only: apart, yet closer than some pair that belongs together;
                         together, yet further than some pair that does not
    triplet              max(0, d(anchor, positive) - d(anchor, negative) + margin)

d is any function of distance.py. A margin has its distance's units: 0.5 is far for the cosine, and little for unnormalised embeddings.
Returns (sum, number of pairs or triplets). Sources: Hadsell et al. 2006 (eq. 4); Schroff et al. 2015 (FaceNet), arXiv:1503.03832;
Reimers & Gurevych 2019 (SBERT), arXiv:1908.10084 (section 3). Online contrastive is sentence-transformers' own.
Triplets found within a batch: mining.py. Proved in tests/losses/test_metric.py, against sentence-transformers in
tests/parity/test_sentence_transformers_losses.py."""

import torch
from torch import Tensor

from minift.losses.distance import Distance, alike, cosine, euclidean, one_each, rowwise


def contrastive(u: Tensor, v: Tensor, same: Tensor, *, margin: float, distance: Distance = cosine) -> tuple[Tensor, int]:
    """u, v (B, C), same (B,): True or 1 where the two belong together."""
    d, same = rowwise(distance, u, v), _checked(u, v, same, margin)                              # (B,)
    losses = torch.where(same, d, torch.relu(margin - d)).square() / 2
    return losses.sum(), len(losses)


def online_contrastive(u: Tensor, v: Tensor, same: Tensor, *, margin: float, distance: Distance = cosine) -> tuple[Tensor, int]:
    """The count is of the hard pairs, and may be 0: then there is nothing to learn. A batch of one kind of pair has no other to be hard
    against: those beyond the mean are kept."""
    d, same = rowwise(distance, u, v), _checked(u, v, same, margin)
    together, apart = d[same], d[~same]
    furthest = together.max() if len(together) else apart.mean()
    nearest = apart.min() if len(apart) else together.mean()
    hard_together, hard_apart = together[together > nearest], apart[apart < furthest]
    total = hard_together.square().sum() + torch.relu(margin - hard_apart).square().sum()
    return total, len(hard_together) + len(hard_apart)


def triplet(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, distance: Distance = euclidean) -> tuple[Tensor, int]:
    """All (B, C). Nothing to learn from triplets that are apart by the margin."""
    alike(anchors=anchors, positives=positives, negatives=negatives)
    positive_margin(margin)
    losses = torch.relu(rowwise(distance, anchors, positives) - rowwise(distance, anchors, negatives) + margin)
    return losses.sum(), len(losses)


def positive_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin is {margin}: wanted a distance above 0; at 0, embeddings that are all the same have no loss")


def _checked(u: Tensor, v: Tensor, same: Tensor, margin: float) -> Tensor:
    """`same` as (B,) bool."""
    alike(u=u, v=v)
    one_each("labels", same, len(u))
    positive_margin(margin)
    if same.dtype != torch.bool and not ((same == 0) | (same == 1)).all():
        raise ValueError("labels other than 0 and 1: a pair belongs together or it does not; for degrees use losses/similarity.py")
    return same.bool()
