"""ROUGE-L and exact match: values worked by hand, the first ones from Lin's paper."""

import pytest

from minift.errors import InputError
from minift.evaluate.generation import exact_match, rouge_l, rouge_lsum, score


def test_trap45_golden_values_of_the_named_variant():
    reference = "police killed the gunman"                                    # section 3.1 of the paper
    assert rouge_l("police kill the gunman", reference) == 0.75               # police, the, gunman: 3 of 4 words on both sides
    assert rouge_l("the gunman kill police", reference) == 0.5                # the, gunman
    assert rouge_l("The cat, it sat.", "the CAT is here; it sat") == pytest.approx(0.8)          # P = 4/4, R = 4/6: 2PR/(P+R) = 4/5
    assert rouge_l("naïve café", "na ve caf") == 1.0                          # an accented letter separates, it is not a letter
    assert rouge_l("torch_2 x-1", "torch 2 x 1") == 1.0                       # so do the underscore and the hyphen
    assert rouge_l("returns values", "return value") == 0.0                   # no stemming
    assert "rouge_score" in score(["a"], ["a"]).variant and "no stemming" in score(["a"], ["a"]).variant


def test_trap45_line_breaks_matter_for_lsum_and_for_nothing_else():
    swapped, reference = "three four\none two", "one two\nthree four"
    assert rouge_l(swapped, reference) == 0.5                                 # one sequence of words: one of the two pairs is out of order
    assert rouge_lsum(swapped, reference) == 1.0                              # each line of the reference finds its match
    assert rouge_lsum("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5") == pytest.approx(8 / 15)    # section 3.2: P = 4/10, R = 4/5
    assert rouge_lsum("a b c", "a c d") == rouge_l("a b c", "a c d")


def test_lsum_counts_a_word_no_more_often_than_both_texts_have_it():
    assert rouge_lsum("a", "a\na\na") == pytest.approx(0.5)                   # one hit: P = 1, R = 1/3


def test_f1_does_not_reward_length_alone():
    assert rouge_l("a b", "a b c d") == pytest.approx(2 / 3)                  # P = 1, R = 1/2
    assert rouge_l("a b c d", "a b") == pytest.approx(2 / 3)                  # P = 1/2, R = 1: F1 is symmetric, recall is not


@pytest.mark.parametrize("candidate, reference", [("", "word"), ("word", ""), ("", ""), ("...", "word"), ("日本", "日本")])
def test_texts_without_words_score_zero(candidate, reference):
    assert rouge_l(candidate, reference) == rouge_lsum(candidate, reference) == 0.0


def test_exact_match_forgives_white_space_only():
    assert exact_match(" Return the\n sum. ", "Return the sum.")
    assert not exact_match("return the sum.", "Return the sum.")
    assert not exact_match("Return the sum", "Return the sum.")


def test_a_corpus_score_is_the_mean_over_texts():
    scores = score(["police kill the gunman", "a b"], ["police killed the gunman", "a b"])
    assert (scores.rouge_l, scores.rouge_lsum, scores.exact_match, scores.texts) == (0.875, 0.875, 0.5, 2)


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 candidates but 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(InputError, match="no texts to score"):
        score([], [])
