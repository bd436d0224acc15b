"""Triplets found in the batch: embeddings with classes, every one of them an anchor.

    d_ap, d_an: distances of an anchor to others of its class and to those of other classes

    batch_all               max(0, d_ap - d_an + margin)                         of every triplet; the mean of those that are above 0
    batch_hard              max(0, max over p of d_ap - min over n of d_an + margin)          one triplet an anchor: the furthest of its
    batch_hard_soft_margin  log(1 + e^(max d_ap - min d_an))                                  class, the nearest of the others
    batch_semi_hard         max(0, d_ap - d_an + margin)                         n: the nearest one that is further than p, else the furthest

The hardest triplets teach most, and noise in the labels most of all; the soft margin goes on pulling where max() has stopped.
An anchor without another of its class, or without one of another class, is in no triplet and is left out; if none is left: ValueError.
Embeddings (B, C), labels (B,) whole numbers. Returns (sum, count): of the triplets above 0 (batch_all; may be 0), of the anchors (batch_hard),
of the anchor-positive pairs (batch_semi_hard). Sources: Hermans et al. 2017, arXiv:1703.07737 (section 2); Schroff et al. 2015,
arXiv:1503.03832 (section 3.2). Proved in tests/losses/test_mining.py, against sentence-transformers in
tests/parity/test_sentence_transformers_losses.py."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.losses.distance import Distance, euclidean, one_each
from minift.losses.metric import positive_margin


def batch_all(embeddings: Tensor, labels: Tensor, *, margin: float, distance: Distance = euclidean) -> tuple[Tensor, int]:
    """Easy triplets are not counted, or they would drown the others late in training (Hermans et al., "batch all, not 0")."""
    positive_margin(margin)
    d, mates, strangers = _batch(embeddings, labels, distance)
    a, p = mates.nonzero(as_tuple=True)                                                          # (P,): anchor-positive pairs
    losses = torch.relu(d[a, p][:, None] - d[a] + margin)[strangers[a]]                          # (P, B) -> (triplets,)
    return losses.sum(), int((losses > 0).sum())


def batch_hard(embeddings: Tensor, labels: Tensor, *, margin: float, distance: Distance = euclidean) -> tuple[Tensor, int]:
    """Eq. 5 of Hermans et al."""
    positive_margin(margin)
    lag = _hardest(embeddings, labels, distance)
    return torch.relu(lag + margin).sum(), len(lag)


def batch_hard_soft_margin(embeddings: Tensor, labels: Tensor, *, distance: Distance = euclidean) -> tuple[Tensor, int]:
    """The same with log(1 + e^x) in place of max(0, margin + x): no margin to choose."""
    lag = _hardest(embeddings, labels, distance)
    return F.softplus(lag).sum(), len(lag)


def batch_semi_hard(embeddings: Tensor, labels: Tensor, *, margin: float, distance: Distance = euclidean) -> tuple[Tensor, int]:
    """FaceNet's choice: the hardest negatives early in training pull all embeddings into one point."""
    positive_margin(margin)
    d, mates, strangers = _batch(embeddings, labels, distance)
    a, p = mates.nonzero(as_tuple=True)                                                          # (P,)
    to_mate, to_all = d[a, p], d[a]                                                              # (P,), (P, B)
    beyond = strangers[a] & (to_all > to_mate[:, None])
    nearest_beyond = to_all.masked_fill(~beyond, math.inf).min(1).values
    furthest = to_all.masked_fill(~strangers[a], -math.inf).max(1).values
    to_stranger = torch.where(beyond.any(1), nearest_beyond, furthest)
    return torch.relu(to_mate - to_stranger + margin).sum(), len(a)


def _hardest(embeddings: Tensor, labels: Tensor, distance: Distance) -> Tensor:
    """(anchors,): how much further the furthest of the class is than the nearest of the others."""
    d, mates, strangers = _batch(embeddings, labels, distance)
    furthest = d.masked_fill(~mates, -math.inf).max(1).values
    nearest = d.masked_fill(~strangers, math.inf).min(1).values
    anchors = mates.any(1)
    return furthest[anchors] - nearest[anchors]


def _batch(embeddings: Tensor, labels: Tensor, distance: Distance) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (B, B); who is another of the row's class (B, B); who is of another class (B, B). Rows that are in no triplet are all False."""
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings are {tuple(embeddings.shape)}: wanted (rows, width)")
    one_each("labels", labels, len(embeddings))
    same = labels[:, None] == labels
    mates = same.clone().fill_diagonal_(False)
    anchors = mates.any(1, keepdim=True) & ~same.all(1, keepdim=True)
    if not anchors.any():
        raise ValueError(
            f"no triplet among {len(labels)} embeddings of {len(labels.unique())} classes: a batch needs a class with at least 2 members, and another class"
        )
    return distance(embeddings, embeddings), mates & anchors, ~same & anchors
