import json

import pytest

from minift.data.records import find, records
from minift.errors import InputError


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fields(path, **options):
    return [record.fields for record in records(path, **options)]


def places(path, **options):
    return [record.where.removeprefix(f"{path}, ") for record in records(path, **options)]


TWO = [{"text": "one"}, {"text": "zwei\nthree"}]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", '{"text": "one"}\n\n{"text": "zwei\\nthree"}'),
        ("a.ndjson", '{"text": "one"}\r\n{"text": "zwei\\nthree"}\r\n'),
        ("a.json", json.dumps(TWO, indent=3)),
        ("a.JSON", json.dumps({"version": 2, "data": TWO})),
        ("a.json", '{"text": "one"}\n{"text": "zwei\\nthree"}\n'),
        ("a.csv", 'text\none\n"zwei\nthree"\n'),
        ("a.csv", b'\xef\xbb\xbftext\r\none\r\n"zwei\r\nthree"\r\n'),
        ("a.txt", "one\n<|endoftext|>\nzwei\nthree\n<|endoftext|>"),
        ("a.md", "one\r\n\r\n\r\nzwei\r\nthree\r\n"),
    ],
)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name, content):
    assert fields(file(tmp_path, name, content)) == TWO


def test_a_record_knows_the_line_it_starts_on(tmp_path):
    assert places(file(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')) == ["line 1", "line 3"]
    assert places(file(tmp_path, "a.csv", 'a,b\n"x\ny\nz",2\n\n3,4\n')) == ["line 2", "line 6"]
    assert places(file(tmp_path, "a.json", '[\n{"a": 1},\n{"a": 2}]')) == ["row 1", "row 2"]
    assert places(file(tmp_path, "a.txt", "\n\nx\ny\n\n\nz")) == ["line 3", "line 7"]
    assert places(file(tmp_path, "b.txt", "x\n<|endoftext|>\n\ny\n<|endoftext|>\nz")) == ["line 1", "line 4", "line 6"]


def test_text_is_cut_into_documents_as_asked(tmp_path):
    path = file(tmp_path, "a.txt", "a\n\n  b\n<|endoftext|>\n \nc <|endoftext|> d\n")
    assert fields(path) == fields(path, documents="endoftext") == [{"text": "a\n\n  b"}, {"text": " \nc <|endoftext|> d"}]
    assert [f["text"] for f in fields(path, documents="blank lines")] == ["a", "  b\n<|endoftext|>", "c <|endoftext|> d"]
    assert [f["text"] for f in fields(path, documents="file")] == ["a\n\n  b\n<|endoftext|>\n \nc <|endoftext|> d"]


def test_a_line_of_json_ends_at_line_feeds_only(tmp_path):
    text = "next\u2028line\u0085and\u000bmore"                       # str.splitlines() would cut at each of the three
    assert fields(file(tmp_path, "a.jsonl", json.dumps({"text": text}, ensure_ascii=False))) == [{"text": text}]


def test_emoji_and_every_script_pass_unchanged(tmp_path):
    text = "👩‍🚀 é e\u0301 漢字 עברית"
    escaped, plain = json.dumps({"text": text}), json.dumps({"text": text}, ensure_ascii=False)
    for name, content in (("a.jsonl", escaped), ("b.jsonl", plain), ("c.txt", text)):
        assert fields(file(tmp_path, name, content)) == [{"text": text}]


def test_a_quote_in_a_tsv_is_a_character_like_any_other(tmp_path):
    content = 'sms\tlabel\n"Divorce Barbie" comes with all\tspam\nhe said "no\tham\nI\'m "ok\tham\n'
    assert [f["sms"] for f in fields(file(tmp_path, "a.tsv", content))] == ['"Divorce Barbie" comes with all', 'he said "no', "I'm \"ok"]


def test_a_cell_may_hold_a_long_document(tmp_path):
    assert len(fields(file(tmp_path, "a.csv", "text\n" + "x" * 200_000))[0]["text"]) == 200_000       # csv's own limit is 131072


BAD = [
    ("a.jsonl", "", "is empty"),
    ("a.csv", " \n\n", "is empty"),
    ("a.csv", "a,b\n", "holds no rows"),
    ("a.json", "[]", "holds no rows"),
    ("a.txt", "<|endoftext|>\n<|endoftext|>\n", "holds no rows"),
    ("a.bin", "x", "ending '.bin'; known: .jsonl .ndjson"),
    ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "line 3: malformed JSON: Expecting value (column 7): '{\"a\": }'"),
    ("a.jsonl", '{"a": 1}\n[1, 2]\n', 'line 2: a list; wanted an object with named fields, like {"prompt": ..., "completion": ...}'),
    ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1: malformed JSON"),
    ("a.json", '[\n{"a": 1}\n{"a": 2}]', "line 3: malformed JSON"),
    ("a.json", '[{"a": 1}, "b"]', "row 2: a str; wanted an object"),
    ("a.json", '{"rows": [], "version": 1}', 'one object with the fields rows, version; wanted an array of objects, or {"data": [...]}'),
    ("a.json", '{"a": 1}\n{"a": \n', "line 2: malformed JSON"),
    ("a.json", "3", "a int; wanted an array of objects"),
    ("a.csv", "a,b\n1,2\n1,2,3\n", "line 3: 3 cells under a header of 2 (a, b): a cell with a comma"),
    ("a.csv", 'a,b\n1,2\n3,"4"5\n', "line 3: the quoting is broken from here on"),
    ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', "name the file .tsv, where quotes mean nothing"),
    ("a.csv", "a,b,a\n1,2,3\n", "line 1: the header names a column twice: a, b, a"),
    ("a.tsv", "a\tb\n1\n", "line 2: 1 cells under a header of 2 (a, b): a cell cannot hold a tab"),
    ("a.txt", b"ok\nna\xefve", "line 2: not UTF-8: byte 0xef at offset 5"),
    ("a.txt", b"\xef\xbb\xbfok\nna\xefve", "line 2: not UTF-8: byte 0xef at offset 8"),
    ("a.txt", "ok".encode("utf-16"), "line 1: not UTF-8: byte 0xff at offset 0"),
    ("a.jsonl", '{"a": 1}\n{"a": "x\0"}', "line 2: holds a NUL byte"),
    ("a.jsonl", '{"a": 1}\n{"a": ["x\\u0000"]}', "line 2: holds a NUL character (\\u0000)"),
    ("a.jsonl", '{"a": {"b": "x\\ud83d"}}', "line 1: holds half of a surrogate pair"),
]


@pytest.mark.parametrize("name, content, message", BAD)
def test_an_unreadable_file_is_refused_by_name_and_line(tmp_path, name, content, message):
    path = file(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        records(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_files_are_found_by_name_and_by_glob_each_once(tmp_path):
    b, a, odd = (file(tmp_path, name, "x") for name in ("b.txt", "a.txt", "odd[1].md"))
    (tmp_path / "c.txt").mkdir()
    assert find(b) == find(str(b)) == [b]
    assert find([b, str(tmp_path / "*.txt")]) == [b, a]              # a folder called c.txt is no file
    assert find(odd) == [odd]                                        # brackets in a real name are no glob


@pytest.mark.parametrize(
    "paths, message",
    [("no.txt", "no such file: {}/no.txt"), ("*.jsonl", "no file matches {}/*.jsonl"), ("", "{} is a folder: name a file in it")],
)
def test_a_path_that_leads_nowhere_is_refused(tmp_path, paths, message):
    with pytest.raises(InputError) as error:
        find(tmp_path / paths)
    assert message.format(tmp_path) in str(error.value)


def test_no_path_at_all_is_refused():
    with pytest.raises(InputError, match="no data file was named"):
        find([])
