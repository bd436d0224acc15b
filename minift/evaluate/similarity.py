"""Do vectors of texts lie as their meanings do? Against people's judgements, and by the shape of the cloud alone.

    sts: spearman(cos(a_i, b_i), gold_i)         a_i, b_i: (C,), the vectors of two sentences; gold_i: how similar people find them
    alignment  = mean over pairs of |a - b|^2                           near 0: what belongs together lies together
    uniformity = log mean over all pairs i < j of exp(-2 |x_i - x_j|²)  near -4: spread over the sphere; 0: all in one point

Alignment and uniformity are Wang & Isola's (2020, arXiv:2005.10242), of vectors scaled to length 1. Each alone is easy to cheat: one point
is perfectly aligned, noise is perfectly uniform. STS is judged by Spearman: cosine need not grow in step with the gold scale.
Proved in tests/evaluate/test_similarity.py; sts equals sentence-transformers' evaluator in tests/parity/test_retrieval_sentence_transformers.py."""

import math

import numpy as np

from minift.errors import InputError
from minift.evaluate.arrays import directions, numbers, same_length
from minift.evaluate.correlation import pearson, spearman

_ROWS = 1024


def cosine(a, b) -> np.ndarray:
    """(N, C) and (N, C) -> (N,): the cosine of row i with row i. Raises InputError for NaN, a row of zeros, shapes that differ."""
    a, b = directions(a, "a"), directions(b, "b")
    if a.shape != b.shape:
        raise InputError(f"pairs of shape {a.shape} and {b.shape}: row i of one belongs to row i of the other, so the shapes are the same")
    return (a * b).sum(1)


def sts(a, b, gold) -> dict[str, float]:
    """a, b: (N, C), the vectors of N pairs of sentences; gold (N,), on any rising scale. spearman, pearson, pairs.
    NaN if all gold scores are equal. Raises InputError as cosine."""
    similar, gold = cosine(a, b), numbers(gold, "gold", 1)
    same_length(pairs=similar, gold=gold)
    return {"spearman": spearman(similar, gold), "pearson": pearson(similar, gold), "pairs": len(gold)}


def alignment(a, b, power: float = 2.0) -> float:
    """Mean distance of the N pairs (N, C), (N, C), raised to `power`; from 0 to 2^power."""
    return float(((2 - 2 * cosine(a, b)).clip(0) ** (power / 2)).mean())      # |a - b|² = 2 - 2 cos on the sphere


def uniformity(x, t: float = 2.0) -> float:
    """x (N, C), N at least 2 -> from -4 t, which nothing reaches, to 0. N² pairs, held 1024 rows at a time."""
    x = directions(x, "x")
    if len(x) < 2:
        raise InputError("one vector has no pairs: uniformity needs at least 2")
    total = 0.0
    for start in range(0, len(x), _ROWS):
        block = x[start : start + _ROWS]
        kernel = np.exp(-t * (2 - 2 * block @ x[start:].T).clip(0))           # (rows, N - start): pairs with what comes after
        total += np.triu(kernel, 1).sum()                                     # column 0 is row `start`: each pair once
    return math.log(total / (len(x) * (len(x) - 1) / 2))
