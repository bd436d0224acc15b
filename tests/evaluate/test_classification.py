"""Classification scores: one table of seven rows worked by hand, and the fractions that are 0/0."""

import math

import numpy as np
import pytest
import torch

from minift.errors import InputError
from minift.evaluate.classification import auroc, confusion_matrix, from_predictions, matthews, multi_label, single_label

LABELS = [0, 0, 0, 1, 1, 2, 2]
PREDICTIONS = [0, 0, 1, 1, 0, 1, 2]
# rows true, columns predicted:  [2 1 0]   precision 2/3, 1/3, 1     recall 2/3, 1/2, 1/2     F1 2/3, 2/5, 2/3
#                                [1 1 0]
#                                [0 1 1]


def test_the_table_has_labels_in_rows_and_predictions_in_columns():
    assert confusion_matrix(PREDICTIONS, LABELS, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 1]]


def test_scores_worked_by_hand():
    scores = from_predictions(PREDICTIONS, LABELS, 3, ["cat", "dog", "eel"])
    assert scores["accuracy"] == pytest.approx(4 / 7) and scores["rows"] == 7
    assert scores["precision_macro"] == pytest.approx(2 / 3) and scores["recall_macro"] == pytest.approx(5 / 9)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 5 + 2 / 3) / 3)
    assert scores["precision[dog]"] == pytest.approx(1 / 3) and scores["recall[dog]"] == 0.5 and scores["f1[dog]"] == pytest.approx(0.4)
    # MCC: c s = 4 x 7, p = (3, 3, 1), t = (3, 2, 2): (28 - 17) / sqrt((49 - 19)(49 - 17))
    assert scores["mcc"] == pytest.approx(11 / math.sqrt(30 * 32))


def test_micro_scores_of_one_class_per_row_are_accuracy():
    scores = from_predictions(PREDICTIONS, LABELS, 3)
    assert scores["precision_micro"] == scores["recall_micro"] == scores["f1_micro"] == scores["accuracy"]


def test_a_class_never_predicted_costs_and_a_class_that_is_not_there_does_not():
    scores = from_predictions([0, 0, 0], [0, 0, 1], 3)                        # class 1 missed, class 2 neither there nor predicted
    assert scores["precision[1]"] == scores["recall[1]"] == scores["f1[1]"] == 0.0
    assert math.isnan(scores["precision[2]"]) and math.isnan(scores["recall[2]"]) and math.isnan(scores["f1[2]"])
    assert scores["f1_macro"] == pytest.approx((0.8 + 0) / 2)                 # over classes 0 and 1
    assert scores["recall_macro"] == 0.5


def test_labels_of_one_class_only():
    scores = single_label([[2.0, 0, 0], [0, 1, 0]], [0, 0])
    assert scores["accuracy"] == 0.5 and scores["mcc"] == 0.0 and math.isnan(scores["auroc"])
    assert scores["recall[0]"] == 0.5 and scores["precision[1]"] == 0.0
    assert single_label([[2.0, 0], [1, 0]], [0, 0])["accuracy"] == 1.0


def test_matthews_ends():
    assert matthews(np.array([[3, 0], [0, 2]])) == pytest.approx(1) and matthews(np.array([[0, 3], [2, 0]])) == pytest.approx(-1)
    assert matthews(np.array([[2, 2], [1, 1]])) == 0.0 and matthews(np.array([[5, 0], [2, 0]])) == 0.0


def test_auroc_counts_pairs_and_half_of_ties():
    assert auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75                 # 3 of 4 pairs in order
    assert auroc([1, 2, 2, 3], [0, 0, 1, 1]) == (1 + 0.5 + 1 + 1) / 4
    assert auroc([5, 5, 5, 5], [0, 0, 1, 1]) == 0.5
    assert math.isnan(auroc([1, 2], [1, 1])) and math.isnan(auroc([1, 2], [0, 0]))


