"""Splitting rows into training and held-out ones, so that no question stands on both sides.

    u(row) = SHA-256(seed, key of the row) / 2^64,  0 <= u < 1          held out where u < fraction

Each row decides for itself, by its key alone: equal keys go to the same side, the order of the rows does not matter, and rows added
later move none of the others. The key is the question (everything before the answer) unless another is given; split at random by
row, and a duplicated question would be trained on and then "generalised" to.
The price: the held-out share is the fraction only on average, and a small file may leave one side empty, which is an error.
Proved in tests/data/test_split.py. Left out: stratified splits."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from minift.data.sources import Row
from minift.errors import InputError


T = TypeVar("T")


def question(row: Row) -> str:
    return row.question


def split_rows(
    rows: Sequence[T], *, fraction: float = 0.1, seed: int = 0, key: Callable[[T], str] = question
) -> tuple[list[T], list[T]]:
    """(rows to train on, rows held out), each in the order given. `key`: what may not straddle the split; of a Row, its question.

    Raises InputError if either side would be empty."""
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, it is {fraction}")
    keys = [key(row) for row in rows]
    held_out = {k for k in set(keys) if _unit(k, seed) < fraction}
    train = [row for row, k in zip(rows, keys) if k not in held_out]
    test = [row for row, k in zip(rows, keys) if k in held_out]
    if not train or not test:
        raise InputError(
            f"{len(rows)} rows ({len(set(keys))} different) cannot be split with a held-out fraction of {fraction} and seed {seed}: "
            "one side would be empty; give more rows, another fraction, or held-out files of their own (--eval-data)"
        )
    return train, test


def _unit(key: str, seed: int) -> float:
    """A number in [0, 1) from the text alone; the same on every machine (Python's own hash() is not)."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8], "big") / 2**64
