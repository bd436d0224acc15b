"""Do vectors fall into the groups that people gave their texts? k-means finds groups, V-measure compares them with the labels.

    k-means (Lloyd 1982): assign every x (C,) to its nearest centre, move every centre to the mean of its own; until nothing changes
    k-means++ (Arthur & Vassilvitskii 2007): first centre any x; each next one an x drawn with probability ~ its squared distance
        to the nearest centre there is
    homogeneity = 1 - H(label | cluster) / H(label)      completeness = 1 - H(cluster | label) / H(cluster)
    V-measure (Rosenberg & Hirschberg 2007) = their harmonic mean

V-measure is NMI with the arithmetic mean, exactly (proved in the tests), so there is no second function for it. Names of clusters do not
matter; their number does: V-measure grows with it even for random clusters, so give as many as there are labels.
Proved in tests/evaluate/test_clustering.py, equal to sklearn in tests/parity/test_metrics_sklearn.py.
Left out: several starts (call it with several seeds), correction for chance (AMI), mini-batches."""

from dataclasses import dataclass

import numpy as np

from minift.errors import InputError
from minift.evaluate.arrays import directions, numbers, same_length, whole_numbers


@dataclass(frozen=True, eq=False)
class Clusters:
    assignment: np.ndarray
    """(N,) int64: the cluster of each row, 0 to K - 1."""
    centres: np.ndarray
    """(K, C) float64."""
    inertia: float
    """Sum over rows of the squared distance to their centre."""
    converged: bool
    """False if `rounds` ended before the assignment stood still."""


def clustering(vectors, labels, seed: int, rounds: int = 300) -> dict[str, float]:
    """vectors (N, C), scaled to length 1 first; labels (N,) whole numbers. As many clusters as there are labels; homogeneity,
    completeness, v_measure, clusters, rows. Raises InputError."""
    vectors, labels = directions(vectors, "vectors"), whole_numbers(labels, "labels")
    same_length(vectors=vectors, labels=labels)
    groups = len(np.unique(labels))
    return v_measure(labels, kmeans(vectors, groups, seed, rounds).assignment) | {"clusters": groups, "rows": len(labels)}


def kmeans(x, clusters: int, seed: int, rounds: int = 300) -> Clusters:
    """x (N, C), its distances as they are. The same seed gives the same clusters. Raises InputError unless x has `clusters` different rows."""
    x = numbers(x, "x", 2)
    return lloyd(x, kmeans_plus_plus(x, clusters, np.random.default_rng(seed)), rounds)


def kmeans_plus_plus(x: np.ndarray, clusters: int, dice: np.random.Generator) -> np.ndarray:
    """(K, C): rows of x (N, C) that lie far from each other."""
    if not 1 <= clusters <= len(x):
        raise InputError(f"{clusters} clusters of {len(x)} rows: from 1 to the number of rows are wanted")
    centres = [x[dice.integers(len(x))]]
    nearest = ((x - centres[0]) ** 2).sum(1)                                  # (N,) squared distance to the nearest centre
    while len(centres) < clusters:
        if not nearest.any():
            raise InputError(f"{clusters} clusters are wanted, but only {len(centres)} rows differ: ask for fewer")
        centres.append(x[dice.choice(len(x), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, ((x - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def lloyd(x: np.ndarray, centres: np.ndarray, rounds: int = 300) -> Clusters:
    """x (N, C), centres (K, C) to begin with, K <= N. A centre that loses all its rows moves to the row that is farthest from its own."""
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: at least 1 is wanted")
    assignment, converged = None, False
    for _ in range(rounds):
        distance = _squared_distances(x, centres)                             # (N, K)
        now = distance.argmin(1)                                              # equal distances: the first centre
        near = distance[np.arange(len(x)), now]                               # (N,)
        converged = assignment is not None and bool((now == assignment).all())
        assignment = now
        if converged:
            break
        while (counts := np.bincount(assignment, minlength=len(centres))).min() == 0:
            farthest = np.where(counts[assignment] > 1, near, -1.0).argmax()  # a row that is alone stays, or its own centre would be next
            assignment[farthest], near[farthest] = counts.argmin(), 0.0
        centres = np.stack([x[assignment == k].mean(0) for k in range(len(centres))])
    return Clusters(assignment, centres, float(((x - centres[assignment]) ** 2).sum()), converged)


def v_measure(labels, clusters) -> dict[str, float]:
    """labels, clusters: (N,) whole numbers -> homogeneity, completeness, v_measure, each from 0 to 1. A single label, or a single
    cluster, has no entropy to explain: homogeneity, or completeness, is then 1, as in sklearn."""
    labels, clusters = whole_numbers(labels, "labels"), whole_numbers(clusters, "clusters")
    same_length(labels=labels, clusters=clusters)
    (_, label), (_, cluster) = (np.unique(found, return_inverse=True) for found in (labels, clusters))
    joint = np.zeros((label.max() + 1, cluster.max() + 1))
    np.add.at(joint, (label, cluster), 1)
    h_label, h_cluster, h_both = _entropy(joint.sum(1)), _entropy(joint.sum(0)), _entropy(joint)
    shared = max(h_label + h_cluster - h_both, 0.0)                           # mutual information, = H(label) - H(label | cluster)
    homogeneity = shared / h_label if h_label else 1.0
    completeness = shared / h_cluster if h_cluster else 1.0
    both = homogeneity + completeness
    return {"homogeneity": homogeneity, "completeness": completeness, "v_measure": 2 * homogeneity * completeness / both if both else 0.0}


def _squared_distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, C), (K, C) -> (N, K), from |x|² - 2 x c + |c|²: the (N, K, C) differences are never built."""
    return ((x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)).clip(0)


def _entropy(counts: np.ndarray) -> float:
    """In nats, of counts of any shape."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum()) + 0.0                                # + 0.0: no -0.0
