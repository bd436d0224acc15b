"""ROUGE against the rouge_score package, on random texts made of few words, so that long ties are common."""

import random

import pytest
from rouge_score import rouge_scorer

from minift.evaluate.generation import rouge_l, rouge_lsum

VOCABULARY = ["a", "b", "c", "Dd", "e1", "ünder", "x_y", "...", "İ", "\n", "\n", "\r\n", "\t", "日本"]


def test_equal_to_rouge_score_on_a_thousand_random_texts():
    scorer = rouge_scorer.RougeScorer(["rougeL", "rougeLsum"])
    dice = random.Random(0)
    for _ in range(1000):
        candidate, reference = (" ".join(dice.choices(VOCABULARY, k=dice.randrange(0, 30))) for _ in range(2))
        theirs = scorer.score(target=reference, prediction=candidate)
        assert rouge_l(candidate, reference) == pytest.approx(theirs["rougeL"].fmeasure, abs=1e-12)
        assert rouge_lsum(candidate, reference) == pytest.approx(theirs["rougeLsum"].fmeasure, abs=1e-12)
