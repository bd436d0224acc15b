"""From records to Rows: five formats of training data, recognised by the fields of a file's first record.

    sharegpt            conversations: [{from: human, value: ...}, {from: gpt, value: ...}]
    messages            messages: [{role: user, content: ...}, {role: assistant, content: ...}]
    alpaca              instruction, output; input is optional
    prompt/completion   prompt, completion: no template, the two texts simply follow each other
    text                text: all of it is learned
Every later record of the file must have the same fields. Nothing is dropped here, not even a row without an answer:
examples.py leaves those out, and lists them.
Proved in tests/data/test_sources.py. Left out: tool calls, images, several answers to one question."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from minift.data.records import Documents, Record, find, names, records
from minift.errors import InputError

Format = Literal["sharegpt", "messages", "alpaca", "prompt/completion", "text"]

FIELDS: dict[Format, tuple[str, ...]] = {
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt/completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The fields a format needs, most telling first."""

OPTIONAL = {"alpaca": ("input",)}
OTHER_JOBS = {
    "preference learning": {"chosen", "rejected"},
    "classification or preference learning": {"label", "labels", "category", "class"},
}
"""Fields that make a file the input of another job. Reading it anyway would teach rejected answers, or forget the labels."""

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One row of data: either `messages`, or `prompt` and `completion`; a text is a completion of nothing."""

    format: Format
    where: str
    """File and line, for errors: "faq.jsonl, line 3"."""
    prompt: str = ""
    completion: str = ""
    messages: tuple[Message, ...] = ()
    """Roles: system, user, assistant."""
    input: str = ""
    """alpaca only: what the instruction is about. Templates differ in how they join the two."""
    unused: tuple[str, ...] = ()
    """Fields of the record that its format does not know."""

    @property
    def answer(self) -> str:
        """What is to be learned: the completion, or the last message if it is the assistant's; "" if there is none."""
        if not self.messages:
            return self.completion
        return self.messages[-1]["content"] if self.messages[-1]["role"] == "assistant" else ""

    @property
    def question(self) -> str:
        """All that stands before the answer, as one string; the text itself for a text. Two rows with one question are duplicates."""
        if self.format == "text":
            return self.completion
        asked = self.messages[:-1] if self.messages and self.messages[-1]["role"] == "assistant" else self.messages
        return "\x1f".join([*(f"{m['role']}\x1e{m['content']}" for m in asked), self.input, self.prompt])

    def with_answer(self, answer: str) -> "Row":
        """The same row with another answer; it must have one."""
        if not self.messages:
            return replace(self, completion=answer)
        return replace(self, messages=(*self.messages[:-1], {"role": "assistant", "content": answer}))


def read(
    paths: str | Path | Sequence[str | Path], *, columns: Mapping[str, str] | None = None, documents: Documents = "auto"
) -> list[Row]:
    """Every row of every file, in order. `paths`: a file, a glob such as "data/*.jsonl", or several of them.

    columns: our field name -> the file's, e.g. {"prompt": "question", "completion": "answer"}.
    documents: where a .txt or .md file is cut, see records.records.
    Raises InputError naming file and line for whatever cannot be read."""
    return [row for path in find(paths) for row in _rows(records(path, documents), columns or {})]


def read_texts(paths: str | Path | Sequence[str | Path], *, documents: Documents = "auto") -> list[str]:
    """The documents of plain-text files (or of the field `text`), for pre-training. InputError for files in another format."""
    rows = read(paths, documents=documents)
    for row in rows:
        if row.format != "text":
            raise InputError(f"{row.where}: {row.format} data, plain text was wanted: a .txt or .md file, or records with a field 'text'")
    return [row.completion for row in rows]


def _rows(found: list[Record], columns: Mapping[str, str]) -> list[Row]:
    """Records of one file -> Rows, by the format of the first."""
    found = renamed(found, columns, {name for needed in (*FIELDS.values(), *OPTIONAL.values()) for name in needed})
    chosen = _format(found[0])
    for where, fields in found:
        if missing := [name for name in FIELDS[chosen] if name not in fields]:
            raise InputError(f"{where}: no field {missing[0]!r}, though the file starts in {chosen} format; found {names(fields)}")
    return [_row(chosen, record) for record in found]


