"""From files on disk to records: one dict of named fields per line, row or document, and where it stood.

How a file is cut into records is decided by its name's ending:
    .jsonl .ndjson   an object per line (lines end at LF only: U+2028 may stand inside a JSON string)
    .json            an array of objects, or {"data": [...]}, or an object per line after all
    .csv             a header, then rows; quoting as Python's csv module reads it, strictly
    .tsv             a header, then rows; NO quoting: a " is a character like any other, a tab always separates
    .txt .md         documents with the one field `text`, see `records`
All of it UTF-8, with or without a byte order mark, LF or CRLF. Whatever cannot be read is an InputError that names file and line.
Proved in tests/data/test_records.py. Left out: compressed files, reading while training (a file is read whole)."""

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, Literal, NamedTuple

from minift.errors import InputError

Documents = Literal["auto", "endoftext", "blank lines", "file"]
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md")
END_OF_TEXT = "<|endoftext|>"
SURROGATE = re.compile("[\ud800-\udfff]")


class Record(NamedTuple):
    """One row of a file before its format is known."""

    where: str
    """File and line, for errors: "faq.jsonl, line 3"."""
    fields: dict[str, Any]


def find(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files meant by paths and globs, each once, in the order given (a glob's in alphabetical order)."""
    found: list[Path] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a file in it, or a glob such as '{path}/*.jsonl'")
        if path.exists():
            found.append(path)
        elif re.search(r"[*?[]", str(path)):
            matches = [Path(match) for match in sorted(glob(str(path), recursive=True)) if Path(match).is_file()]
            if not matches:
                raise InputError(f"no file matches {path}")
            found += matches
        else:
            raise InputError(f"no such file: {path}")
    if not found:
        raise InputError("no data file was named")
    return list(dict.fromkeys(found))


def records(path: Path, documents: Documents = "auto") -> list[Record]:
    """The records of one file; InputError if there are none.

    documents: where a .txt or .md file is cut: at lines that hold only <|endoftext|>, at blank lines, or nowhere ("file");
    "auto" takes the first if there is such a line, else blank lines."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"{path}: cannot tell what kind of file this is from its ending {kind!r}; known: {' '.join(KINDS)}")
    text = _text(path)
    if not text.strip():
        raise InputError(f"{path} is empty")
    if kind in (".txt", ".md"):
        found = _documents(path, text, documents)
    elif kind in (".csv", ".tsv"):
        found = _table(path, text, quoting=kind == ".csv")
    elif kind == ".json":
        found = _json(path, text)
    else:
        found = _json_lines(path, text)
    if not found:
        raise InputError(f"{path} holds no rows")
    for record in found:
        _clean(record.fields, record.where)
    return found


def _text(path: Path) -> str:
    """The file as text: UTF-8 with or without a byte order mark, CRLF read as LF. Raises InputError for other encodings and NULs."""
    raw = path.read_bytes()
    mark = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + mark
        line = raw.count(b"\n", 0, offset) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}; "
            f"convert the file, e.g. iconv -f LATIN1 -t UTF-8 (UTF-16 if offset 0 is 0xff or 0xfe)"
        ) from None
    if "\0" in text:
        raise InputError(f"{path}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: holds a NUL byte; is this a text file?")
    return text.replace("\r\n", "\n")


def _documents(path: Path, text: str, documents: Documents) -> list[Record]:
    marks = re.compile(rf"^{re.escape(END_OF_TEXT)}[ \t]*\n?", re.MULTILINE)
    blank = re.compile(r"^[ \t]*\n", re.MULTILINE)
    if documents == "auto":
        documents = "endoftext" if marks.search(text) else "blank lines"
    cut = {"endoftext": marks, "blank lines": blank, "file": None}[documents]
    found, start, line = [], 0, 1
    for end, after in [*(match.span() for match in (cut.finditer(text) if cut else ())), (len(text), len(text))]:
        document = text[start:end]
        if document.strip():
            first = line + len(document) - len(document.lstrip("\n"))
            found.append(Record(f"{path}, line {first}", {"text": document.strip("\n")}))
        line += text.count("\n", start, after)
        start = after
    return found


def _table(path: Path, text: str, quoting: bool) -> list[Record]:
    csv.field_size_limit(sys.maxsize)                                 # a cell may hold a document; the default stops at 128 KiB
    file = io.StringIO(text, newline="")
    if quoting:
        reader = csv.reader(file, strict=True)
    else:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    hint = "a cell with a comma, a quote or a line break must be quoted, and a quote in it doubled" if quoting else \
        "a cell cannot hold a tab or a line break"
    header: list[str] = []
    found, line = [], 1
    try:
        for cells in reader:
            where = f"{path}, line {line}"
            line = reader.line_num + 1                                # a quoted cell may span lines
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise InputError(f"{where}: the header names a column twice: {', '.join(header)}")
            elif len(cells) != len(header):
                raise InputError(f"{where}: {len(cells)} cells under a header of {len(header)} ({', '.join(header)}): {hint}")
            else:
                found.append(Record(where, dict(zip(header, cells))))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {line}: the quoting is broken from here on ({error}): {hint}; "
            "or separate the cells by tabs and name the file .tsv, where quotes mean nothing"
        ) from None
    return found


def _json(path: Path, text: str) -> list[Record]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and error.msg == "Extra data":                   # JSON lines under another name
            return _json_lines(path, text)
        raise InputError(f"{path}, line {error.lineno}: malformed JSON: {error.msg} (column {error.colno})") from None
    except (RecursionError, ValueError) as error:                    # nested too deeply, or a number of thousands of digits
        raise InputError(f"{path}: malformed JSON: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        data = data["data"]
    if isinstance(data, dict):
        raise InputError(f'{path}: one object with the fields {names(data)}; wanted an array of objects, or {{"data": [...]}}')
    if not isinstance(data, list):
        raise InputError(f"{path}: a {type(data).__name__}; wanted an array of objects")
    return [Record(f"{path}, row {number}", _object(row, f"{path}, row {number}")) for number, row in enumerate(data, 1)]


def _json_lines(path: Path, text: str) -> list[Record]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):               # splitlines() would also cut at U+2028
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: malformed JSON: {error.msg} (column {error.colno}): {line[:60]!r}") from None
        except (RecursionError, ValueError) as error:
            raise InputError(f"{where}: malformed JSON: {error}") from None
        found.append(Record(where, _object(row, where)))
    return found


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        wanted = '{"prompt": ..., "completion": ...}'
        raise InputError(f"{where}: a {type(row).__name__}; wanted an object with named fields, like {wanted}")
    return row


def _clean(value: Any, where: str) -> None:
    """JSON can spell characters that no UTF-8 file can hold; a tokenizer would fail on them later, far from their line."""
    if isinstance(value, str):
        if "\0" in value:
            raise InputError(f"{where}: holds a NUL character (\\u0000): remove it")
        if SURROGATE.search(value):
            raise InputError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff alone): not a character, remove it")
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _clean(inner, where)


def names(fields: dict[str, Any]) -> str:
    """The fields found, for an error."""
    return ", ".join([*fields][:20]) + (f" and {len(fields) - 20} more" if len(fields) > 20 else "") or "none"
