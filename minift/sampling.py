"""Sampling: from the model's logits for the next token to the token.

    logits (B, V)  ->  repetition penalty  ->  / temperature  ->  top-k  ->  top-p  ->  min-p  ->  softmax  ->  draw one

The order and the meaning of each step are those of transformers' `generate`. Temperature 0 is greedy: the largest logit after
the penalty. Papers: top-p Holtzman et al. 2019 (arXiv:1904.09751), min-p Nguyen et al. 2024 (arXiv:2407.01082), repetition penalty
Keskar et al. 2019 (arXiv:1909.05858). Pure functions of float32 logits; generate.py runs the model around them.
Proved in tests/test_generate.py; equal to transformers in tests/parity/test_generate.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minift.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    temperature: float = 0.0
    """Logits are divided by it: below 1 the likely become likelier, 0 takes the likeliest."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together hold probability p: the one that crosses p is still in."""
    min_p: float | None = None
    """Only tokens at least min_p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Tokens already in the prompt or the answer: a positive logit is divided by it, a negative one multiplied."""

    def __post_init__(self):
        filters = {name: getattr(self, name) for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None}
        for name, value, good, wanted in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more, or None for all tokens"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "more than 0 and at most 1, or None for all tokens"),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "0 to 1, or None for all tokens"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "more than 0 (1 is none)"),
        ):
            if not good:
                raise InputError(f"{name} is {value}: wanted {wanted}")
        if filters and self.temperature == 0:
            given = ", ".join(f"{name}={value}" for name, value in filters.items())
            raise InputError(f"{given} has no effect at temperature 0 (always the likeliest token): pass a temperature, such as 1.0")


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """logits (B, V), seen (B, V) bool: the tokens a row already has. Both signs move towards "less likely"."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) -> (B, V) with -inf below the k-th largest logit of a row; equals of the k-th stay."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]                # (B, 1)
    return logits.masked_fill(logits < least, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) -> (B, V) with -inf outside the smallest set of likeliest tokens that holds at least p."""
    ordered, places = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    above = probabilities.cumsum(-1) - probabilities                            # what the likelier tokens hold already: 0 for the first
    return logits.masked_fill((above >= p).scatter(-1, places, above >= p), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) -> (B, V) with -inf where probability < p * the largest one; a ratio of probabilities is a difference of logits."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), float("-inf")) if p else logits


def adjust(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature and filters in transformers' order: float32 (B, V) -> (B, V), whose softmax is what is drawn from."""
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature    # the largest becomes 0: no temperature overflows
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def choose(logits: Tensor, sampling: Sampling, dice: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row: (B, V) -> (B,) int64. Row r draws one uniform number u from dice[r] (on the CPU, so a seed means
    the same on every device) and takes the first token whose cumulative probability exceeds u."""
    if not torch.isfinite(logits.amax(-1)).all():
        raise InputError("the model's logits are NaN or infinite: its weights are damaged, or too large for its dtype (try float32)")
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cumulative = adjust(logits, sampling).softmax(-1).double().cumsum(-1)       # (B, V)
    uniform = torch.cat([torch.rand(1, dtype=torch.float64, generator=die) for die in dice]).to(logits.device)
    return torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]


def row_seeds(seed: int, rows: int) -> list[int]:
    """The seeds of the rows of one call. To get row r again alone, pass seed=[row_seeds(seed, rows)[r]]."""
    return [seed * 1_000_003 + row for row in range(rows)]
