"""Retrieval metrics: two rankings worked by hand, and what is left out or refused."""

import math

import pytest

from minift.errors import InputError
from minift.evaluate.retrieval import retrieval

RANKED = {"q1": ["a", "x", "b", "y", "c"], "q2": ["x", "y", "d"]}
RELEVANT = {"q1": {"a", "b", "c", "z"}, "q2": {"d"}}


def test_values_worked_by_hand():
    scores = retrieval(RANKED, RELEVANT, k=[1, 3])
    assert scores["precision@3"] == pytest.approx((2 / 3 + 1 / 3) / 2) and scores["precision@1"] == 0.5
    assert scores["recall@3"] == pytest.approx((2 / 4 + 1) / 2) and scores["recall@1"] == pytest.approx(1 / 8)
    assert scores["mrr@3"] == pytest.approx((1 + 1 / 3) / 2) and scores["mrr@1"] == 0.5
    assert scores["map@3"] == pytest.approx(((1 + 2 / 3) / 3 + 1 / 3) / 2)    # divided by min(3, 4) and min(3, 1)
    log = math.log2
    assert scores["ndcg@3"] == pytest.approx(((1 + 1 / log(4)) / (1 + 1 / log(3) + 1 / log(4)) + (1 / log(4)) / 1) / 2)
    assert scores["queries"] == 2 and scores["skipped"] == 0


def test_gains_are_linear_and_the_best_list_has_the_largest_first():
    scores = retrieval({"q": ["low", "none", "high"]}, {"q": {"high": 3, "low": 1, "none": 0}}, k=[2, 3])
    assert scores["ndcg@3"] == pytest.approx((1 + 3 / 2) / (3 + 1 / math.log2(3)))
    assert scores["ndcg@2"] == pytest.approx(1 / (3 + 1 / math.log2(3)))      # the best two, though only one of them was found
    assert scores["recall@2"] == 0.5 and scores["mrr@2"] == 1 and scores["precision@2"] == 0.5        # a gain of 0 is irrelevant


def test_perfect_and_hopeless_lists():
    perfect = retrieval({"q": ["a", "b", "x"]}, {"q": {"a", "b"}}, k=[2])
    assert all(perfect[name] == 1 for name in ("ndcg@2", "mrr@2", "map@2", "recall@2", "precision@2"))
    hopeless = retrieval({"q": ["x", "y", "a"]}, {"q": {"a"}}, k=[2])         # the hit lies below the cut
    assert all(hopeless[name] == 0 for name in ("ndcg@2", "mrr@2", "map@2", "recall@2", "precision@2"))


def test_a_list_shorter_than_k_is_read_as_if_misses_followed():
    scores = retrieval({"q": ["a"], "none": []}, {"q": {"a"}, "none": {"b"}}, k=[10])
    assert scores["precision@10"] == pytest.approx(0.1 / 2) and scores["recall@10"] == 0.5 and scores["map@10"] == 0.5


def test_queries_without_relevant_documents_are_skipped_and_counted():
    ranked = RANKED | {"empty": ["a"], "unjudged": ["a"], "zeros": ["a"]}
    scores = retrieval(ranked, RELEVANT | {"empty": set(), "zeros": {"a": 0}, "not asked": set()}, k=[3])
    assert (scores["queries"], scores["skipped"]) == (2, 4)
    assert scores["map@3"] == retrieval(RANKED, RELEVANT, k=[3])["map@3"]


@pytest.mark.parametrize("ranked, relevant, k, text", [
    ({}, {"q": {"a"}}, [1], "1 queries have relevant documents and no ranked list, 'q' first"),
    ({"q": ["a", "b", "a"]}, {"q": {"a"}}, [1], "query 'q' has document 'a' more than once"),
    ({"q": ["a"]}, {"q": {"a": -1}}, [1], "document 'a' has gain -1"),
    ({"q": ["a"]}, {"q": {"a": math.nan}}, [1], "document 'a' has gain nan"),
    ({"q": ["a"]}, {"q": set()}, [1], "none of the 1 queries has a relevant document"),
    ({}, {}, [1], "none of the 0 queries"),
    ({"q": ["a"]}, {"q": {"a"}}, [0], r"k is \[0\]"),
    ({"q": ["a"]}, {"q": {"a"}}, [], r"k is \[\]"),
])
def test_what_would_be_a_wrong_number_is_refused(ranked, relevant, k, text):
    with pytest.raises(InputError, match=text):
        retrieval(ranked, relevant, k)
