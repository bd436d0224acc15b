"""One prompt and several answers to it, in one row: the prompt is run through the model once, however many answers branch off.

    row        p p p p | c c c | r r          prompt, chosen, rejected
    segment    1 1 1 1   1 1 1   1 1          one tree
    branch     0 0 0 0   1 1 1   2 2          0: the prompt, k: the k-th answer
    position   0 1 2 3   4 5 6   4 5          every answer follows the prompt

An answer's token sees the prompt and its own branch, never another answer (models/attention.py, `visibility`), so what the model says is
what it would say of prompt + answer alone. The first token of every answer is predicted at the same place: the prompt's last token.
Preference pairs (two answers), GRPO's groups and PPO's single completions are all this. Proved in tests/data/test_branches.py.
Left out: answers that branch off inside an answer."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from minift.errors import InputError


class Tree(NamedTuple):
    """A prompt and answers to it, as token ids; none is empty."""

    prompt: list[int]
    answers: list[list[int]]
    """Each with its end token, if it has one."""

    @property
    def size(self) -> int:
        """Tokens, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass
class TreeBatch:
    """Trees in (B, T) rows, and where their A answers with n tokens in all are; answers in the order of the trees."""

    token_ids: Tensor
    """(B, T) int64"""
    segments: Tensor
    """(B, T) int64: which tree of the row a token belongs to; 0: unused places."""
    branches: Tensor
    """(B, T) int64: 0 for prompts, k for a tree's k-th answer."""
    places: Tensor
    """(n,) int64: where in the B T places each answer token is predicted (the place before it)."""
    tokens: Tensor
    """(n,) int64: the answer tokens."""
    lengths: Tensor
    """(A,) int64: tokens of each answer."""
    ends: Tensor
    """(A,) int64: where in the B T places each answer's last token is; a reward is read there."""
    trees: int
    values: dict[str, Tensor] = field(default_factory=dict)
    """Numbers that go with the answers or trees, by name (reference log-probabilities, margins ...)."""

    @property
    def targets(self) -> int:
        """What a loss is divided by: the trees (pairs, groups)."""
        return self.trees

    @property
    def answer_of(self) -> Tensor:
        """(n,) int64: which answer each token belongs to."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    def to(self, device: torch.device | str) -> "TreeBatch":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return TreeBatch(**moved, trees=self.trees, values={name: value.to(device) for name, value in self.values.items()})


def grow(trees: Sequence[Tree], length: int | None = None, pad_id: int = 0) -> TreeBatch:
    """Trees -> (B, T): rows of at most `length` tokens, each tree whole in the first row with room; None: one tree a row.

    Raises InputError for an empty prompt or answer, and for a tree longer than a row."""
    rows: list[list[int]] = []                                              # the trees of each row
    room: list[int] = []
    for number, tree in enumerate(trees):
        if not tree.prompt or not all(tree.answers) or not tree.answers:
            raise InputError(f"tree {number} has an empty prompt or answer: each needs at least one token")
        if length is not None and tree.size > length:
            raise InputError(f"a prompt with its answers has {tree.size} tokens, a row has room for {length}: shorten it")
        row = next((r for r in range(len(rows)) if length is not None and room[r] >= tree.size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length or tree.size)
        rows[row].append(number)
        room[row] -= tree.size
    B, T = len(rows), max(sum(trees[number].size for number in row) for row in rows)
    token_ids = torch.full((B, T), pad_id, dtype=torch.int64)
    segments, branches = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.int64)
    places: list[list[list[int]]] = [[] for _ in trees]                     # of each tree's answers
    for row, numbers in enumerate(rows):
        at = 0
        for segment, number in enumerate(numbers, start=1):
            prompt, answers = trees[number]
            segments[row, at : at + trees[number].size] = segment
            token_ids[row, at : at + len(prompt)] = torch.tensor(prompt)
            last, at = row * T + at + len(prompt) - 1, at + len(prompt)     # where every answer's first token is predicted
            for branch, answer in enumerate(answers, start=1):
                token_ids[row, at : at + len(answer)] = torch.tensor(answer)
                branches[row, at : at + len(answer)] = branch
                places[number].append([last, *range(row * T + at, row * T + at + len(answer))])
                at += len(answer)
    answers = [answer for tree in trees for answer in tree.answers]
    found = [place for tree in places for place in tree]
    return TreeBatch(
        token_ids, segments, branches,
        places=torch.tensor([p for place in found for p in place[:-1]]),
        tokens=torch.tensor([token for answer in answers for token in answer]),
        lengths=torch.tensor([len(answer) for answer in answers]),
        ends=torch.tensor([place[-1] for place in found]),
        trees=len(trees),
    )  # fmt: skip


def apart(trees: Sequence[Tree]) -> list[Tree]:
    """The same answers in the same order, each behind a copy of its prompt: what `grow` saves."""
    return [Tree(tree.prompt, [answer]) for tree in trees for answer in tree.answers]


def answers_in(part: slice, lengths: Tensor) -> slice:
    """Which of the A answers the tokens `part` of the n are, where both its ends are ends of answers."""
    ends = lengths.cumsum(0)
    first, last = torch.searchsorted(ends, torch.tensor([part.start, part.stop - 1], device=lengths.device), right=True).tolist()
    return slice(first, last + 1)


def batches_of_trees(sizes: Sequence[int], tokens: int, seed: int, bucketed: bool = False) -> list[list[int]]:
    """One epoch of micro-batches of about `tokens` tokens, as lists of indices, longest tree first (so that `grow` packs them well).

    Shuffled, and of equal numbers of trees, give or take one; or bucketed: trees of similar size together, each a row of its own. Every
    epoch (`seed`) has the same number of batches."""
    dice = random.Random(seed)
    order = dice.sample(range(len(sizes)), len(sizes))
    if not bucketed:
        count = min(len(sizes), max(1, math.ceil(sum(sizes) / tokens)))
        bounds = [round(i * len(sizes) / count) for i in range(count + 1)]
        return [sorted(order[a:b], key=lambda i: -sizes[i]) for a, b in zip(bounds, bounds[1:])]
    batches: list[list[int]] = []
    for index in sorted(order, key=lambda i: -sizes[i]):
        if not batches or sizes[batches[-1][0]] * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(index)
    dice.shuffle(batches)
    return batches


def rows_of(trees: Sequence[Tree], share: bool = True) -> TreeBatch:
    """Trees in rows as long as the longest of them; or, for a model that cannot share prompts, each answer in a row of its own."""
    batch = grow(trees, max(tree.size for tree in trees)) if share else grow(apart(trees))
    batch.trees = len(trees)
    return batch
