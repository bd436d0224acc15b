"""What all sides of benchmarks/generation.py are given: models of training_case.py's shapes, prompts of random tokens, and how much is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training_case import FULL as TRAINING
from benchmarks.training_case import TINY, Shape, write_model

BATCHES = 3
"""Prompts of so many batches; then the same again."""


@dataclass(frozen=True)
class Sizes:
    shapes: dict[str, Shape]
    prompt: int = 128
    new: int = 128


FULL = Sizes({name: TRAINING.shapes[name] for name in ("15m", "110m")})
QUICK = Sizes({"15m": TINY, "110m": TINY}, prompt=9, new=7)


@dataclass(frozen=True)
class Case:
    shape: str
    rows: int
    first: bool = False
    """Only the first token is written."""

    def new(self, sizes: Sizes) -> int:
        return 1 if self.first else sizes.new


CASES = {f"{shape}-b{rows}{'-first' * first}": Case(shape, rows, first) for first in (False, True) for shape in ("15m", "110m") for rows in (1, 8)}


def write_start(folder: Path, sizes: Sizes) -> None:
    for name, shape in sizes.shapes.items():
        write_model(folder / name, shape)


def prompts(sizes: Sizes, case: str):
    """(BATCHES, rows, prompt) token ids."""
    import torch

    given = CASES[case]
    return torch.randint(8, sizes.shapes[given.shape].vocab, (BATCHES, given.rows, sizes.prompt), generator=torch.Generator().manual_seed(0))


def keep(folder: Path, case: str, side: str, batch: int, tokens: Sequence[Sequence[int]]) -> None:
    """What a side wrote behind a batch of prompts, for the comparison."""
    place = folder / "written" / case
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{batch}-{side}.json").write_text(json.dumps([list(row) for row in tokens]))


def same_tokens(folder: Path, case: str, new: int) -> int:
    """How many tokens of all batches were compared. RuntimeError if sides wrote different ones, or not so many."""
    compared = 0
    for batch in range(BATCHES):
        found = {file.stem.partition("-")[2]: json.loads(file.read_text()) for file in sorted((folder / "written" / case).glob(f"{batch}-*.json"))}
        first = next(iter(found), "")
        for side, rows in found.items():
            if any(len(row) != new for row in rows):
                raise RuntimeError(f"{side} wrote {[len(row) for row in rows]} tokens, and {new} are wanted of each row")
            for number, (row, other) in enumerate(zip(rows, found[first])):
                differing = [place for place in range(new) if row[place] != other[place]]
                if differing:
                    raise RuntimeError(f"{side} and {first} differ from token {differing[0]} of row {number} on, batch {batch}")
            compared += 0 if side == first else new * len(rows)
    return compared
