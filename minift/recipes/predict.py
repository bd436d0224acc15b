"""Ask a classifier: a line of JSON for each text, to a file or to the terminal.

    minift predict runs/intents --data mails.csv --out said.jsonl
    echo "Where is my card?" | minift predict runs/intents

If the file has answers too, it is told how many were right. Proved in tests/recipes/test_predict.py."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from minift.classify.classifier import Classifier, load
from minift.data.classified import Classified, read_classified, targets, unseen
from minift.errors import InputError
from minift.files import write_text
from minift.recipes.classify_report import measured, summary
from minift.train.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """Classify texts."""

    run: tyro.conf.Positional[Path]
    """A run of `minift classify`, its classifier, model or adapter folder, or a ...ForSequenceClassification checkpoint."""
    data: tuple[str, ...] = ()
    """Files or globs with text, or sentence1 and sentence2; none: a text on each line of the standard input, two of a pair with a tab between."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns text question."""
    out: Path | None = None
    """A .jsonl file; none: the terminal."""
    top: int = 1
    """One label of many: how many of the likeliest to tell, with their probabilities."""
    base: str | None = None
    """Where the model that the classifier was trained on lies now, if it was moved."""
    precision: Precision | None = None
    """The arithmetic of the model; none: that of its training, where auto is bf16 on machines that are faster with it."""
    overwrite: bool = False
    """Replace the file --out."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""


def run(config: Config, quiet: bool = False) -> dict[str, float]:
    """The scores, if the rows have answers; else nothing."""
    if config.top < 1:
        raise InputError(f"--top is {config.top}: wanted 1 or more")
    if config.out is not None and config.out.exists() and not config.overwrite:
        raise InputError(f"{config.out} is there already: name another file, or pass --overwrite")
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    rows, problem = _rows(config)
    classifier = load(config.run, config.device, config.base)
    classifier.precision = config.precision or classifier.precision
    odd = next((row for row in rows if len(row.texts) not in ((1, 2) if not classifier.sides else (classifier.sides,))), None)
    if odd is not None:
        wanted = "one text in each row" if classifier.sides == 1 else "sentence1 and sentence2, or on the standard input a tab between the two"
        raise InputError(f"{config.run} reads {classifier.sides} texts of a row, and {odd.where} has {len(odd.texts)}: give {wanted}")
    scores = classifier.scores([row.texts for row in rows])
    lines = [json.dumps(_line(row, classifier.said(own), config.top), ensure_ascii=False) for row, own in zip(rows, scores)]
    if config.out is None:
        print("\n".join(lines))
    else:
        write_text(config.out, "\n".join(lines) + "\n")
    found = _measured(classifier, rows, problem, scores)
    told = f"{len(rows)} rows" + (f"; {summary(problem, found)}" if found else "") + (f"; written: {config.out}" if config.out else "")
    if not quiet and (config.out or found):
        print(told, file=sys.stderr)
    return found


def _rows(config: Config) -> tuple[list[Classified], str | None]:
    if config.data:
        rows, found = read_classified(config.data, columns=config.columns, answers=False)
        if found.empty:
            raise InputError(f"{found.empty[0]}: the text is empty: take the row out, so that every line of the answer has its row")
        return rows, found.problem
    lines = sys.stdin.read().rstrip().split("\n")
    rows = [Classified(f"line {number}", tuple(line.split("\t")), None) for number, line in enumerate(lines, 1)]
    if any(lines) and (blank := next((row for row in rows if not row.key.strip()), None)) is not None:
        raise InputError(f"{blank.where} is empty: take it out, so that every line of the answer has its line")
    if not any(lines):
        raise InputError("no text: name a file with --data, or pipe one text per line into the standard input")
    return rows, None


def _line(row: Classified, said: dict[str, Any], top: int) -> dict[str, Any]:
    texts = {"text": row.texts[0]} if len(row.texts) == 1 else {"sentence1": row.texts[0], "sentence2": row.texts[1]}
    short = lambda value: round(value, 6)
    each = said.pop("probabilities", {})
    if "label" in said:
        best = sorted(each, key=each.get, reverse=True)[:top]
        more = {"top": {name: short(each[name]) for name in best}} if top > 1 else {}
        return {**texts, "label": said["label"], "probability": short(said["probability"]), **more}
    if "labels" in said:
        return {**texts, **said, "probabilities": {name: short(value) for name, value in each.items()}}
    return {**texts, "score": short(said["score"])}


def _measured(classifier: Classifier, rows: list[Classified], problem: str | None, scores) -> dict[str, float]:
    """Scores of the rows' own answers, where they have some of the classifier's kind."""
    if problem is None:
        return {}
    if problem != classifier.problem:
        print(f"the rows' answers are {problem}, the classifier's {classifier.problem}: they are not compared", file=sys.stderr)
        return {}
    known = [Classified("", ("",), name if problem == "single" else (name,)) for name in classifier.labels]
    if problem != "regression" and (strange := unseen(rows, known)):
        name, where = next(iter(strange.items()))
        print(f"{len(strange)} labels of the rows are none of the classifier's, {name!r} ({where}) for one: answers are not compared", file=sys.stderr)
        return {}
    return measured(problem, scores, targets(rows, classifier.labels), classifier.labels)
