"""Rows of texts as batches: tokens, who is the same text as whom, no text twice in a batch where that would be a false negative.

Proved in tests/recipes/test_embed.py."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minift.data.split import split_rows
from minift.data.texts import Found, Shape, Texts, docstring_pairs, in_range, read_texts
from minift.errors import InputError
from minift.search import Index


@dataclass(frozen=True)
class Row(Texts):
    """A row that knows the shape of its file."""

    shape: Shape = "pairs"


@dataclass
class EmbedBatch:
    """Columns of token ids, (B texts each; negatives: any number), what is said of the rows, and which texts are the same."""

    columns: list[list[list[int]]]
    values: Tensor | None
    """(B,): scores, or labels as whole numbers."""
    ids: tuple[Tensor, ...]
    """Of each column: equal numbers for equal texts."""
    targets: int
    """B."""
    taught: tuple[Tensor, ...] = ()
    """Of each column: the teacher's vectors, (texts, C)."""

    def to(self, device: torch.device | str) -> "EmbedBatch":
        move = lambda x: None if x is None else x.to(device)
        return EmbedBatch(self.columns, move(self.values), tuple(map(move, self.ids)), self.targets, tuple(map(move, self.taught)))


def read_rows(data, eval_data, held_out: float, columns) -> tuple[list[Row], list[Row], list[str]]:
    """(to train on, held out, what was found). pydocs is split by module, other rows by their first text; labelled ones too."""
    if tuple(data) == ("pydocs",):
        train, valid = docstring_pairs("train"), docstring_pairs("valid")
        return _as(train, "pairs"), _as(valid, "pairs"), [f"{len(train)} docstrings and their code, and {len(valid)} of other modules"]
    every, found = read_texts(data, columns=columns)
    if eval_data:
        valid, other = read_texts(eval_data, columns=columns)
        if other.shape != found.shape:
            raise InputError(f"--eval-data holds {other.shape} rows, --data {found.shape}: give files of one shape")
        return _as(every, found.shape), _as(valid, found.shape), [*found.lines(), *other.lines()]
    train, valid = split_rows(every, fraction=held_out, key=lambda row: row.key)
    return _as(train, found.shape), _as(valid, found.shape), found.lines()


class Rows:
    """Rows as tokens. encode(texts, side) -> token ids; the sides are "query" and, of pairs, "document". classes: the labels there are, where a
    classifier learns them. taught, once there is a teacher: its vector of each text, by side."""

    def __init__(self, rows: Sequence[Row], encode: Callable[..., list[list[int]]], config, classes: Sequence[str] = ()):
        self.rows, self.shape, self.loss = list(rows), rows[0].shape, config.loss
        self.compares = self.shape == "labelled" and self.loss != "distill"
        self.taught: dict[str, dict[str, Tensor]] = {}
        if self.compares or self.loss == "nli" and len(classes) < 2:
            _enough_labels(self.rows)
        texts: dict[str, list[str]] = {"query": [], "document": []}
        for row in rows:
            for column, text in enumerate(row.texts):
                texts[self.side(column)].append(text)
        self.ids = {side: dict(zip(own, encode(own, side))) for side, own in texts.items()}
        self.number = {text: i for i, text in enumerate(dict.fromkeys(text.strip() for row in rows for text in row.texts))}
        self.values = self._values(config, classes)

    def side(self, column: int) -> str:
        return "document" if self.shape == "pairs" and column else "query"

    def _values(self, config, classes: Sequence[str]) -> list[float] | list[int] | None:
        if self.loss == "distill":
            return None
        if self.shape == "nli":
            if new := next((row for row in self.rows if row.label not in classes), None):
                raise InputError(f"{new.where}: the label {new.label!r} is in no row to train on; there are {', '.join(map(repr, classes))}: mend it, or train on it too")
            return [classes.index(row.label) for row in self.rows]
        if self.shape == "scored":
            scaled = in_range(self.rows, *config.score_range)
            if config.loss in ("contrastive", "online") and not set(scaled) <= {0.0, 1.0}:
                raise InputError(f"--loss {config.loss} wants scores of 0 (apart) and 1 (alike): {self.rows[0].where} and others have more; take cosent")
            return scaled
        if self.shape == "labelled":
            known = {label: i for i, label in enumerate(sorted({row.label for row in self.rows}))}
            return [known[row.label] for row in self.rows]
        return None

    def lines(self, use: str) -> list[str]:
        lengths = sorted(len(ids) for side in self.ids.values() for ids in side.values())
        return [f"{len(self.rows)} rows {use}, {len(self.number)} different texts of {lengths[len(lengths) // 2]} tokens in the middle, {lengths[-1]} at most"]

    def epoch(self, number: int, size: int, seed: int) -> list[EmbedBatch]:
        """The batches of epoch `number`, as many as the first has, by which a run is planned. How many there are depends on the order, by what does not fit
        together: an epoch with more leaves its last ones out, one with fewer goes on with the first ones of another order."""
        wanted, other = len(self._together(size, seed)), seed + number
        found = self._together(size, other)
        while len(found) < wanted:
            other += 1_000_003
            found += self._together(size, other)
        return [self.batch(some) for some in found[:wanted]]

    def batches(self, size: int, seed: int) -> list[EmbedBatch]:
        """Every row once, in an order drawn from `seed`; of pairs no text is in a batch twice. What is left over at the end and smaller than a row and
        its negative is left out of this epoch."""
        return [self.batch(some) for some in self._together(size, seed)]

    def _together(self, size: int, seed: int) -> list[list[int]]:
        """Which rows each of these batches has."""
        dice = random.Random(seed)
        order = dice.sample(range(len(self.rows)), len(self.rows))
        if self.compares:
            order = _mates_together(order, self.values, dice)
        batches, waiting = [], order
        while waiting:
            some, later, there = [], [], set()
            for place, i in enumerate(waiting):
                texts = {self.number[text.strip()] for text in self.rows[i].texts} if self.shape in ("pairs", "texts") else set()
                if len(some) == size:
                    later += waiting[place:]
                    break
                if there & texts:
                    later.append(i)
                    continue
                some.append(i)
                there |= texts
            waiting = later
            if len(some) > 1:
                batches.append(some)
        return [some for some in batches if not self.compares or _can_compare([self.values[i] for i in some])]

    def batch(self, some: Sequence[int]) -> EmbedBatch:
        rows = [self.rows[i] for i in some]
        number = lambda texts: torch.tensor([self.number[text.strip()] for text in texts])
        texts = [[row.texts[0] for row in rows]]
        if self.shape in ("pairs", "scored", "nli"):
            texts.append([row.texts[1] for row in rows])
        if self.shape == "pairs" and any(len(row.texts) > 2 for row in rows):
            texts.append([text for row in rows for text in row.texts[2:]])
        if self.loss == "simcse":
            texts = texts * 2
        columns = [[self.ids[self.side(i)][text] for text in column] for i, column in enumerate(texts)]
        values = None if self.values is None else torch.tensor([self.values[i] for i in some])
        taught = tuple(torch.stack([self.taught[self.side(i)][text] for text in column]) for i, column in enumerate(texts)) if self.taught else ()
        return EmbedBatch(columns, values, tuple(map(number, texts)), len(rows), taught)