def renamed(found: Sequence[Record], columns: Mapping[str, str], known: Collection[str]) -> list[Record]:
    """The records with our names for the file's columns; a column that is known by one of our names, but was not meant, is left out."""
    if unknown := [ours for ours in columns if ours not in known]:
        raise InputError(f"columns: no format has a field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    theirs = {name: ours for ours, name in columns.items()}
    result = []
    for where, fields in found:
        if missing := [name for name in theirs if name not in fields]:
            raise InputError(f"{where}: there is no column {missing[0]!r}; found {names(fields)}")
        result.append(Record(where, {theirs.get(k, k): v for k, v in fields.items() if k in theirs or k not in columns}))
    return result


def _format(record: Record) -> Format:
    where, fields = record
    for chosen, needed in FIELDS.items():
        if all(name in fields for name in needed):
            for job, marks in OTHER_JOBS.items():
                if found := [name for name in fields if name.lower() in marks]:
                    raise InputError(_other_job(where, job, found) + ", or remove the field if every row is to be learned as it stands")
            return chosen
    if {"chosen", "rejected"} <= fields.keys():
        raise InputError(_other_job(where, "preference learning", ["chosen", "rejected"]))
    known = "".join(f"\n  {name}: {', '.join(needed)}" for name, needed in FIELDS.items())
    raise InputError(
        f"{where}: no known format has these fields: {names(fields)}. Wanted those of one format:{known}\n"
        'Rename the fields in the file, or say which is which, e.g. --columns prompt question completion answer'
    )


def _other_job(where: str, job: str, found: Sequence[str]) -> str:
    return (f"{where}: this is data for {job} (field {', '.join(found)}), which plain fine-tuning would ignore: "
            "`minift dpo` and `minift reward` take chosen and rejected answers, `minift dpo --loss kto` labelled ones")


def _row(chosen: Format, record: Record) -> Row:
    where, fields = record
    used = (*FIELDS[chosen], *OPTIONAL.get(chosen, ()))
    unused = tuple(name for name in fields if name not in used)
    text = {name: string(fields[name], name, where) for name in used if name in fields and chosen not in ("sharegpt", "messages")}
    if chosen == "text":
        return Row(chosen, where, completion=text["text"], unused=unused)
    if chosen == "prompt/completion":
        return Row(chosen, where, prompt=text["prompt"], completion=text["completion"], unused=unused)
    if chosen == "alpaca":
        turns: tuple[Message, ...] = ({"role": "user", "content": text["instruction"]}, {"role": "assistant", "content": text["output"]})
        return Row(chosen, where, messages=turns, input=text.get("input", ""), unused=unused)
    role, content, roles = ("from", "value", SHAREGPT_ROLES) if chosen == "sharegpt" else ("role", "content", ROLES)
    return Row(chosen, where, messages=messages(fields[used[0]], role, content, roles, where), unused=unused)


def messages(turns: Any, role: str, content: str, roles: Mapping[str, str], where: str) -> tuple[Message, ...]:
    """A conversation as it stands in a file -> messages, with the names of its two fields and of its roles made ours."""
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: the conversation is {turns!r:.40}; wanted a list of {{{role!r}: ..., {content!r}: ...}}")
    found: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            shown = names(turn) if isinstance(turn, dict) else f"a {type(turn).__name__}"
            raise InputError(f"{where}, turn {number}: wanted the fields {role}, {content}; found {shown}")
        if not isinstance(turn[role], str) or turn[role] not in roles:
            raise InputError(f"{where}, turn {number}: unknown role {turn[role]!r}; known: {', '.join(roles)}")
        found.append({"role": roles[turn[role]], "content": string(turn[content], content, where)})
    return tuple(found)


def conversation(turns: Any, where: str) -> tuple[Message, ...]:
    """`messages`, whichever of the two ways they are written in."""
    shared = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]
    return messages(turns, "from", "value", SHAREGPT_ROLES, where) if shared else messages(turns, "role", "content", ROLES, where)


def string(value: Any, name: str, where: str) -> str:
    """A field as text; null is the empty text, numbers are refused rather than printed in some way."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: the field {name!r} is a {type(value).__name__}; wanted text")
    return value
