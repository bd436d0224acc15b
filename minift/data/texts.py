"""Texts to be compared: what a model of embeddings learns from, in five shapes, recognised by the fields of a file's first record.

    pairs     anchor, positive [, negative or negatives: one or a list]      two texts that belong together, and some that do not
    scored    sentence1, sentence2, score                                    two texts, and how alike somebody found them
    nli       sentence1, sentence2, label                                    two texts, and how the one relates to the other
    labelled  text, label                                                    texts of one label belong together
    texts     text                                                           nothing but texts (SimCSE)

`pydocs` in place of a file: the summary line of a function's docstring, and its code without the docstring, from this machine's Python; whole modules
are held out (pydocs.py). Nothing is dropped unsaid: rows with an empty text, and pairs whose two texts are one, are counted and listed.
Proved in tests/data/test_texts.py. Left out: images, scores of more than two texts."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minift.data.preferences import some
from minift.data.pydocs import Split, module_files, split_of, summary_line
from minift.data.records import Record, find, names, records
from minift.data.sources import renamed
from minift.errors import InputError

Shape = Literal["pairs", "scored", "nli", "labelled", "texts"]
SHAPES: dict[Shape, tuple[str, ...]] = {
    "pairs": ("anchor", "positive"), "scored": ("sentence1", "sentence2", "score"),
    "nli": ("sentence1", "sentence2", "label"), "labelled": ("text", "label"), "texts": ("text",),
}    # fmt: skip
KNOWN = ("anchor", "positive", "negative", "negatives", "sentence1", "sentence2", "score", "text", "label")
CODE = 1200
"""Characters of a function that are read."""


@dataclass(frozen=True)
class Texts:
    """One row: its texts in the order of its fields, negatives last, and what is said of them."""

    where: str
    """File and line, for errors: "faq.jsonl, line 3"."""
    texts: tuple[str, ...]
    score: float | None = None
    label: str | None = None

    @property
    def key(self) -> str:
        """What must not stand on both sides of a split: the first text (a label's texts do, of course)."""
        return self.texts[0]


@dataclass
class Found:
    """What the files held."""

    shape: Shape = "pairs"
    rows: int = 0
    empty: list[str] = field(default_factory=list)
    """File and line of each row left out because a text is empty."""
    same: list[str] = field(default_factory=list)
    """... because a pair's two texts are one."""

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{self.rows} rows ({self.shape})"]
        for places, words in ((self.empty, "have an empty text and are left out"), (self.same, "are a text and the same text again, and are left out")):
            said += [f"{len(places)} {words}: {some(places)}"] if places else []
        return said


def read_texts(paths: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None) -> tuple[list[Texts], Found]:
    """Every row of every file, in order. Raises InputError naming file and line for fields that are missing, a score that is no number, a negative
    that is the positive, files of two shapes, and if no row is left."""
    found, rows, shape = Found(), [], None
    for path in find(paths):
        every = renamed(records(path), columns or {}, KNOWN)
        own = _shape(every[0])
        if shape not in (None, own):
            raise InputError(f"{every[0].where}: {own}, and the files before held {shape}: give files of one shape")
        shape = found.shape = own
        for record in every:
            found.rows += 1
            rows += _row(shape, record, found)
    if not rows:
        raise InputError(f"none of the {found.rows} rows is left: {len(found.empty)} with an empty text, {len(found.same)} of one text twice")
    return rows, found


def docstring_pairs(split: Split, packages: Sequence[str] = ("python",)) -> list[Texts]:
    """(summary line, code without its docstring) of every documented function of the split's modules with at least three lines of code."""
    pairs = []
    for package in packages:
        for module, path in module_files(package):
            if split_of(module) == split:
                pairs += _functions(module, path)
    return pairs


def in_range(rows: Sequence[Texts], low: float, high: float) -> list[float]:
    """Scores from low..high as numbers from 0 to 1; raises InputError naming the first row outside."""
    if not low < high:
        raise InputError(f"the range of scores is {low} to {high}: wanted two numbers, the smaller one first")
    for row in rows:
        if not low <= row.score <= high:
            raise InputError(f"{row.where}: the score is {row.score:g}, outside {low:g} to {high:g}: say what the scores reach from and to with --score-range")
    return [(row.score - low) / (high - low) for row in rows]


def _shape(record: Record) -> Shape:
    for shape, needed in SHAPES.items():
        if set(needed) <= record.fields.keys():
            return shape
    wanted = "; ".join(f"{shape}: {', '.join(needed)}" for shape, needed in SHAPES.items())
    raise InputError(f"{record.where}: no texts to compare: found the fields {names(record.fields)}. Wanted: {wanted}. --columns says which field is which")


def _row(shape: Shape, record: Record, found: Found) -> list[Texts]:
    fields = record.fields
    if missing := [name for name in SHAPES[shape] if name not in fields]:
        raise InputError(f"{record.where}: no field {missing[0]!r}, though the file starts with {', '.join(SHAPES[shape])}; found {names(fields)}")
    texts = [fields[name] for name in SHAPES[shape] if name not in ("score", "label")]
    if shape == "pairs":
        more = fields.get("negatives", fields.get("negative"))
        texts += [] if more is None or more == "" else more if isinstance(more, list) else [more]
    if bad := next((text for text in texts if not isinstance(text, str)), None):
        raise InputError(f"{record.where}: {bad!r:.60} is a {type(bad).__name__}: every text has to be a string")
    if not all(text.strip() for text in texts):
        found.empty.append(record.where)
        return []
    if shape == "pairs" and texts[0].strip() == texts[1].strip():
        found.same.append(record.where)
        return []
    if shape == "pairs" and texts[1].strip() in (text.strip() for text in texts[2:]):
        raise InputError(f"{record.where}: the negative is the positive, {texts[1].strip()!r:.60}: take the row out")
    score = _number(record, fields["score"]) if shape == "scored" else None
    label = str(fields["label"]).strip() if shape in ("labelled", "nli") else None
    if label == "":
        raise InputError(f"{record.where}: the label is empty")
    return [Texts(record.where, tuple(texts), score, label)]


def _number(record: Record, value: object) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{record.where}: the score is {value!r}: wanted a number")
    return number


def _functions(module: str, path: Path) -> list[Texts]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):                      # Python 2's tests of Python 2, and the like: pydocs.py skips them too
        return []
    lines, found = source.splitlines(), []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2 or not (text := ast.get_docstring(node)):
            continue
        summary, documented = summary_line(text), node.body[0]
        code = lines[node.lineno - 1 : documented.lineno - 1] + lines[documented.end_lineno : node.end_lineno]
        code = "\n".join(line[node.col_offset :] for line in code if line.strip())[:CODE]
        if summary and code.count("\n") >= 2:
            found.append(Texts(f"{module}, line {node.lineno}", (summary, code)))
    return found
