"""Classification, calibration, correlation and clustering against sklearn and scipy, on random data full of ties and missing classes."""

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import cluster, metrics
from sklearn.calibration import calibration_curve

from minift.evaluate.calibration import reliability
from minift.evaluate.classification import auroc, from_predictions, multi_label, single_label
from minift.evaluate.clustering import kmeans_plus_plus, lloyd, v_measure
from minift.evaluate.correlation import pearson, spearman

same = lambda value: pytest.approx(value, abs=1e-12, nan_ok=True)             # a few float64 roundings of numbers below 1


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                       # sklearn and scipy warn of each 0/0
        yield


@pytest.mark.parametrize("seed", range(30))
def test_predicted_classes(seed):
    dice = np.random.default_rng(seed)
    classes, rows = int(dice.integers(2, 7)), int(dice.integers(1, 40))       # few rows: classes never predicted, classes not there
    labels, predictions = dice.integers(0, classes, rows), dice.integers(0, classes, rows)
    scores = from_predictions(predictions, labels, classes)
    for average in ("macro", "micro"):
        theirs = metrics.precision_recall_fscore_support(labels, predictions, average=average)       # zero_division: 0 with a warning
        assert [scores[f"{metric}_{average}"] for metric in ("precision", "recall", "f1")] == same(list(theirs[:3]))
    by_class = metrics.precision_recall_fscore_support(labels, predictions, labels=range(classes), zero_division=0)
    there = np.isin(range(classes), [*labels, *predictions])
    for metric, theirs in zip(("precision", "recall", "f1"), by_class):
        assert [scores[f"{metric}[{k}]"] for k in range(classes)] == same(list(np.where(there, theirs, math.nan)))
    assert scores["mcc"] == same(metrics.matthews_corrcoef(labels, predictions))
    assert scores["accuracy"] == same(metrics.accuracy_score(labels, predictions))


@pytest.mark.parametrize("seed", range(20))
def test_areas_under_curves(seed):
    dice = np.random.default_rng(seed)
    positive, values = dice.integers(0, 2, 30), dice.integers(0, 8, 30)       # eight values: many ties
    assert auroc(values, positive) == same(metrics.roc_auc_score(positive, values))
    labels = np.append(dice.integers(0, 4, 30), range(4))                     # each class at least once: sklearn wants them all
    smooth = dice.normal(size=(34, 4))
    theirs = metrics.roc_auc_score(labels, scipy.special.softmax(smooth, axis=1), multi_class="ovr", average="macro")
    assert single_label(smooth, labels)["auroc"] == same(theirs)
    theirs = metrics.roc_auc_score(labels % 2, smooth[:, 1] - smooth[:, 0])
    assert single_label(smooth[:, :2], labels % 2)["auroc"] == same(theirs)


@pytest.mark.parametrize("seed", range(20))
def test_several_labels_per_row(seed):
    dice = np.random.default_rng(seed)
    labels, logits = (dice.random((15, 4)) < [0.1, 0.3, 0.5, 0.9]).astype(int), dice.normal(size=(15, 4)).round(1)
    scores, predicted = multi_label(logits, labels), (logits > 0).astype(int)
    assert scores["accuracy"] == same(metrics.accuracy_score(labels, predicted))
    assert scores["f1_samples"] == same(metrics.f1_score(labels, predicted, average="samples", zero_division=0))
    micro = metrics.precision_recall_fscore_support(labels, predicted, average="micro", zero_division=0)[:3]
    assert [scores[f"{metric}_micro"] for metric in ("precision", "recall", "f1")] == same(list(micro))
    # sklearn's macro counts a class that is neither labelled nor predicted as 0 here; with zero_division=nan it is left out, as in ours
    assert scores["f1_macro"] == same(metrics.f1_score(labels, predicted, average="macro", zero_division=np.nan))
    both = [k for k in range(4) if 0 < labels[:, k].sum() < 15]
    assert scores["auroc_macro"] == same(metrics.roc_auc_score(labels[:, both], logits[:, both], average="macro"))


def test_bins_of_the_reliability_plot():
    dice = np.random.default_rng(0)
    confidence = np.append(dice.random(200), np.linspace(0, 1, 11))           # edges too
    correct = dice.random(211) < confidence
    plot = reliability(confidence, correct, bins=10)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)        # leaves empty bins out
    assert plot.accuracy[plot.counts > 0] == same(list(accuracy)) and plot.confidence[plot.counts > 0] == same(list(mean))


@pytest.mark.parametrize("seed", range(20))
def test_correlations(seed):
    dice = np.random.default_rng(seed)
    x = dice.integers(0, 6, 25).astype(float) if seed % 2 else dice.normal(size=25) * 10.0 ** dice.integers(-8, 8) + 3
    y = dice.integers(0, 6, 25) + x
    assert pearson(x, y) == same(scipy.stats.pearsonr(x, y).statistic) and spearman(x, y) == same(scipy.stats.spearmanr(x, y).statistic)


def test_correlations_of_a_constant_list_are_nan_in_scipy_too():
    assert math.isnan(scipy.stats.pearsonr([0.1] * 3, [1, 2, 3]).statistic) and math.isnan(pearson([0.1] * 3, [1, 2, 3]))
    assert math.isnan(scipy.stats.spearmanr([0.1] * 3, [1, 2, 3]).statistic) and math.isnan(spearman([0.1] * 3, [1, 2, 3]))


@pytest.mark.parametrize("seed", range(20))
def test_v_measure_of_given_assignments(seed):
    dice = np.random.default_rng(seed)
    labels, found = dice.integers(0, dice.integers(1, 6), 30), dice.integers(0, dice.integers(1, 6), 30)
    ours = v_measure(labels, found)
    assert list(ours.values()) == same(list(metrics.homogeneity_completeness_v_measure(labels, found)))
    assert ours["v_measure"] == same(metrics.normalized_mutual_info_score(labels, found))


@pytest.mark.parametrize("seed", range(10))
def test_lloyd_from_the_same_centres(seed):
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(60, 3))
    start = kmeans_plus_plus(x, 5, dice)
    theirs = cluster.KMeans(5, init=start, n_init=1, max_iter=300, tol=0).fit(x)
    ours = lloyd(x, start)
    assert ours.converged and (ours.assignment == theirs.labels_).all() and ours.inertia == pytest.approx(theirs.inertia_, rel=1e-12)
    assert np.abs(ours.centres - theirs.cluster_centers_).max() < 1e-12
