"""Pairs of texts with a judgement: how similar they are, or how one relates to the other.

    cosine_mse    (cos(u, v) - y)^2                                               y: the cosine that is wanted
    cosent        log(1 + sum over i, j with y_i < y_j of e^{(s_i - s_j) / temperature})        only the order of the y counts
    angle         cosent with s = | cos + sin | in place of the cosine
    softmax_nli   cross-entropy of W [u; v; |u - v|] + b                          y: entailment, neutral, contradiction

Human scores are an order far more than a cosine: 2 of 5 does not mean a cosine of 0.4. CoSENT is a smooth maximum over the pairs of pairs
that stand in the wrong order, one number for a batch. Near 1 the cosine is flat and teaches little; angle takes a similarity that is not.
Returns (sum, count): of the B pairs, or 1 for a ranking. Sources: Reimers & Gurevych 2019 (SBERT), arXiv:1908.10084 (section 3); CoSENT is
Su 2022, https://kexue.fm/archives/8847; Li & Li 2023 (AnglE), arXiv:2309.12871. Proved in tests/losses/test_similarity.py, against
sentence-transformers in tests/parity/test_sentence_transformers_losses.py. Left out: AnglE's sum of three losses, which callers can add up."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.losses.distance import alike, cosine, one_each, rowwise, unit


def cosine_mse(u: Tensor, v: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """u, v (B, C), targets (B,) within -1 and 1, checked: scores of 0 to 5 would ask for what no cosine reaches."""
    alike(u=u, v=v)
    one_each("targets", targets, len(u))
    if not (targets.abs() <= 1).all():
        raise ValueError(f"a target of {float(targets[~(targets.abs() <= 1)][0])}: a cosine lies within -1 and 1; scale the scores")
    return (1 - rowwise(cosine, u, v) - targets).square().sum(), len(u)


def cosent(u: Tensor, v: Tensor, targets: Tensor, *, temperature: float = 0.05) -> tuple[Tensor, int]:
    """u, v (B, C), targets (B,) of any scale. 0 where all targets are equal: there is no order."""
    alike(u=u, v=v)
    return _ranked(1 - rowwise(cosine, u, v), targets, temperature)


def angle(u: Tensor, v: Tensor, targets: Tensor, *, temperature: float = 0.05) -> tuple[Tensor, int]:
    """The first half of an embedding is read as real parts, the second as imaginary: s = |Re + Im| of sum over k of u_k conj(v_k) / (|u| |v|).
    As in the authors' code, s is a similarity. It is not largest for u = v, where it is 1, but root 2 at an angle of 45 degrees. C is even."""
    alike(u=u, v=v)
    if u.shape[1] % 2:
        raise ValueError(f"embeddings of width {u.shape[1]}: wanted an even one, half of it real parts and half imaginary ones")
    (a, b), (c, d) = (unit(x).chunk(2, dim=1) for x in (u, v))                                   # u = a + bi, v = c + di: (B, C / 2)
    real, imaginary = (a * c + b * d).sum(1), (b * c - a * d).sum(1)                             # (B,)
    return _ranked((real + imaginary).abs(), targets, temperature)


def u_v_difference(u: Tensor, v: Tensor) -> Tensor:
    """(B, C), (B, C) -> (B, 3 C): what SBERT found best (table 6). Without |u - v|, a linear head cannot compare."""
    return torch.cat([u, v, (u - v).abs()], 1)


def u_v_difference_product(u: Tensor, v: Tensor) -> Tensor:
    """(B, C), (B, C) -> (B, 4 C): those of InferSent."""
    return torch.cat([u, v, (u - v).abs(), u * v], 1)


def softmax_nli(
    u: Tensor, v: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, features: Callable[[Tensor, Tensor], Tensor] = u_v_difference
) -> tuple[Tensor, int]:
    """u, v (B, C), labels (B,) int64, weight (classes, width of the features), bias (classes,). The head is thrown away after training.
    features: any function of u and v; the two above, or lambda u, v: (u - v).abs()."""
    alike(u=u, v=v)
    one_each("labels", labels, len(u))
    x = features(u, v)                                                                           # (B, 3 C)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"the head takes {weight.shape[1]} numbers and the features are {x.shape[1]}: wanted a weight of ({len(weight)}, {x.shape[1]})")
    return F.cross_entropy(F.linear(x, weight, bias), labels, reduction="sum"), len(u)


def _ranked(scores: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, int]:
    one_each("targets", targets, len(scores))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: wanted a number above 0, such as 0.05")
    lead = (scores[:, None] - scores)[targets[:, None] < targets] / temperature                  # of a worse pair over a better one
    return torch.logsumexp(torch.cat([lead.new_zeros(1), lead]), 0), 1                           # the 0 is the 1 in log(1 + ...)
