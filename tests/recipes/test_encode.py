"""minift encode and minift search: an index of texts, and what is found in it."""

import io
import json

import pytest
import torch

from minift.folder import load
from minift.embed import fingerprint

TEXTS = ["The list is sorted.", "A string is returned.", "What the object holds, or None."]


@pytest.fixture
def index(minift, small_model, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    status, said, complaint = minift("encode", "--model", small_model, "--data", tmp_path / "texts.jsonl", "--out", tmp_path / "index")
    assert status == 0 and "3 texts, 32 numbers each" in said, complaint
    return tmp_path / "index"


def test_a_text_finds_itself_first(minift, small_model, index):
    status, said, _ = minift("search", "--model", small_model, "--index", index, "--query", TEXTS[1], TEXTS[2], "--k", 2)
    lines = said.splitlines()
    assert status == 0 and lines[0] == TEXTS[1] and lines[1].split()[:2] == ["1.000", "1"] and TEXTS[1] in lines[1]
    assert lines[3] == TEXTS[2] and lines[4].split()[:2] == ["1.000", "2"]
    status, said, _ = minift("search", "--model", small_model, "--index", index, "--query", TEXTS[0], "--json")
    found = [json.loads(line) for line in said.splitlines()]
    assert found[0] == {"query": TEXTS[0], "score": 1.0, "number": 0, "text": TEXTS[0]} and len(found) == 3


def test_queries_may_come_line_by_line(minift, small_model, index, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXTS[0]}\n\n"))
    status, said, _ = minift("search", "--model", small_model, "--index", index)
    assert status == 0 and said.splitlines()[0] == TEXTS[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, complaint = minift("search", "--model", small_model, "--index", index)
    assert status == 2 and "nothing to look for" in complaint


def test_an_index_of_another_model_or_pooling_is_refused(minift, index, small_model):
    for other in (["--model", "base"], ["--model", small_model, "--pooling", "mean"]):
        status, _, complaint = minift("search", *other, "--index", index, "--query", "a")
        assert status == 2 and "the index was made by model" in complaint


def test_half_the_space(minift, small_model, index, tmp_path):
    assert minift("encode", "--model", small_model, "--data", tmp_path / "texts.jsonl", "--out", tmp_path / "half", "--half")[0] == 0
    whole, half = ((tmp_path / name / "vectors.npy").stat().st_size - 128 for name in ("index", "half"))
    assert half * 2 == whole


def test_a_fingerprint_changes_with_any_weight(small_model):
    model, _ = load(small_model)
    before = fingerprint(model)
    assert fingerprint(load(small_model)[0]) == before
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, 0] += 1e-3
    assert fingerprint(model) != before


@pytest.mark.parametrize("row, text", [({"body": "a"}, "no field 'text'; found body: name the field of the texts with --column"), ({"text": " "}, "wanted a text that is not empty")])
def test_bad_rows_are_named(minift, small_model, tmp_path, row, text):
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    status, _, complaint = minift("encode", "--model", small_model, "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "index")
    assert status == 2 and text in complaint and not (tmp_path / "index").exists()
    (tmp_path / "good.jsonl").write_text('{"body": "a b c"}\n')
    assert minift("encode", "--model", small_model, "--data", tmp_path / "good.jsonl", "--column", "body", "--out", tmp_path / "index")[0] == 0
    status, _, complaint = minift("encode", "--model", small_model, "--data", tmp_path / "good.jsonl", "--column", "body", "--out", tmp_path / "index")
    assert status == 2 and "is in use" in complaint
