"""From examples of every length to rectangular batches, wasting as little work as possible and leaking nothing.

An Example is a list of token ids and, for each, whether it is a target. A Batch is B of them in (B, T) tensors, either
  padded   one example per row, pads on the right: causal attention never looks to the right, so pads need no mask at all; or
  packed   several examples per row, each its own segment: positions restart, attention stays within the segment (trap 7).
In both, the first token of an example is never a target: nothing precedes it that could predict it.
An encoder-decoder's examples have a prompt apart, which is padded beside them; they are never packed.
Proved in tests/data/test_batches.py. Left out: splitting one example over two rows."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minift.errors import InputError


class Example(NamedTuple):
    """One text as the model sees it."""

    ids: list[int]
    loss_mask: list[bool]
    """loss_mask[i]: token i is a target, that is, counts in the loss. Always false for i = 0."""
    prompt: Sequence[int] = ()
    """What an encoder-decoder's encoder reads; `ids` are then its start token and the answer."""

    @property
    def size(self) -> int:
        """Tokens, wherever they are read."""
        return len(self.ids) + len(self.prompt)


@dataclass
class Batch:
    token_ids: Tensor
    """(B, T) int64"""
    loss_mask: Tensor
    """(B, T) bool"""
    segments: Tensor | None = None
    """(B, T) int64: which example of the row a token belongs to; None if each row is one example."""
    prompts: Tensor | None = None
    """(B, S) int64: of an encoder-decoder's examples."""
    there: Tensor | None = None
    """(B, S) bool: which of `prompts` are tokens; the others are pads."""

    @property
    def targets(self) -> int:
        return int(self.loss_mask[:, 1:].sum())

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(None if part is None else part.to(device) for part in (self.token_ids, self.loss_mask, self.segments, self.prompts, self.there)))


def pad(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """One example per row, pads on the right up to the longest. The pads' id is never looked at by a loss or a real token."""
    T = max(len(example.ids) for example in examples)
    token_ids = torch.full((len(examples), T), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(len(examples), T, dtype=torch.bool)
    for row, example in enumerate(examples):
        token_ids[row, : len(example.ids)] = torch.tensor(example.ids)
        loss_mask[row, 1 : len(example.ids)] = torch.tensor(example.loss_mask[1:], dtype=torch.bool)
    if not examples[0].prompt:
        return Batch(token_ids, loss_mask)
    lengths = torch.tensor([len(example.prompt) for example in examples])
    there = torch.arange(int(lengths.max())) < lengths[:, None]                               # (B, S)
    prompts = torch.full(there.shape, pad_id).masked_scatter(there, torch.tensor([token for example in examples for token in example.prompt]))
    return Batch(token_ids, loss_mask, None, prompts, there)


def pack(examples: Sequence[Example], length: int, pad_id: int = 0) -> Batch:
    """Fill rows of exactly `length` tokens with whole examples: best fit, longest first. Unused places form a segment of their own.

    Raises InputError for an example longer than a row (truncation is examples.py's business, where it is counted)."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        size = len(example.ids)
        if size > length:
            raise InputError(f"an example of {size} tokens does not fit into a row of {length}: raise the length or truncate it")
        fitting = [row for row in range(len(rows)) if room[row] >= size]
        if fitting:
            row = min(fitting, key=lambda r: room[r])
        else:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(example)
        room[row] -= size
    token_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), length, dtype=torch.bool)
    segments = torch.zeros(len(rows), length, dtype=torch.int64)             # 0: unused places
    for row, packed in enumerate(rows):
        start = 0
        for number, example in enumerate(packed, 1):
            end = start + len(example.ids)
            token_ids[row, start:end] = torch.tensor(example.ids)
            loss_mask[row, start + 1 : end] = torch.tensor(example.loss_mask[1:], dtype=torch.bool)
            segments[row, start:end] = number
            start = end
    return Batch(token_ids, loss_mask, segments)


def by_length(examples: Sequence[Example], tokens: int, seed: int) -> list[list[int]]:
    """One epoch of batches, as lists of indices: examples of similar length together, at most `tokens` padded tokens each.

    Examples of one length change places from epoch to epoch, and so does the order of the batches; the batches' shapes and number do
    not, so the number of steps is known beforehand. Deterministic by `seed`."""
    dice = random.Random(seed)
    order = sorted(dice.sample(range(len(examples)), len(examples)), key=lambda i: examples[i].size)
    batches: list[list[int]] = []
    for index in order:
        if not batches or examples[index].size * (len(batches[-1]) + 1) > tokens:      # the newest is the longest
            batches.append([])
        batches[-1].append(index)
    dice.shuffle(batches)
    return batches


def windows(stream: Sequence[int], length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cut a long text into overlapping windows: (start, end, first new token), so that every token is new exactly once."""
    if not 1 <= stride <= length:
        raise InputError(f"windows of {length} tokens cannot move on by {stride}: wanted 1 to {length}, or tokens would be left out")
    new = 0
    for start in range(0, max(1, len(stream)), stride):
        end = min(start + length, len(stream))
        yield start, end, new
        new = end
        if end == len(stream):
            return


def stream_rows(documents: Sequence[Sequence[int]], length: int, seed: int) -> Batch:
    """One epoch of pre-training rows: the documents in a shuffled order, end to end, cut into rows of `length` tokens.

    Every place holds a real token. A document cut by a row's end goes on in the next row, as a segment of its own. The incomplete row
    is left out, at the start or the end by chance; the order of the documents, and so every cut, is another in each epoch."""
    dice = random.Random(seed)
    order = dice.sample(range(len(documents)), len(documents))
    ids = torch.tensor([token for index in order for token in documents[index]])
    owner = torch.tensor(order).repeat_interleave(torch.tensor([len(documents[index]) for index in order]))
    rows, left = divmod(len(ids), length)                                   # the same number of rows in every epoch
    if rows == 0:
        raise InputError(f"the text has {len(ids)} tokens, fewer than one row of {length}: give more text or a smaller --context")
    offset = dice.randint(0, left)
    token_ids, segments = (x[offset : offset + rows * length].view(rows, length) for x in (ids, owner))
    loss_mask = torch.zeros(rows, length, dtype=torch.bool)
    loss_mask[:, 1:] = segments[:, 1:] == segments[:, :-1]                  # the first token of a segment has nothing before it
    return Batch(token_ids, loss_mask, segments)


def micro_batches(rows: Batch, size: int, seed: int | None = None) -> list[Batch]:
    """Cut B rows into batches of `size`, shuffled if a seed is given; the last one may be smaller."""
    B = len(rows.token_ids)
    order = torch.arange(B) if seed is None else torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    segments = lambda part: None if rows.segments is None else rows.segments[part]
    return [Batch(rows.token_ids[part], rows.loss_mask[part], segments(part)) for part in order.split(size)]
