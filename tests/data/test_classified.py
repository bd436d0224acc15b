"""Texts with answers: what a file asks, what is left out and said, how rows are split, what is refused."""

import json
import re
from collections import Counter

import pytest
import torch

from minift.data.classified import Classified, Found, counts, labels_of, read_classified, split_classified, targets, unseen
from minift.errors import InputError


def write(tmp_path, *rows, name="rows.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / name


def read(tmp_path, *rows, **options):
    return read_classified(write(tmp_path, *rows), **options)


def row(text: str, answer, where: str = "x, line 1") -> Classified:
    return Classified(where, (text,), answer)


# ---- what is asked


def test_a_files_fields_say_what_is_asked(tmp_path):
    for fields, problem, sides, answer in (
        ({"text": "a", "label": "spam"}, "single", 1, "spam"),
        ({"text": "a", "label": " spam "}, "single", 1, "spam"),
        ({"text": "a", "label": 3}, "single", 1, "3"),
        ({"text": "a", "label": 0}, "single", 1, "0"),
        ({"text": "a", "labels": ["x", "b", "x"]}, "multi", 1, ("b", "x")),
        ({"text": "a", "labels": "x|b"}, "multi", 1, ("b", "x")),
        ({"text": "a", "labels": [3]}, "multi", 1, ("3",)),
        ({"text": "a", "labels": []}, "multi", 1, ()),
        ({"text": "a", "labels": None}, "multi", 1, ()),
        ({"text": "a", "labels": "  "}, "multi", 1, ()),
        ({"text": "a", "score": "-4.5"}, "regression", 1, -4.5),
        ({"sentence1": "a", "sentence2": "a", "score": 2}, "regression", 2, 2.0),
        ({"sentence1": "a", "sentence2": "b", "label": "x", "score": 2}, "single", 2, "x"),
        ({"text": "c", "sentence1": "a", "sentence2": "b", "label": "x"}, "single", 1, "x"),
    ):
        [found], said = read(tmp_path, fields)
        assert (said.problem, said.sides, found.answer) == (problem, sides, answer), fields
        assert len(found.texts) == sides and found.where.endswith("rows.jsonl, line 1")


def test_fields_of_other_names_are_named(tmp_path):
    [found], _ = read(tmp_path, {"body": "a", "category": "x", "label": "old"}, columns={"text": "body", "label": "category"})
    assert found.texts == ("a",) and found.answer == "x"
    with pytest.raises(InputError, match="line 1: found the fields body, category. Wanted: text, or sentence1 and sentence2; and one of label, labels, score. --columns"):
        read(tmp_path, {"body": "a", "category": "x"})


def test_a_table_holds_several_labels_in_one_cell(tmp_path):
    (tmp_path / "rows.tsv").write_text('text\tlabels\na "quoted" text\tred|big\nb\t\n')
    rows, found = read_classified(tmp_path / "rows.tsv")
    assert [one.answer for one in rows] == [("big", "red"), ()] and found.problem == "multi"


def test_texts_alone_will_do_where_no_answers_are_wanted(tmp_path):
    [found], said = read(tmp_path, {"text": "a"}, answers=False)
    assert found.answer is None and said.problem is None
    [found], said = read(tmp_path, {"text": "a", "label": "x"}, answers=False)
    assert found.answer == "x" and said.problem == "single"
    with pytest.raises(InputError, match="one of label, labels, score"):
        read(tmp_path, {"text": "a"})
    with pytest.raises(InputError, match="Wanted: text, or sentence1 and sentence2. --columns"):
        read(tmp_path, {"words": "a"}, answers=False)


# ---- what is said


def test_what_is_left_out_or_torn_is_counted_and_named(tmp_path):
    rows, found = read(
        tmp_path, {"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"text": "a ", "label": "y"}, {"text": "a", "label": "x"}, {"text": "b", "label": "y"}
    )
    assert [one.texts[0] for one in rows] == ["a", "a ", "a", "b"] and found.rows == 5
    said = "\n".join(found.lines())
    assert re.search(
        r"5 rows of one text \(single\)\n1 have an empty text and are left out: .*line 2\n1 have a text that came before with another answer: .*line 3$", said
    )
    pairs, found = read(tmp_path, {"sentence1": "a", "sentence2": "b", "label": "x"}, {"sentence1": "b", "sentence2": "a", "label": "y"},
                        {"sentence1": "a", "sentence2": "", "label": "y"})    # fmt: skip
    assert len(pairs) == 2 and not found.torn and found.lines()[0] == "3 rows of two texts (single)"


def test_labels_in_another_order_are_no_other_answer(tmp_path):
    assert not read(tmp_path, {"text": "a", "labels": ["x", "y"]}, {"text": "a", "labels": "y|x"})[1].torn


@pytest.mark.parametrize("second, text", [
    ({"text": "b"}, "line 2: no field 'label', though the files start with text, label; found text"),
    ({"label": "x"}, "line 2: no field 'text'"),
    ({"text": 3, "label": "x"}, "line 2: 3 is a int: a text has to be a string"),
    ({"text": "b", "label": None}, "line 2: the label is None: wanted a name"),
    ({"text": "b", "label": " "}, "line 2: the label is ' ': wanted a name"),
    ({"text": "b", "label": 1.5}, "line 2: the label is 1.5: wanted a name"),
    ({"text": "b", "label": ["x"]}, r"line 2: the label is \['x'\]: wanted a name"),
])    # fmt: skip
def test_a_row_that_does_not_say_is_refused(tmp_path, second, text):
    with pytest.raises(InputError, match=text):
        read(tmp_path, {"text": "a", "label": "x"}, second)


@pytest.mark.parametrize("field, value, text", [
    ("labels", "x||y", "the label is '': wanted a name"), ("labels", {"x": 1}, "the labels are {'x': 1}: wanted a list of names, or names with | between"),
    ("labels", 3, "the labels are 3"), ("labels", 0, "the labels are 0"), ("labels", [["x"]], "the label is ['x']"), ("score", "high", "the score is 'high': wanted a number"),
    ("score", None, "the score is None"), ("score", True, "the score is True"), ("score", "nan", "the score is 'nan'"), ("score", "inf", "the score is 'inf'"),
])    # fmt: skip
def test_an_answer_that_is_none_is_refused(tmp_path, field, value, text):
    with pytest.raises(InputError, match=re.escape(f"line 1: {text}")):
        read(tmp_path, {"text": "a", field: value})


def test_files_have_to_ask_the_same(tmp_path):
    files = write(tmp_path, {"text": "a", "label": "x"}, name="a.jsonl"), write(tmp_path, {"text": "a", "score": 1}, name="b.jsonl")
    with pytest.raises(InputError, match="b.jsonl, line 1: found text, score, and the files before held text, label: give files that ask the same"):
        read_classified(files)
    with pytest.raises(InputError, match="none of the 2 rows is left: each has an empty text"):
        read(tmp_path, {"text": "", "label": "x"}, {"text": "\n", "label": "y"})


# ---- labels


def test_labels_stand_in_the_order_of_their_names_or_numbers():
    assert labels_of([row("a", "b"), row("b", "a"), row("c", "b")]) == ["a", "b"]
    assert labels_of([row("a", "10"), row("b", "9"), row("c", "2")]) == ["2", "9", "10"]
    assert labels_of([row("a", "10"), row("b", "9"), row("c", "none")]) == ["10", "9", "none"]
    for names in (("1", "01", "001"), ("001", "01", "1")):                     # three names of one number: the order is still one
        assert labels_of([row(name, name) for name in names]) == ["001", "01", "1"]
    assert labels_of([row("a", ("y",)), row("b", ()), row("c", ("y", "x"))]) == ["x", "y"]
    assert labels_of([row("a", ("y",)), row("b", ())]) == ["y"]                 # a yes or a no can be told apart


def test_one_label_alone_leaves_nothing_to_tell_apart():
    with pytest.raises(InputError, match="all 2 rows have the label 'x': there is nothing to tell apart"):
        labels_of([row("a", "x"), row("b", "x")])
    with pytest.raises(InputError, match="all 2 rows have no label"):
        labels_of([row("a", ()), row("b", ())])


def test_targets_worked_by_hand():
    single = targets([row("a", "y"), row("b", "x"), row("c", "z")], ["x", "y", "z"])
    assert single.dtype == torch.int64 and single.tolist() == [1, 0, 2]
    multi = targets([row("a", ("x", "z")), row("b", ()), row("c", ("y",))], ["x", "y", "z"])
    assert multi.dtype == torch.float32 and multi.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    numbers = targets([row("a", 0.5), row("b", -2.0)], ["score"])
    assert numbers.dtype == torch.float32 and numbers.tolist() == [0.5, -2.0]
    assert counts([row("a", ("x", "z")), row("b", ("x",)), row("c", ())]) == Counter(x=2, z=1)


def test_labels_that_training_never_shows_are_named_with_their_first_place():
    rows = [row("a", "x", "f, line 1"), row("b", "new", "f, line 2"), row("c", "new", "f, line 3"), row("d", "other", "f, line 4")]
    assert unseen(rows, [row("e", "x")]) == {"new": "f, line 2", "other": "f, line 4"}
    assert unseen([row("a", ("x", "new"), "f, line 7")], [row("e", ("x",))]) == {"new": "f, line 7"}


# ---- the split


def test_no_text_stands_on_both_sides():
    rows = [row(f"text {i % 40}{' ' * (i % 3)}", "xy"[i % 2]) for i in range(120)]      # each text three times, once with blanks behind it
    found = Found()
    train, valid = split_classified(rows, 0.3, found)
    assert len(train) + len(valid) == 120 and len(valid) > 12 and not {one.key for one in train} & {one.key for one in valid}
    assert found.moved == 0 and not any("moved" in line or "went" in line for line in found.lines())


def test_a_held_out_label_that_training_lacks_moves_over_with_all_rows_of_its_text():
    common = [row(f"text {i}", "xy"[i % 2]) for i in range(60)]
    _, held = split_classified(common, 0.3, Found())
    torn = [row(held[0].texts[0], "rare"), row(held[1].texts[0], "alone")]              # two of the texts that are held out have a second answer
    found = Found(problem="single")
    train, valid = split_classified([*common, *torn], 0.3, found)
    assert found.moved == 4 and {"rare", "alone"} <= {one.answer for one in train} and not unseen(valid, train)
    assert not {one.key for one in train} & {one.key for one in valid} and len(train) + len(valid) == 62
    assert found.lines()[-1] == "4 held-out rows went to training, which had none with their label"


def test_rows_too_few_to_split_are_refused():
    with pytest.raises(InputError, match="every held-out row has a label of its own: 30 rows are too few to split, give --eval-data or more of each label"):
        split_classified([row(f"text {i}", f"label {i}") for i in range(30)], 0.3, Found())
