"""k-means on points whose groups are plain to see; V-measure worked by hand."""

import math

import numpy as np
import pytest

from minift.errors import InputError
from minift.evaluate.clustering import clustering, kmeans, kmeans_plus_plus, lloyd, v_measure

LINE = np.array([[0.0], [1.0], [10.0], [12.0]])


def three_groups(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1, 2], [7, 11, 5])
    return np.eye(3)[labels] * 10 + np.random.default_rng(seed).normal(size=(23, 3)), labels


def test_lloyd_worked_by_hand():                   # from centres 0 and 1 : {0}, {1, 10, 12} -> 0 and 23/3: {0, 1}, {10, 12} -> 0.5 and 11
    found = lloyd(LINE, np.array([[0.0], [1.0]]))
    assert found.assignment.tolist() == [0, 0, 1, 1] and found.centres.tolist() == [[0.5], [11.0]] and found.converged
    assert found.inertia == pytest.approx(0.25 + 0.25 + 1 + 1)


def test_rounds_that_end_too_early_are_admitted():
    assert not lloyd(LINE, np.array([[0.0], [1.0]]), rounds=1).converged
    with pytest.raises(InputError, match="rounds is 0"):
        lloyd(LINE, LINE[:2], rounds=0)


def test_a_centre_without_rows_moves_to_the_farthest_row():
    found = lloyd(LINE, np.array([[0.5], [11.0], [500.0]]))
    assert sorted(np.bincount(found.assignment)) == [1, 1, 2] and np.isfinite(found.centres).all()
    two_lost = lloyd(LINE, np.array([[0.0], [500.0], [600.0], [700.0]]))
    assert sorted(two_lost.assignment) == [0, 1, 2, 3] and two_lost.inertia == 0


def test_a_row_alone_at_its_centre_is_not_taken_from_it():          # 100 is farthest from its centre, 60, but alone there
    found = lloyd(np.array([[0.0], [1.0], [100.0]]), np.array([[0.5], [60.0], [1000.0]]))
    assert sorted(found.assignment) == [0, 1, 2] and found.inertia == 0
    assert sorted(lloyd(np.array([[7.0], [0.0], [0.0]]), np.array([[7.0], [0.0], [99.0]])).assignment) == [0, 1, 2]


def test_the_same_seed_gives_the_same_clusters_and_plain_groups_are_found():
    x, labels = three_groups()
    first, again = kmeans(x, 3, seed=4), kmeans(x, 3, seed=4)
    assert (first.assignment == again.assignment).all() and (first.centres == again.centres).all()
    scores = clustering(x, labels, seed=1)
    assert scores["v_measure"] == pytest.approx(1) and scores["clusters"] == 3 and scores["rows"] == 23


def test_seeds_are_drawn_by_squared_distance():
    x = np.array([[0.0], [1.0], [3.0]])            # first seed 0 (one third): then 1 with 1/10, 3 with 9/10
    dice = np.random.default_rng(0)
    drawn = [kmeans_plus_plus(x, 2, dice).ravel().tolist() for _ in range(3000)]
    after_zero = [second for first, second in drawn if first == 0]
    assert 900 < len(after_zero) < 1100 and 0.87 < np.mean([second == 3 for second in after_zero]) < 0.93      # 3 standard errors
    assert all(first != second for first, second in drawn)


def test_lengths_do_not_count_in_clustering():
    x, labels = three_groups()
    assert clustering(x * np.linspace(0.01, 100, 23)[:, None], labels, seed=0)["v_measure"] == pytest.approx(1)


def test_v_measure_worked_by_hand():
    # labels a a b b, clusters 0 0 0 1.  H(label) = ln 2;  H(label | cluster) = 3/4 H(2/3, 1/3);  H(cluster | label) = 1/2 ln 2
    scores = v_measure([0, 0, 1, 1], [0, 0, 0, 1])
    entropy = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)
    h, c = 1 - 0.75 * entropy(1 / 3) / math.log(2), 1 - 0.5 * math.log(2) / entropy(1 / 4)
    assert scores["homogeneity"] == pytest.approx(h) and scores["completeness"] == pytest.approx(c)
    assert scores["v_measure"] == pytest.approx(2 * h * c / (h + c))
    shared = entropy(1 / 2) + entropy(1 / 4) - 1.5 * math.log(2)          # joint: 1/2, 1/4, 1/4
    assert scores["v_measure"] == pytest.approx(2 * shared / (entropy(1 / 2) + entropy(1 / 4)))     # NMI, arithmetic mean


def test_names_of_clusters_do_not_matter():
    assert v_measure([0, 0, 5, 9], [7, 7, 3, 0])["v_measure"] == pytest.approx(1)


def test_one_group_only():
    assert v_measure([0, 0], [0, 1]) == {"homogeneity": 1.0, "completeness": 0.0, "v_measure": 0.0}
    assert v_measure([0, 1], [0, 0]) == {"homogeneity": 0.0, "completeness": 1.0, "v_measure": 0.0}
    assert v_measure([0, 0], [3, 3]) == {"homogeneity": 1.0, "completeness": 1.0, "v_measure": 1.0}


def test_more_clusters_than_different_rows_are_refused():
    with pytest.raises(InputError, match="3 clusters are wanted, but only 2 rows differ"):
        kmeans([[0.0], [0.0], [1.0], [1.0]], 3, seed=0)
    with pytest.raises(InputError, match="5 clusters of 4 rows"):
        kmeans(LINE, 5, seed=0)
    with pytest.raises(InputError, match="found 4 vectors, 3 labels"):
        clustering(LINE + 1, [0, 0, 1], seed=0)
