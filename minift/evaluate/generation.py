"""Scores for written texts: ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries") and exact match.

    m, n = words of the reference, of the candidate          L = length of their longest common subsequence
    precision P = L / n     recall R = L / m     ROUGE-L = 2 P R / (P + R)

The words shared in the same order, gaps allowed: 1.0 is the same text, 0.0 shares no word. Packages disagree in what a word is,
what a line break does and which F they report (trap 45), so every result carries `variant`. Ours is the `rouge_score` package's
default: lower case, words are runs of a-z and 0-9 (all else separates, accented letters too), no stemming, F1, mean over texts.
ROUGE-Lsum differs for texts of several lines only: each reference line is matched with all candidate lines at once.
Proved in tests/evaluate/test_generation.py, equal to rouge_score in tests/parity/test_rouge.py.
Left out: stemming, several references per candidate, bootstrap intervals."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from minift.errors import InputError

VARIANT = "ROUGE-L F1 as rouge_score computes it: lower case, words [a-z0-9]+, no stemming; mean over texts"


@dataclass(frozen=True)
class GenerationScores:
    """Means over a set of texts, each from 0 to 1."""

    rouge_l: float
    rouge_lsum: float
    """Equal to rouge_l if no text has a line break."""
    exact_match: float
    """Share of texts equal to their reference once white space is normalised; case and punctuation count."""
    texts: int
    variant: str = VARIANT
    """Which ROUGE this is: to be printed beside the number."""


def score(candidates: Sequence[str], references: Sequence[str]) -> GenerationScores:
    """Mean scores of `candidates[i]` against `references[i]`. Raises InputError for lists that are empty or differ in length."""
    if len(candidates) != len(references):
        raise InputError(f"{len(candidates)} candidates but {len(references)} references: there must be one reference for each candidate")
    if not candidates:
        raise InputError("there are no texts to score: a mean needs at least one candidate and its reference")
    pairs = list(zip(candidates, references))
    mean = lambda metric: sum(metric(candidate, reference) for candidate, reference in pairs) / len(pairs)
    return GenerationScores(mean(rouge_l), mean(rouge_lsum), mean(exact_match), len(pairs))


def exact_match(candidate: str, reference: str) -> bool:
    """Are the texts equal, after runs of white space (line breaks too) become one blank and the ends are stripped?"""
    return candidate.split() == reference.split()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 of two texts; 0.0 if either has no words."""
    ours, theirs = words(candidate), words(reference)
    return _f1(_lcs_table(theirs, ours)[-1][-1], len(ours), len(theirs))


def rouge_lsum(candidate: str, reference: str) -> float:
    """Summary-level ROUGE-L F1 (section 3.2): lines are sentences, and a reference line's matches are the union over all lines
    of the candidate. As in ROUGE-1.5.5 a word is hit at most as often as it occurs in each of the two texts."""
    our_lines = [words(line) for line in candidate.split("\n")]
    their_lines = [words(line) for line in reference.split("\n")]
    ours, theirs = Counter(sum(our_lines, [])), Counter(sum(their_lines, []))
    matched: Counter[str] = Counter()
    for line in their_lines:
        places = set().union(*(_lcs_places(line, other) for other in our_lines))     # of words in the reference line
        matched.update(line[place] for place in places)
    hits = sum((matched & ours & theirs).values())                                   # & is the minimum of the counts
    return _f1(hits, ours.total(), theirs.total())


def _f1(hits: int, ours: int, theirs: int) -> float:
    if hits == 0:
        return 0.0
    precision, recall = hits / ours, hits / theirs
    return 2 * precision * recall / (precision + recall)


def _lcs_table(a: list[str], b: list[str]) -> list[list[int]]:
    """table[i][j]: length of the longest common subsequence of a[:i] and b[:j]; (len(a) + 1) rows of len(b) + 1."""
    table = [[0] * (len(b) + 1)]
    for word in a:
        row, above = [0], table[-1]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    return table


def _lcs_places(a: list[str], b: list[str]) -> set[int]:
    """The places in `a` of one longest common subsequence: of several the one rouge_score takes, which on a tie steps back in `a`."""
    table, places = _lcs_table(a, b), set()
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places
