"""Texts with an answer: what a classifier learns from. The fields of a file's first record say what is asked.

    text            or   sentence1, sentence2            what is read: one text, or two that are read together
    label                one name: exactly one label holds (single)
    labels               a list of names, or in a table names with | between them: any number hold, none too (multi)
    score                a number (regression)

Numbers as labels are names: 3 is "3". Nothing is dropped unsaid: rows with an empty text are counted and listed, and so are texts that come
with two different answers. No text stands on both sides of a split; a held-out row whose label the other side never shows moves over, and is counted.
Proved in tests/data/test_classified.py. Left out: labels of single words, labels that have an order."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from minift.data.preferences import some
from minift.data.records import Record, find, names, records
from minift.data.sources import renamed
from minift.data.split import split_rows
from minift.errors import InputError

Problem = Literal["single", "multi", "regression"]
ANSWERS: dict[str, Problem] = {"label": "single", "labels": "multi", "score": "regression"}
TEXTS = (("text",), ("sentence1", "sentence2"))
KNOWN = ("text", "sentence1", "sentence2", *ANSWERS)
BETWEEN = "|"


@dataclass(frozen=True)
class Classified:
    """One row."""

    where: str
    """File and line, for errors: "mails.csv, line 3"."""
    texts: tuple[str, ...]
    """One text, or two."""
    answer: str | tuple[str, ...] | float | None
    """A label, labels, or a number; None where only texts were read."""

    @property
    def key(self) -> str:
        """What must not stand on both sides of a split."""
        return "\x1f".join(text.strip() for text in self.texts)


@dataclass
class Found:
    """What the files held."""

    problem: Problem | None = None
    sides: int = 1
    """Texts of a row."""
    rows: int = 0
    empty: list[str] = field(default_factory=list)
    """File and line of each row left out because a text is empty."""
    torn: list[str] = field(default_factory=list)
    """... of each row whose text came before with another answer; these stay."""
    moved: int = 0
    """Held-out rows that went to training, which had no other row with their label."""

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{self.rows} rows of {'one text' if self.sides == 1 else 'two texts'} ({self.problem})"]
        for places, words in ((self.empty, "have an empty text and are left out"), (self.torn, "have a text that came before with another answer")):
            said += [f"{len(places)} {words}: {some(places)}"] if places else []
        return said + ([f"{self.moved} held-out rows went to training, which had none with their label"] if self.moved else [])


def read_classified(
    paths: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None, answers: bool = True
) -> tuple[list[Classified], Found]:
    """Every row of every file, in order. answers=False: files may hold texts alone, and where they do every answer is None.

    Raises InputError naming file and line for missing fields, an answer that is none, files that ask different things, and if no row is left."""
    found, rows, asked = Found(), [], None
    for path in find(paths):
        every = renamed(records(path), columns or {}, KNOWN)
        fields = _fields(every[0], answers)
        if asked not in (None, fields):
            raise InputError(f"{every[0].where}: found {', '.join(fields)}, and the files before held {', '.join(asked)}: give files that ask the same")
        asked = fields
        found.problem, found.sides = ANSWERS.get(fields[-1]), sum(name not in ANSWERS for name in fields)
        for record in every:
            found.rows += 1
            rows += _row(record, fields, found)
    if not rows:
        raise InputError(f"none of the {found.rows} rows is left: each has an empty text")
    first: dict[str, object] = {}
    found.torn = [row.where for row in rows if first.setdefault(row.key, row.answer) != row.answer]
    return rows, found


def labels_of(rows: Sequence[Classified]) -> list[str]:
    """The names of all labels, in order: as numbers if they all are whole numbers. Raises InputError if there is but one (single) or none (multi)."""
    every = {name for row in rows for name in (row.answer if isinstance(row.answer, tuple) else (row.answer,))}
    if not every or isinstance(rows[0].answer, str) and len(every) < 2:
        raise InputError(f"all {len(rows)} rows have {'the label ' + repr(next(iter(every))) if every else 'no label'}: there is nothing to tell apart")
    return sorted(every, key=lambda name: (int(name), name)) if all(name.isdecimal() for name in every) else sorted(every)


def split_classified(rows: Sequence[Classified], held_out: float, found: Found) -> tuple[list[Classified], list[Classified]]:
    """(to train on, held out), by text."""
    train, valid = split_rows(rows, fraction=held_out, key=lambda row: row.key)
    seen = set(unseen(valid, train))
    texts = {row.key for row in valid if seen & set(_names(row))}             # a text goes with all of its rows
    moved, keep = [row for row in valid if row.key in texts], [row for row in valid if row.key not in texts]
    found.moved = len(moved)
    if not keep:
        raise InputError(f"every held-out row has a label of its own: {len(rows)} rows are too few to split, give --eval-data or more of each label")
    return [*train, *moved], keep


def unseen(rows: Sequence[Classified], train: Sequence[Classified]) -> dict[str, str]:
    """Label that no training row has -> where it stands first."""
    known = {name for row in train for name in _names(row)}
    places: dict[str, str] = {}
    for row in rows:
        for name in _names(row):
            if name not in known:
                places.setdefault(name, row.where)
    return places


def targets(rows: Sequence[Classified], labels: Sequence[str]) -> Tensor:
    """(N,) int64 numbers of labels; of multi (N, K) float32 zeros and ones; of regression (N,) float32."""
    if isinstance(rows[0].answer, float):
        return torch.tensor([row.answer for row in rows])
    number = {name: k for k, name in enumerate(labels)}
    if isinstance(rows[0].answer, str):
        return torch.tensor([number[row.answer] for row in rows])
    table = torch.zeros(len(rows), len(labels))
    for i, row in enumerate(rows):
        table[i, [number[name] for name in row.answer]] = 1.0
    return table


def counts(rows: Sequence[Classified]) -> Counter:
    """Label -> rows that have it."""
    return Counter(name for row in rows for name in _names(row))


def _names(row: Classified) -> tuple[str, ...]:
    return row.answer if isinstance(row.answer, tuple) else (row.answer,) if isinstance(row.answer, str) else ()


def _fields(record: Record, answers: bool) -> tuple[str, ...]:
    read = next((some for some in TEXTS if set(some) <= record.fields.keys()), None)
    asked = next((name for name in ANSWERS if name in record.fields), None)
    if read is None or asked is None and answers:
        wanted = "text, or sentence1 and sentence2" + (f"; and one of {', '.join(ANSWERS)}" if answers else "")
        raise InputError(f"{record.where}: found the fields {names(record.fields)}. Wanted: {wanted}. --columns says which field is which: --columns label category")
    return read if asked is None else (*read, asked)


def _row(record: Record, fields: tuple[str, ...], found: Found) -> list[Classified]:
    if missing := [name for name in fields if name not in record.fields]:
        raise InputError(f"{record.where}: no field {missing[0]!r}, though the files start with {', '.join(fields)}; found {names(record.fields)}")
    texts = [record.fields[name] for name in fields if name not in ANSWERS]
    if bad := next((text for text in texts if not isinstance(text, str)), None):
        raise InputError(f"{record.where}: {bad!r:.60} is a {type(bad).__name__}: a text has to be a string")
    if not all(text and text.strip() for text in texts):
        found.empty.append(record.where)
        return []
    value = record.fields[fields[-1]] if found.problem else None
    read = {"single": _label, "multi": _labels, "regression": _number, None: lambda where, value: None}[found.problem]
    return [Classified(record.where, tuple(texts), read(record.where, value))]


def _label(where: str, value: object) -> str:
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    raise InputError(f"{where}: the label is {value!r:.40}: wanted a name")


def _labels(where: str, value: object) -> tuple[str, ...]:
    value = value.strip() if isinstance(value, str) else value
    if value in ("", None, []):
        return ()
    parts = value.split(BETWEEN) if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise InputError(f"{where}: the labels are {value!r:.40}: wanted a list of names, or names with {BETWEEN} between them")
    return tuple(sorted({_label(where, part) for part in parts}))


def _number(where: str, value: object) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: the score is {value!r:.40}: wanted a number")
    return number
