"""What people preferred: of two answers to one question the better one, or of a single answer whether it is good.

    Pair       question, chosen answer, rejected answer [, margin: by how much]        DPO and its family, reward models
    Labelled   question, answer, desirable or not                                      KTO

Both read any of the formats in preference_formats.py; a pair is also two labelled rows, one of each kind.
Left out here, and listed: ties, which are pairs whose answers differ in nothing but blanks around them (they prefer nothing), and rows with an
empty answer. A question may have many pairs: split_rows keeps them on one side, as it asks for `question`.
Proved in tests/data/test_preferences.py. Left out: rankings as such (they are read as all their pairs)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minift.data.preference_formats import known_as, labelled_row, pairs_in, wanted
from minift.data.records import Record, find, names, records
from minift.data.sources import Row, renamed
from minift.errors import InputError

Job = Literal["pairs", "labels"]
Paths = str | Path | Sequence[str | Path]
KNOWN = ("prompt", "completion", "messages", "conversations", "instruction", "input", "output", "system", "chosen", "rejected", "ranking",
         "label", "margin", "score_chosen", "score_rejected")    # fmt: skip
"""Fields that --columns can name."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one question. Raises InputError if they are no two, or the questions are."""

    where: str
    """File and line, for errors: "faq.jsonl, line 3"."""
    chosen: Row
    rejected: Row
    margin: float | None = None
    """How much better the chosen answer is, if the file says so."""

    def __post_init__(self):
        if self.chosen.question != self.rejected.question:
            raise InputError(f"{self.where}: the chosen and the rejected answer belong to different questions: a pair needs one prompt for both")
        if tie(self.chosen, self.rejected):
            raise InputError(f"{self.where}: the chosen answer is the rejected one, {self.chosen.answer.strip()!r:.60}: leave the pair out")

    @property
    def question(self) -> str:
        """All that stands before the answers. Two pairs with one question are duplicates, and must not straddle a split."""
        return self.chosen.question


@dataclass(frozen=True)
class Labelled:
    """One answer, and whether it is a good one."""

    where: str
    row: Row
    desirable: bool

    @property
    def question(self) -> str:
        return self.row.question


@dataclass
class Found:
    """What files of preferences held; nothing that was dropped goes unsaid."""

    rows: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    """Rows per format."""
    unused: list[str] = field(default_factory=list)
    """Fields that the format does not know."""
    ties: list[str] = field(default_factory=list)
    """File and line of each pair dropped because its answers are the same."""
    without_answer: list[str] = field(default_factory=list)
    """File and line of each pair or row dropped because an answer is empty."""
    against_scores: list[str] = field(default_factory=list)
    """File and line of each pair, kept, whose margin is negative: by its scores the rejected answer is the better one."""

    def lines(self) -> list[str]:
        """For people."""
        formats = ", ".join(f"{count} {name}" for name, count in self.formats.items())
        said = [f"{self.rows} rows ({formats})"]
        for places, words in (
            (self.ties, "pairs are ties, the chosen answer being the rejected one, and are left out"),
            (self.without_answer, "have an empty answer and are left out"),
            (self.against_scores, "pairs have a negative margin: their own scores prefer the rejected answer"),
        ):
            if places:
                said.append(f"{len(places)} {words}: {some(places)}")
        return [*said, f"fields not used: {', '.join(self.unused)}"] if self.unused else said


def read_pairs(paths: Paths, *, columns: Mapping[str, str] | None = None) -> tuple[list[Pair], Found]:
    """Every pair of every file, in order, and what was found. A ranking of K answers becomes its K (K - 1) / 2 pairs.

    columns: our field name -> the file's, e.g. {"prompt": "question", "chosen": "good"}.
    Raises InputError naming file and line for whatever is no pair, and if no pair is left."""
    pairs, found = [], Found()
    for job, name, record in _each(paths, columns, found):
        if job != "pairs":
            raise InputError(f"{record.where}: single answers with a label, where pairs of answers were wanted: `minift dpo --loss kto` learns from labels")
        pairs += _pairs(name, record, found)
    return _some_left(pairs, found), found


def read_labelled(paths: Paths, *, columns: Mapping[str, str] | None = None) -> tuple[list[Labelled], Found]:
    """Every labelled answer of every file, in order, and what was found. Of a pair the chosen answer is desirable, the rejected one is not.

    Raises InputError naming file and line for whatever has no such label, and if no answer is left."""
    rows, found = [], Found()
    for job, name, record in _each(paths, columns, found):
        if job == "pairs":
            rows += unpair(_pairs(name, record, found))
            continue
        row, desirable = labelled_row(name, record)
        if row.answer.strip():
            rows.append(Labelled(record.where, row, desirable))
        else:
            found.without_answer.append(record.where)
    return _some_left(rows, found), found


def unpair(pairs: Sequence[Pair]) -> list[Labelled]:
    """Each pair as a desirable answer and, right behind it, an undesirable one; margins are lost."""
    return [Labelled(pair.where, row, row is pair.chosen) for pair in pairs for row in (pair.chosen, pair.rejected)]


def job_of(paths: Paths, columns: Mapping[str, str] | None = None) -> Job | None:
    """What files are for, by their first record: pairs or labels; None if it holds no preferences."""
    first = records(find(paths)[0])[:1]
    if not set(columns or {}) <= set(KNOWN):
        return None
    known = known_as(renamed(first, columns or {}, KNOWN)[0].fields)
    return known and known.job


def tie(a: Row, b: Row) -> bool:
    """The two answers differ in nothing but blanks around them."""
    return a.answer.strip() == b.answer.strip()


def some(places: Sequence[str], most: int = 3) -> str:
    """The first of the places, for a report."""
    return "; ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")


def _each(paths: Paths, columns: Mapping[str, str] | None, found: Found):
    """(job, name of its format, record) of every record, counted in `found`."""
    for path in find(paths):
        every = renamed(records(path), columns or {}, KNOWN)
        known = known_as(every[0].fields)
        if known is None:
            raise InputError(f"{every[0].where}: no preferences: found the fields {names(every[0].fields)}. {wanted()}")
        job, name, needed, used = known
        for record in every:
            if missing := [field for field in needed if field not in record.fields]:
                raise InputError(f"{record.where}: no field {missing[0]!r}, though the file starts with {', '.join(needed)}; found {names(record.fields)}")
            found.rows += 1
            found.formats[name] = found.formats.get(name, 0) + 1
            found.unused += [field for field in record.fields if field not in (*used, *found.unused)]
            yield job, name, record


def _pairs(name: str, record: Record, found: Found) -> list[Pair]:
    """The pairs of one record that are fit to learn from; the others are listed in `found`."""
    kept: list[Pair] = []
    for where, chosen, rejected, margin in pairs_in(name, record):
        if not (chosen.answer.strip() and rejected.answer.strip()):
            found.without_answer.append(where)
        elif tie(chosen, rejected):
            found.ties.append(where)
        else:
            kept.append(Pair(where, chosen, rejected, margin))
            found.against_scores += [where] if margin is not None and margin < 0 else []
    return kept


def _some_left(kept: list, found: Found) -> list:
    if not kept:
        raise InputError(f"none of the {found.rows} rows is left to learn from: {len(found.ties)} ties ({some(found.ties) or 'none'}), "
                         f"{len(found.without_answer)} with an empty answer ({some(found.without_answer) or 'none'})")
    return kept
