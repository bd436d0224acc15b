"""From a record of a preference file to Rows that share their question: the formats, recognised by the fields of a file's first record.

    prompt, chosen, rejected           texts; or the prompt as text or messages, and the answers as messages (trl)
    prompt, ranking                    a list of answers, best first: every pair of them
    instruction, chosen, rejected      Alpaca, with `input`
    conversations, chosen, rejected    ShareGPT or LLaMA-Factory: messages, and each answer a message; `messages` may stand for `conversations`
    chosen, rejected                   whole conversations that part at the last message, or whole texts: what they share is the prompt
    ..., label                         one answer and a label, true or false: prompt and completion, messages, conversations, or Alpaca

Besides: `margin`, or `score_chosen` and `score_rejected`, whose difference it is; `system`, where messages are made of the row.
Texts simply follow each other, as in sources.py; to have a chat template around them, call the prompt an instruction (--columns instruction prompt).

Where do two whole texts part? Texts of Anthropic's kind ("\\n\\nHuman: ...\\n\\nAssistant: ...") behind the last "\\n\\nAssistant:" that they
share. Others at the last break between words that they share, so that no word is cut in two: a line break stays with the prompt, a space
goes with the answer. If the answers begin alike, these words count as prompt, which costs nothing: their log-probabilities are equal.
Proved in tests/data/test_preferences.py. Left out: conversations that part before the last message, tools, images."""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

from minift.data.records import Record
from minift.data.sources import Message, Row, conversation, string
from minift.errors import InputError

BOTH = ("chosen", "rejected")
PAIRS = {
    "ranking": ("prompt", "ranking"),
    "prompt, chosen, rejected": ("prompt", *BOTH),
    "alpaca": ("instruction", *BOTH),
    "sharegpt": ("conversations", *BOTH),
    "messages": ("messages", *BOTH),
    "whole conversations": BOTH,
}
LABELS = {
    "labelled messages": ("messages", "label"),
    "labelled sharegpt": ("conversations", "label"),
    "labelled alpaca": ("instruction", "output", "label"),
    "labelled prompt/completion": ("prompt", "completion", "label"),
}
"""The fields that each format needs; the first format whose fields are all there is taken, pairs before labels."""

OPTIONAL = {"alpaca": ("input", "system"), "sharegpt": ("system",), "messages": ("system",)}
MARGINS = ("margin", "score_chosen", "score_rejected")
ASSISTANT = re.compile("\n\nAssistant:")
BREAK = re.compile(r"(?<=\n)|(?=[^\S\n])(?<!\s)")
"""Between words: behind a line break, before the first of other blanks."""

Said = str | tuple[Message, ...]


class Format(NamedTuple):
    job: Literal["pairs", "labels"]
    name: str
    needed: tuple[str, ...]
    used: tuple[str, ...]


class Ranked(NamedTuple):
    """Two answers to one question, perhaps equal or empty."""

    where: str
    chosen: Row
    rejected: Row
    margin: float | None


def known_as(fields: Collection[str]) -> Format | None:
    """The format that has these fields."""
    for job, formats in (("pairs", PAIRS), ("labels", LABELS)):
        for name, needed in formats.items():
            if all(field in fields for field in needed):
                more = OPTIONAL.get(name.removeprefix("labelled "), ())
                return Format(job, name, needed, (*needed, *more, *(MARGINS if job == "pairs" and name != "ranking" else ())))
    return None


def wanted() -> str:
    """The formats there are, for an error."""
    known = "".join(f"\n  {', '.join(needed)}" for needed in (*PAIRS.values(), *LABELS.values()))
    return f"Wanted those of one format:{known}\nRename them in the file, or say which is which, e.g. --columns prompt question chosen good"


def pairs_in(name: str, record: Record) -> Iterator[Ranked]:
    """The pairs of a record in a format of PAIRS: one, or all those of a ranking."""
    where, fields = record
    if name == "ranking":
        answers = fields["ranking"]
        if not isinstance(answers, list) or len(answers) < 2:
            raise InputError(f"{where}: the ranking is {answers!r:.40}; wanted a list of two answers or more, the best first")
        said = [(k, _said(answer, "ranking", f"{where}, answer {k}")) for k, answer in enumerate(answers, 1)]
        for (i, better), (k, worse) in combinations(said, 2):
            place = f"{where}, answers {i} and {k}"
            yield Ranked(place, *_rows(_question(name, record), better, worse, place), margin=None)
        return
    chosen, rejected = (_said(fields[side], side, where) for side in BOTH)
    question = None if name == "whole conversations" else _question(name, record)
    yield Ranked(where, *_rows(question, chosen, rejected, where), _margin(record))


def labelled_row(name: str, record: Record) -> tuple[Row, bool]:
    """The answered question of a record in a format of LABELS, and whether the answer is desirable."""
    where, fields = record
    question = _question(name, record)
    if name in ("labelled messages", "labelled sharegpt"):
        return question, _label(record)
    answer = fields["output" if name == "labelled alpaca" else "completion"]
    row, _ = _rows(question, *[_said(answer, "completion", where)] * 2, where)
    return row, _label(record)


