"""Texts to be compared: five shapes of rows, what is left out and said, what is refused."""

import json
import re

import pytest

from minift.data.texts import docstring_pairs, in_range, read_texts
from minift.errors import InputError


def write(tmp_path, *rows, name="rows.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / name


def read(tmp_path, *rows, **options):
    return read_texts(write(tmp_path, *rows), **options)


def test_the_five_shapes_are_told_by_their_fields(tmp_path):
    for row, shape, texts in (
        ({"anchor": "a", "positive": "b"}, "pairs", ("a", "b")),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "pairs", ("a", "b", "c")),
        ({"anchor": "a", "positive": "b", "negatives": ["c", "d"]}, "pairs", ("a", "b", "c", "d")),
        ({"anchor": "a", "positive": "b", "negative": None}, "pairs", ("a", "b")),
        ({"sentence1": "a", "sentence2": "a", "score": "4.5"}, "scored", ("a", "a")),
        ({"sentence1": "a", "sentence2": "a", "label": "neutral"}, "nli", ("a", "a")),
        ({"sentence1": "a", "sentence2": "b", "label": 3, "score": 4.5}, "scored", ("a", "b")),
        ({"text": "a", "label": 3}, "labelled", ("a",)),
        ({"text": "a"}, "texts", ("a",)),
    ):
        [found], said = read(tmp_path, row)
        assert said.shape == shape and found.texts == texts
        assert (found.score, found.label) == ({"scored": 4.5}.get(shape), {"labelled": "3", "nli": "neutral"}.get(shape))


def test_fields_of_other_names_are_named(tmp_path):
    [row], _ = read(tmp_path, {"query": "a", "code": "b"}, columns={"anchor": "query", "positive": "code"})
    assert row.texts == ("a", "b")
    with pytest.raises(InputError, match="no texts to compare: found the fields query, code. Wanted: pairs: anchor, positive; scored: .* --columns says which"):
        read(tmp_path, {"query": "a", "code": "b"})


def test_what_is_left_out_is_counted_and_named(tmp_path):
    rows, found = read(tmp_path, {"anchor": "a", "positive": "b"}, {"anchor": " ", "positive": "b"}, {"anchor": "c", "positive": "c "})
    assert len(rows) == 1 and found.rows == 3
    said = "\n".join(found.lines())
    assert re.search("1 have an empty text and are left out: .*rows.jsonl, line 2\n1 are a text and the same text again, and are left out: .*rows.jsonl, line 3", said)
    with pytest.raises(InputError, match="none of the 1 rows is left: 1 with an empty text, 0 of one text twice"):
        read(tmp_path, {"anchor": "", "positive": "b"})


@pytest.mark.parametrize("row, text", [
    ({"anchor": "a", "positive": "b", "negative": "b "}, "line 2: the negative is the positive, 'b'"),
    ({"anchor": "a", "positive": 3}, "line 2: 3 is a int: every text has to be a string"),
    ({"anchor": "a"}, "line 2: no field 'positive', though the file starts with anchor, positive; found anchor"),
])    # fmt: skip
def test_rows_that_are_no_pairs_are_refused(tmp_path, row, text):
    with pytest.raises(InputError, match=text):
        read(tmp_path, {"anchor": "a", "positive": "b"}, row)


@pytest.mark.parametrize("score", ["high", None, True, float("inf")])
def test_a_score_is_a_number(tmp_path, score):
    with pytest.raises(InputError, match="line 1: the score is .*: wanted a number"):
        read(tmp_path, {"sentence1": "a", "sentence2": "b", "score": score})


def test_scores_become_numbers_from_0_to_1_worked_by_hand(tmp_path):
    rows, _ = read(tmp_path, *({"sentence1": "a", "sentence2": "b", "score": s} for s in (1, 3, 5)))
    assert in_range(rows, 1, 5) == [0.0, 0.5, 1.0]
    with pytest.raises(InputError, match="line 2: the score is 3, outside 0 to 1: say what the scores reach from and to with --score-range"):
        in_range(rows, 0, 1)
    with pytest.raises(InputError, match="the smaller one first"):
        in_range(rows, 5, 1)


def test_files_of_two_shapes_are_refused(tmp_path):
    files = write(tmp_path, {"text": "a"}, name="a.jsonl"), write(tmp_path, {"text": "a", "label": "b"}, name="b.jsonl")
    with pytest.raises(InputError, match="labelled, and the files before held texts: give files of one shape"):
        read_texts(files)


@pytest.mark.parametrize("texts", [{"text": "a"}, {"sentence1": "a", "sentence2": "b"}])
def test_an_empty_label_is_refused(tmp_path, texts):
    with pytest.raises(InputError, match="line 1: the label is empty"):
        read(tmp_path, {**texts, "label": " "})


def test_code_stands_without_its_docstring_and_modules_on_one_side():
    train, test = docstring_pairs("train", ("networkx",)), docstring_pairs("test", ("networkx",))
    modules = [{row.where.partition(",")[0] for row in rows} for rows in (train, test)]
    assert len(train) > 300 and len(test) > 10 and not modules[0] & modules[1]
    for summary, code in (row.texts for row in train[:200]):
        assert code.startswith(("def ", "async def ")) and summary not in code and code.count("\n") >= 2
