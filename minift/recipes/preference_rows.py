"""Preference files as the recipes take them: read, split by question, and turned into trees.

    files -> pairs or labelled answers -> (to train on, held out) -> trees of token ids

KTO learns from single answers, and its KL term needs each prompt with another prompt's answer: that is the tree's second answer, and the
next row with another prompt gives it. Pairs given to KTO become a desirable and an undesirable answer each.
Proved in tests/recipes/test_dpo.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minift.data.branches import Tree
from minift.data.preference_trees import PairReport, build_labelled, build_pairs, describe
from minift.data.preferences import Found, Labelled, Pair, read_labelled, read_pairs
from minift.data.sources import Row
from minift.data.split import split_rows
from minift.errors import InputError
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rows:
    """Trees of two answers, chosen and rejected (for KTO: its own and another row's), and what goes with them."""

    trees: list[Tree]
    margins: Tensor | None
    """(trees,) float32, 0 where a pair has none; None if no pair has one."""
    desirable: Tensor | None
    """(trees,) bool, for KTO."""
    report: PairReport
    found: Found | None
    """What was in the files, with the first of the two sides."""

    def lines(self, use: str) -> list[str]:
        """What became of them, for people."""
        return [*(self.found.lines() if self.found is not None else []), *describe(self.report, use)]


@dataclass(frozen=True)
class Read:
    """One side of the split."""

    pairs: Sequence[Pair] | Sequence[Labelled]
    found: Found | None

    @property
    def questions(self) -> list[Row]:
        """A row of each, for its prompt."""
        return [pair.chosen if isinstance(pair, Pair) else pair.row for pair in self.pairs]

    def samples(self, count: int) -> list[Row]:
        """The first rows with different questions; of labelled answers the desirable ones if there are any."""
        good = [pair.row for pair in self.pairs if isinstance(pair, Labelled) and pair.desirable]
        return list({row.question: row for row in reversed(good or self.questions)}.values())[::-1][:count]

    def examples(self, tokenizer: Tokenizer, max_length: int | None) -> Rows:
        if isinstance(self.pairs[0], Pair):
            built, report = build_pairs(self.pairs, tokenizer, max_length=max_length)
            margins = [margin for _, margin in built]
            known = None if all(margin is None for margin in margins) else torch.tensor([margin or 0.0 for margin in margins])
            return Rows([tree for tree, _ in built], known, None, report, self.found)
        labelled, report = build_labelled(self.pairs, tokenizer, max_length=max_length)
        trees = with_others([tree for tree, _ in labelled], max_length)
        return Rows(trees, None, torch.tensor([desirable for _, desirable in labelled]), report, self.found)


def read_rows(
    data: Sequence[str], eval_data: Sequence[str], held_out: float, columns: Mapping[str, str], one_answer: bool = False
) -> tuple[Read, Read]:
    """(to train on, held out): eval_data if it is given, else a share of the questions. one_answer: labelled answers, for KTO."""
    read = read_labelled if one_answer else read_pairs
    rows, found = read(data, columns=columns)
    if not eval_data:
        train, valid = split_rows(rows, fraction=held_out, seed=0, key=lambda pair: pair.question)
        return Read(train, found), Read(valid, None)
    if held_out != 0.1:
        raise InputError("--eval-data says what is measured, so --held-out has nothing to hold out: give one of them")
    return Read(rows, found), Read(*read(eval_data, columns=columns))


def with_others(trees: Sequence[Tree], max_length: int | None = None) -> list[Tree]:
    """To each tree's one answer the next one's that has another prompt (trap 21), as much of it as max_length leaves room for.

    Raises InputError if there is only one prompt."""
    if len({tuple(tree.prompt) for tree in trees}) < 2:
        raise InputError(f"KTO's KL term needs answers of other prompts, and here is one prompt ({len(trees)} rows): give at least 2 on each side of the split")
    found = []
    for i, tree in enumerate(trees):
        other = next(trees[(i + step) % len(trees)] for step in range(1, len(trees)) if trees[(i + step) % len(trees)].prompt != tree.prompt)
        room = None if max_length is None else max_length - len(tree.prompt)
        found.append(Tree(tree.prompt, [tree.answers[0], other.answers[0][:room]]))
    return found
