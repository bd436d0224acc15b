"""minift predict: a line for each text, from files and the standard input; right answers are counted where there are some."""

import io
import json

import pytest

from tests.recipes.test_classify import classify, encoder_folder, files  # noqa: F401  (fixtures)


@pytest.fixture
def trained(classify, tmp_path):  # noqa: F811
    assert classify()[0] == 0
    return tmp_path / "run"


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_the_standard_input_are_answered_one_by_one(trained, minift, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("red list number 4\nblue class number 9\n\n"))
    status, said, _ = minift("predict", trained)
    assert status == 0
    assert [(one["text"], one["label"]) for one in lines(said)] == [("red list number 4", "red"), ("blue class number 9", "blue")]
    assert 0.34 < lines(said)[0]["probability"] <= 1


def test_a_file_with_answers_is_scored_and_the_lines_go_to_a_file(trained, minift, files, tmp_path):  # noqa: F811
    status, said, told = minift("predict", trained, "--data", files / "single.jsonl", "--out", tmp_path / "said.jsonl", "--top", 2)
    assert status == 0 and said == "" and "90 rows; accuracy" in told
    found = lines((tmp_path / "said.jsonl").read_text())
    assert len(found) == 90 and all(len(one["top"]) == 2 and one["label"] == next(iter(one["top"])) for one in found)


def test_a_file_of_other_labels_is_answered_and_not_scored(trained, minift, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"text": "red list", "label": "pink"}\n')
    status, said, told = minift("predict", trained, "--data", tmp_path / "new.jsonl")
    assert status == 0 and len(lines(said)) == 1 and "'pink'" in told and "not compared" in told
    (tmp_path / "new.jsonl").write_text('{"text": "red list", "score": 3}\n')
    assert "the rows' answers are regression" in minift("predict", trained, "--data", tmp_path / "new.jsonl")[2]


def test_what_cannot_be_answered_is_refused(trained, minift, files, tmp_path, monkeypatch, encoder_folder, small_model):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "no text" in minift("predict", trained)[2]
    (tmp_path / "hole.jsonl").write_text('{"text": "red"}\n{"text": " "}\n')
    assert "hole.jsonl, line 2: the text is empty" in minift("predict", trained, "--data", tmp_path / "hole.jsonl")[2]
    assert "reads 1 texts of a row" in minift("predict", trained, "--data", files / "pairs.jsonl")[2]
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n \nblue\n"))
    assert "line 2 is empty" in minift("predict", trained)[2]
    (tmp_path / "mine.jsonl").write_text('{"text": "red"}\n')
    assert "is there already" in minift("predict", trained, "--data", tmp_path / "mine.jsonl", "--out", tmp_path / "mine.jsonl")[2]
    assert minift("predict", trained, "--data", tmp_path / "mine.jsonl", "--out", tmp_path / "new/said.jsonl", "--precision", "fp32")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("red\nblue\ttwo\n"))
    assert "line 2 has 2" in minift("predict", trained)[2]
    assert "holds no classifier" in minift("predict", encoder_folder, "--data", files / "single.jsonl")[2]
    assert "holds no classifier" in minift("predict", small_model, "--data", files / "single.jsonl")[2]


def test_pairs_come_with_a_tab_between_them(classify, minift, tmp_path, monkeypatch):  # noqa: F811
    assert classify(file="pairs")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("red list number 4\ta red one\n"))
    assert lines(minift("predict", tmp_path / "run")[1])[0]["sentence2"] == "a red one"