def _question(name: str, record: Record) -> Row:
    """All that stands before the answer, as a row without one; of labelled messages the answer too."""
    where, fields = record
    system = string(fields.get("system"), "system", where) if "system" in OPTIONAL.get(name.removeprefix("labelled "), ()) else ""
    opening: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
    if "alpaca" in name:
        asked: Message = {"role": "user", "content": string(fields["instruction"], "instruction", where)}
        return Row("alpaca", where, messages=(*opening, asked), input=string(fields.get("input"), "input", where))
    source = "conversations" if "sharegpt" in name else "messages" if "messages" in name else "prompt"
    if source == "prompt" and not isinstance(fields["prompt"], list):
        return Row("prompt/completion", where, prompt=string(fields["prompt"], "prompt", where))
    return Row("messages", where, messages=(*opening, *conversation(fields[source], where)))


def _said(value: Any, name: str, where: str) -> Said:
    """What stands where an answer is wanted: a text, or messages of which the last is the assistant's."""
    if not isinstance(value, (list, dict)):
        return string(value, name, where)
    turns = conversation([value] if isinstance(value, dict) else value, f"{where}, {name}")
    if turns[-1]["role"] != "assistant":
        raise InputError(f"{where}, {name}: the last message is the {turns[-1]['role']}'s; wanted the assistant's answer there")
    return turns


def _rows(question: Row | None, chosen: Said, rejected: Said, where: str) -> tuple[Row, Row]:
    """The question with either answer. Messages in the place of an answer may repeat the question, or be all that says it (None)."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise InputError(f"{where}: one of the answers is a text and the other a list of messages; wanted the same for both")
    if isinstance(chosen, str):
        if question is None:
            at = _parting(chosen, rejected, where)
            question, chosen, rejected = Row("prompt/completion", where, prompt=chosen[:at]), chosen[at:], rejected[at:]
        if not question.messages:
            return replace(question, completion=chosen), replace(question, completion=rejected)
        chosen, rejected = (({"role": "assistant", "content": text},) for text in (chosen, rejected))
    asked = _asked(chosen, rejected, where)
    if question is None:
        if not asked:
            raise InputError(f"{where}: chosen and rejected are answers without a question: put what was asked before each, or into a field prompt")
        question = Row("messages", where, messages=asked)
    elif not question.messages:                                             # a text was asked, messages answer
        if asked and not any(turn["role"] == "user" and turn["content"].strip() == question.prompt.strip() for turn in asked):
            raise InputError(f"{where}: the prompt {question.prompt!r:.60} is not what the messages of the answers ask, {asked[-1]['content']!r:.60}: "
                             "remove one of the two")
        question = Row("messages", where, messages=asked or ({"role": "user", "content": question.prompt},))
    elif asked and asked != question.messages:
        raise InputError(f"{where}: the answers repeat a conversation of {len(asked)} messages that is not the prompt: remove one of the two")
    if question.messages[-1]["role"] == "assistant":
        raise InputError(f"{where}: the prompt ends with a turn of the assistant, whose answer is to follow: end it with the user's")
    return tuple(replace(question, messages=(*question.messages, said[-1])) for said in (chosen, rejected))


def _asked(chosen: tuple[Message, ...], rejected: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """What two conversations share, which must be all but the last message of each."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    asked = chosen[:-1]
    if asked != rejected[:-1]:
        raise InputError(
            f"{where}: no shared prompt: chosen has {len(chosen)} messages and rejected {len(rejected)}, and only the first {shared} are the same in both; "
            "they may differ in the last message only. Cut both behind the first answer that differs, or leave the pair out")
    return asked


def _parting(chosen: str, rejected: str, where: str) -> int:
    """How many characters of two whole texts are their prompt."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    marked = bool(ASSISTANT.search(chosen) or ASSISTANT.search(rejected))
    ends = [match.end() for match in (ASSISTANT if marked else BREAK).finditer(chosen) if match.end() <= shared]
    if not marked:                                                          # of words there must be one left to answer with
        ends = [end for end in ends if chosen[:end].strip() and chosen[end:].strip() and rejected[end:].strip()]
    if not ends:
        what = "no \"\\n\\nAssistant:\" up to which they are the same" if marked else "which have no whole word at their start in common"
        raise InputError(f"{where}: no shared prompt: found {chosen[:40]!r} and {rejected[:40]!r}, {what}. A pair is two answers to one question: "
                         "begin both with it, or put it into a field prompt")
    return ends[-1]


def _margin(record: Record) -> float | None:
    where, fields = record
    given = {name: _number(fields[name], name, where) for name in MARGINS if fields.get(name) not in (None, "")}
    if "margin" in given or not given:
        return given.get("margin")
    if len(given) < 2:
        raise InputError(f"{where}: there is a {[*given][0]}, but not the other answer's score: give both score_chosen and score_rejected, or neither")
    return given["score_chosen"] - given["score_rejected"]


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: the field {name!r} is {value!r:.40}; wanted a finite number")
    return number


def _label(record: Record) -> bool:
    where, fields = record
    value = fields["label"]
    known = {"true": True, "1": True, "false": False, "0": False}
    if (text := str(value).strip().lower()) not in known:
        raise InputError(f"{where}: the label is {value!r:.40}; wanted true (1) for a desirable answer or false (0) for an undesirable one")
    return known[text]
