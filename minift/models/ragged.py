"""Texts of different lengths without a single pad: laid end to end in one row, those of one length side by side.

    3 texts of 2 tokens, 1 of 5          tokens (1, 11)          runs ((3, 2), (1, 5))

Everything that looks at one token at a time (linears, norms, activations: nearly all the work) takes the row as it is. Attention takes one
run after another: 3 texts of one length are an ordinary batch (3, H, 2, D), with nothing to mask. So no number is computed for a pad, and
the result is that of each text alone. Packing (segments) puts texts in one row as well, but there attention compares every token of the row
with every other and masks most of it: right for long rows of few texts, not for hundreds of short ones.
Proved in tests/models/test_encoder.py. Left out: virtual tokens among the embeddings, a KV cache."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """How the texts of a row lie: (texts, length) of each run, in order."""

    runs: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """N: tokens of all texts."""
        return sum(count * length for count, length in self.runs)

    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each text, in the order of the row."""
        return torch.tensor([length for count, length in self.runs for _ in range(count)], dtype=torch.int64)

    def places(self) -> Tensor:
        """(N,) int64: 0, 1, 2, ... in each text."""
        return torch.cat([torch.arange(length).repeat(count) for count, length in self.runs])

    def firsts(self) -> Tensor:
        """(B,) int64: where in the row each text begins."""
        lengths = self.lengths()
        return lengths.cumsum(0) - lengths

    def batches(self, x: Tensor) -> list[Tensor]:
        """x (N, ...) -> of each run (texts, length, ...)."""
        parts = [x] if len(self.runs) == 1 else x.split([count * length for count, length in self.runs])       # a split's gradient is a copy
        return [part.unflatten(0, run) for part, run in zip(parts, self.runs)]

    def row(self, batches: Iterable[Tensor]) -> Tensor:
        """The way back: (texts, length, ...) of each run -> (N, ...)."""
        parts = [batch.flatten(0, 1) for batch in batches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def lay_out(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Ragged, Tensor]:
    """Token ids of B texts -> token_ids (1, N), how they lie, and order (B,): the number in `texts` of each text of the row."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    runs = tuple((len(list(some)), length) for length, some in groupby(order, key=lambda i: len(texts[i])))
    return torch.tensor([[token for i in order for token in texts[i]]]), Ragged(runs), torch.tensor(order)
