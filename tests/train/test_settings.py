"""Which settings are the same, told again from elsewhere or after a move."""

import pytest

from minift.train.settings import Told, differing


@pytest.fixture
def disk(tmp_path):
    for name in ("a/runs/x", "a/m", "a/answers", "b/runs/x", "b/m", "b/answers", "b/other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/d.jsonl", "b/d.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


def same(before, now, was="a", there="a", out="runs/x", now_out=None):
    """before, now: a value, told in folders `was` and `there`."""
    told = lambda value, cwd, out: Told({"value": value, "out": out}, str(cwd))
    return differing(told(before, was, out), told(now, there, out if now_out is None else now_out), {}) == []


def test_the_same_words_are_the_same_and_others_are_not(disk):
    here = lambda before, now: same(before, now, disk / "a", disk / "a")
    assert here("lora", "lora") and here(0.1, 0.1) and here(["x", "y"], ["x", "y"]) and here({"pep257": 0.5}, {"pep257": 0.5})
    assert not here("lora", "full") and not here(0.1, 0.2) and not here(["x"], ["x", "y"]) and not here({"pep257": 0.5}, {"pep257": 0.25})
    assert not here(None, "m") and not here("m", None) and not here({"a": 1}, {"b": 1})


@pytest.mark.parametrize("before, now", [("regex:a/", "regex:a"), ("/", "//"), ("query: /", "query: "), ("base", "./base"), ("", "."), ("a,b", "a:b"), ("a,b", "a"), ("\0", "m"), ("m", "m\0")])
def test_words_that_are_no_paths_are_words(disk, before, now):
    assert not same(before, now, disk / "a", disk / "a")


def test_a_path_may_be_told_otherwise(disk):
    for now in ("./m", "../a/m", f"{disk}/a/m", "m/"):
        assert same("m", now, disk / "a", disk / "a")
    assert same("m", "../m", disk / "a", disk / "a/runs", now_out="x")
    assert same(f"judge:{disk}/a/m", "judge:m", disk / "a", disk / "a") and not same("judge:m", "verdict:m", disk / "a", disk / "a")
    assert not same("m", "answers", disk / "a", disk / "a")


def test_the_same_words_from_elsewhere_may_lead_elsewhere(disk):
    out = str(disk / "a/runs/x")
    assert not same("d.jsonl", "d.jsonl", disk / "a", disk / "b", out=out)             # a/d.jsonl and b/d.jsonl are two files
    assert not same("m", "m", disk / "a", disk / "b", out=out)
    assert same("base", "base", disk / "a", disk / "b", out=out)                       # no path, here or there


def test_what_was_moved_together_with_the_runs_folder_is_the_same(disk):
    assert same("d.jsonl", "d.jsonl", disk / "a", disk / "b")                          # the whole project
    assert same(f"{disk}/a/m,{disk}/a/answers", f"{disk}/b/m,{disk}/b/answers", disk, disk, out="a/runs/x", now_out="b/runs/x")
    assert same({"a/answers": 1.0, "pep257": 0.5}, {"b/answers": 1.0, "pep257": 0.5}, disk, disk, out="a/runs/x", now_out="b/runs/x")
    assert not same("a/m", "b/other", disk, disk, out="a/runs/x", now_out="b/runs/x")
    assert not same("a/m", "b/nowhere", disk, disk, out="a/runs/x", now_out="b/runs/x")


def test_a_file_that_was_moved_alone_is_the_same_word_and_no_longer_where_it_was(disk):
    assert same("gone", "gone", disk / "a", disk / "b", out=str(disk / "a/runs/x"))
    (disk / "b/gone").mkdir()
    assert same("gone", "gone", disk / "a", disk / "b", out=str(disk / "a/runs/x"))


@pytest.mark.parametrize("stop", ["\n", ".", "/", " ", "\n\n"])
def test_marks_are_the_same_from_wherever_they_are_told(disk, stop):
    assert same([stop], [stop], disk / "a", disk / "b", out=str(disk / "a/runs/x"))


def test_pairs_have_no_order(disk):
    assert same({"a": 1, "b": 2.0}, {"b": 2.0, "a": 1}, disk / "a", disk / "a") and not same({"a": 1, "b": 2}, {"b": 1, "a": 2}, disk / "a", disk / "a")


def test_a_path_with_a_colon_in_it(disk):
    (disk / "a/runs/12:30,5").mkdir()
    assert same("runs/12:30,5", "12:30,5", disk / "a", disk / "a/runs", now_out="x")


def test_only_a_judge_may_be_at_another_address():
    told = lambda **settings: Told(settings, "/")
    assert differing(told(judge="http://one/v1"), told(judge="https://two/v1"), {}) == []
    assert differing(told(judge="http://one/v1"), told(judge="pep257"), {}) == ["judge"]
    assert differing(told(prompt="http://one"), told(prompt="http://two"), {}) == ["prompt"]


def test_an_option_that_is_new_had_its_default():
    told = lambda **settings: Told(settings, "/")
    assert differing(told(lr=0.1), told(lr=0.1, ema=0.0, best="loss"), {"ema": 0.0, "best": "score"}) == ["best"]