def mined(rows: Sequence[Row], encode: Callable[..., Tensor], count: int, margin: float) -> tuple[list[Row], str]:
    """The rows with up to `count` more negatives each: the nearest positives of other rows whose cosine lies `margin` below the own positive's."""
    documents = list(dict.fromkeys(row.texts[1] for row in rows))
    place = {text: i for i, text in enumerate(documents)}
    right: dict[str, set[int]] = {}
    for row in rows:
        right.setdefault(row.texts[0], set()).add(place[row.texts[1]])
    anchors = list(right)
    vectors, asked = encode(documents, "document"), encode(anchors, "query")
    scores, found = Index(vectors, "this run's").search(asked, min(len(documents), count + 50))
    own = {anchor: (asked[i] @ vectors[list(right[anchor])].T).max().item() for i, anchor in enumerate(anchors)}
    nearest = {
        anchor: [documents[j] for score, j in zip(scores[i], found[i]) if j not in right[anchor] and score <= own[anchor] - margin and documents[j] != anchor][:count]
        for i, anchor in enumerate(anchors)
    }    # fmt: skip
    more = [replace(row, texts=(*row.texts, *(text for text in nearest[row.texts[0]] if text not in row.texts))) for row in rows]
    added = sum(len(row.texts) - len(old.texts) for row, old in zip(more, rows))
    return more, f"{added} hard negatives found for {len(rows)} rows, each at least {margin:g} further than the positive"


def _as(rows: Sequence[Texts], shape: Shape) -> list[Row]:
    return [Row(row.where, row.texts, row.score, row.label, shape) for row in rows]


def _enough_labels(rows: Sequence[Row]) -> None:
    labels = [row.label for row in rows]
    if len(set(labels)) < 2:
        raise InputError(f"all {len(rows)} rows have the label {labels[0]!r}: there is nothing to tell apart")


def _mates_together(order: list[int], labels: Sequence[int], dice: random.Random) -> list[int]:
    """The order with rows of one label in pairs, so that a batch has two of a label wherever there are two."""
    waiting, pairs = {}, []
    for i in order:
        if labels[i] in waiting:
            pairs.append((waiting.pop(labels[i]), i))
        else:
            waiting[labels[i]] = i
    groups = [*pairs, *((i,) for i in waiting.values())]
    return [i for group in dice.sample(groups, len(groups)) for i in group]


def _can_compare(labels: Sequence[int]) -> bool:
    """Two of one label, and one of another."""
    return 1 < len(set(labels)) < len(labels)
