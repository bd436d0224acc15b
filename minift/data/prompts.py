"""Prompts to be answered, with whatever a reward function may want to know about them.

    {"prompt": "What is 1 + 1?", "answer": "2", "level": 1}   ->   Prompt(row, fields={"answer": "2", "level": 1})

A prompt is a text or a list of messages (`prompt`), `messages` or `conversations`, or an `instruction` with its `input`. A file for fine-tuning
will do: its answer is not shown to the model, and is kept in fields["answer"], unless a column of that name is there. All other columns
are kept under their names. Nothing is dropped: a prompt that stands twice is answered twice as often; `describe` counts them.
Proved in tests/data/test_prompts.py. Left out: plain texts, which ask nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minift.data.pydocs import Split, pairs
from minift.data.records import Record, find, names, records
from minift.data.sources import Message, Row, conversation, renamed, string
from minift.errors import InputError

ANSWERS = {"prompt": "completion", "messages": None, "conversations": None, "instruction": "output"}
"""Where a prompt may stand, most telling first, and the field with its answer; None: the conversation's last message."""
KNOWN = ("prompt", "messages", "conversations", "instruction", "input", "completion", "output", "answer")
"""Fields that --columns can name."""


@dataclass(frozen=True)
class Prompt:
    """What is asked (examples.prompt_ids makes its ids), and what else its record says."""

    where: str
    """File and line, for errors: "faq.jsonl, line 3"."""
    row: Row
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Two prompts with one question are duplicates, and must not straddle a split."""
        return self.row.question


def read_prompts(paths: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None) -> list[Prompt]:
    """Every prompt of every file, in order. columns: our field name -> the file's, e.g. {"prompt": "question"}.

    Raises InputError naming file and line for whatever asks nothing."""
    return [prompt for path in find(paths) for prompt in _prompts(renamed(records(path), columns or {}, KNOWN))]


def docstring_prompts(split: Split, packages: Sequence[str] = ("python", "numpy", "torch")) -> list[Prompt]:
    """The functions of a split's modules, to be documented (pydocs.py): what `--data pydocs` asks. The true summary is fields["answer"]."""
    row = lambda pair: Row("prompt/completion", pair.module, prompt=pair.prompt, completion=pair.summary)
    return [Prompt(pair.module, row(pair), {"answer": pair.summary}) for pair in pairs(split, packages)]


def describe(prompts: Sequence[Prompt]) -> list[str]:
    """What was read, in lines for people."""
    repeated = len(prompts) - len({prompt.question for prompt in prompts})
    columns = dict.fromkeys(name for prompt in prompts for name in prompt.fields)
    return [f"{len(prompts)} prompts", *([f"{repeated} of them ask what an earlier one asked"] if repeated else []),
            *([f"for the reward: {', '.join(columns)}"] if columns else [])]


def _prompts(found: Sequence[Record]) -> list[Prompt]:
    """Records of one file -> Prompts, by the fields of the first."""
    where, fields = found[0]
    source = next((name for name in ANSWERS if name in fields), None)
    if source is None:
        raise InputError(f"{where}: nothing to answer: found the fields {names(fields)}, wanted one of {', '.join(ANSWERS)}. "
                         'Rename a field in the file, or say which it is, e.g. --columns prompt question')
    for where, fields in found:
        if source not in fields:
            raise InputError(f"{where}: no field {source!r}, though the file starts with one; found {names(fields)}")
    return [_prompt(source, record) for record in found]


def _prompt(source: str, record: Record) -> Prompt:
    where, fields = record
    used = {source, ANSWERS[source], "input" if source == "instruction" else source}
    answer = _answer(fields, ANSWERS[source], where)
    if source == "prompt" and not isinstance(fields[source], list):
        row = Row("prompt/completion", where, prompt=string(fields[source], source, where), completion=answer)
        asked = row.prompt
    else:
        if source == "instruction":
            turns: tuple[Message, ...] = ({"role": "user", "content": string(fields[source], source, where)},)
            row = Row("alpaca", where, messages=turns, input=string(fields.get("input"), "input", where))
        else:
            turns = conversation(fields[source], where)
            row = Row("messages", where, messages=turns)
        answer = answer or row.answer
        asked = "".join(turn["content"] for turn in (turns[:-1] if turns[-1]["role"] == "assistant" else turns))
        if answer and not row.answer:
            row = replace(row, messages=(*turns, {"role": "assistant", "content": answer}))
    if not asked.strip():
        raise InputError(f"{where}: the prompt is empty: give it a question, or remove the row")
    others = {name: value for name, value in fields.items() if name not in used}
    return Prompt(where, row, {"answer": answer, **others} if answer else others)


def _answer(fields: Mapping[str, Any], name: str | None, where: str) -> str:
    """The field of that name: a text, or messages of which the last is the answer; "" without one."""
    value = fields.get(name)
    return conversation(value, where)[-1]["content"] if isinstance(value, list) else string(value, name, where)