def test_two_classes_have_the_auroc_of_class_1():
    logits = torch.tensor([[0.0, 0.1], [0.0, 0.4], [0.0, 0.35], [0.0, 0.8]])
    assert single_label(logits, [0, 0, 1, 1])["auroc"] == 0.75
    assert single_label(logits + 100 * torch.arange(4.0)[:, None], [0, 0, 1, 1])["auroc"] == 0.75    # of probabilities, not of one logit


def test_probabilities_that_round_to_1_keep_their_order():
    assert single_label([[0.0, 50], [0, 60]], [0, 1])["auroc"] == single_label([[50.0, 0], [60, 0]], [1, 0])["auroc"] == 1.0


def test_more_classes_have_the_mean_over_those_that_occur():
    logits = np.log([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [0.5, 0.4, 0.1]])
    # class 0 of rows 0, 2: .6 > .2, .5 and .3 > .2 only: 3/4.   class 1 of rows 1, 3: .7 > both, .4 > .3 only: 3/4.   class 2: absent
    assert single_label(logits, [0, 1, 0, 1])["auroc"] == pytest.approx(0.75)


def test_calibration_is_that_of_the_largest_probability():
    logits = np.log([[0.8, 0.2], [0.3, 0.7]])
    assert single_label(logits, [0, 0], bins=10)["ece"] == pytest.approx((0.2 + 0.7) / 2)
    assert single_label([[1000.0, 0.0]], [0])["ece"] == 0.0                   # no overflow


def test_multi_label_worked_by_hand():
    labels = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    logits = [[2, -1, -2], [-1, 3, 1], [1, 2, -1], [-1, -1, -1]]              # predicted: 100, 011, 110, 000
    scores = multi_label(logits, labels, ["a", "b", "c"])
    assert scores["accuracy"] == 0.5 and scores["rows"] == 4                  # rows 2 and 3 are all right
    assert scores["f1[a]"] == 1 and scores["f1[b]"] == 1 and scores["f1[c]"] == 0
    assert scores["f1_macro"] == pytest.approx(2 / 3)
    assert scores["precision_micro"] == scores["recall_micro"] == scores["f1_micro"] == pytest.approx(4 / 5)   # 4 hits, 5 predicted, 5 labelled
    assert scores["f1_samples"] == pytest.approx((2 / 3 + 2 / 3 + 1 + 0) / 4)           # the empty row counts 0
    assert scores["auroc_macro"] == pytest.approx((1 + 1 + 0) / 3)            # c: -2 lies below all of 1, -1, -1


def test_a_logit_of_exactly_the_threshold_is_no():
    assert multi_label([[0.0]], [[1]])["recall_micro"] == 0 and multi_label([[0.0]], [[1]], threshold=-0.1)["recall_micro"] == 1


def test_multi_label_without_labels_or_predictions():
    scores = multi_label([[-1.0, -1.0]], [[0, 0]])
    assert scores["accuracy"] == 1 and scores["f1_macro"] == scores["f1_micro"] == 0 and math.isnan(scores["auroc_macro"]) and math.isnan(scores["f1[0]"])


@pytest.mark.parametrize("call, text", [
    (lambda: single_label([[1.0, 2]], [2]), "labels: row 0 is 2, but there are 2 classes"),
    (lambda: single_label([[1.0, 2]], [0, 1]), "found 1 logits, 2 labels"),
    (lambda: single_label([[1.0]], [0]), "one class leaves nothing to decide"),
    (lambda: single_label([[1.0, math.nan]], [0]), "logits: row 0 has NaN"),
    (lambda: single_label(np.zeros((0, 2)), []), "nothing to score"),
    (lambda: from_predictions([0], [0], 2, ["a", "a"]), "1 different names for 2 classes"),
    (lambda: multi_label([[1.0, 2]], [[1]]), r"logits of shape \(1, 2\) but labels of \(1, 1\)"),
    (lambda: multi_label([[1.0, 2]], [[1, 2]]), "labels hold 2"),
])
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(InputError, match=text):
        call()
