"""Every method by its name: options parsed, wrong ones refused, and one short fine-tuning of each from the command line."""

import json
from typing import Literal

import pytest
import torch

from minift import peft
from minift.errors import InputError
from minift.folder import load
from minift.recipes.methods import METHODS, field_docs, method_config, parse

ALONE = [name for name in METHODS if name != "fusion"]              # it mixes trained adapters: the last test

ROWS = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "green") for thing in ("sun", "cat", "tea")]
NEEDED = {"tokens": ("--options", "ids", "5,7"), "bitfit": ("--options", "add-missing", "true"), "adalora": ("--options", "init-r", "3", "target-r", "2")}
"""Options without which a method cannot run."""


def options(name):
    small = () if "rank" not in METHODS[name].fields() else ("--rank", 2)
    return (*small, *NEEDED.get(name, ()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name", ALONE)
def test_sft_takes_every_method_and_what_it_writes_gives_the_reported_loss(minift, small_model, data, tmp_path, name):
    status, said, complaint = minift(
        "sft", "--method", name, "--model", small_model, "--data", data, "--eval-data", data, "--out", tmp_path / "run", "--max-steps", 3,
        "--lr", 1e-2, "--samples", 1, "--new-tokens", 3, "--precision", "fp32", *options(name),
    )  # fmt: skip
    assert status == 0, complaint
    line = next(line for line in said.splitlines() if line.startswith("held-out loss"))
    written = tmp_path / "run" / ("model" if METHODS[name].whole else "adapter")
    base = ("--model", small_model, *(("--quantize", "nf4") if name == "loftq" else ()))
    use = ("--model", written) if METHODS[name].whole else (*base, "--adapter", written)
    assert minift("evaluate", *use, "--data", data, "--out", tmp_path / "measured.json")[0] == 0
    measured = json.loads((tmp_path / "measured.json").read_text())["nats per token"]
    assert measured == pytest.approx(float(line.split()[4]), abs=0.0006) and float(line.split()[4]) < float(line.split()[2]) + 0.05
    untouched = minift("evaluate", *base, "--data", data, "--out", tmp_path / "before.json")
    assert untouched[0] == 0
    assert json.loads((tmp_path / "before.json").read_text())["nats per token"] == pytest.approx(float(line.split()[2]), abs=0.0006)


PAIRS = [{**row, "chosen": row["completion"], "rejected": " none."} for row in ROWS]


@pytest.mark.parametrize("verb, rows, more", [
    ("sft", ROWS, ()), ("dpo", PAIRS, ()), ("reward", PAIRS, ()), ("embed", [{"anchor": row["prompt"], "positive": row["completion"]} for row in ROWS], ("--rows", 3)),
    ("classify", [{"text": row["prompt"], "label": row["completion"]} for row in ROWS], ()),
    ("classify", [{"text": row["prompt"], "label": row["completion"]} for row in ROWS], ("--shots", 2)),
], ids=["sft", "dpo", "reward", "embed", "classify", "shots"])    # fmt: skip
def test_a_schedule_that_does_not_fit_the_run_is_refused_before_an_earlier_one_is_given_up(minift, small_model, tmp_path, verb, rows, more):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps({"verb": verb, "settings": {}}))
    own = ("--model", small_model, "--data", tmp_path / "rows.jsonl", "--eval-data", tmp_path / "rows.jsonl", "--out", tmp_path / "run", "--overwrite")
    status, _, complaint = minift(verb, *own, *more, "--method", "adalora", "--max-steps", 3, "--options", "init_r", 3, "target_r", 2, "tinit", 2, "tfinal", 2)
    assert status == 2 and "3 steps are too few" in complaint and (tmp_path / "run/adapter").exists(), complaint


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_every_option_has_a_text(minift, name):
    status, said, _ = minift("methods", name)
    assert status == 0 and METHODS[name].idea in said
    assert set(METHODS[name].fields()) <= set(field_docs(METHODS[name].config)), "an option without a docstring"


def test_the_list_names_them_all_and_an_unknown_one_is_refused_with_near_names(minift):
    status, said, _ = minift("methods")
    assert status == 0 and all(name in said for name in METHODS)
    status, _, complaint = minift("methods", "lorra")
    assert status == 2 and "there is no method 'lorra'; near names: lora" in complaint


@pytest.mark.parametrize("text, kind, value", [
    ("true", bool, True), ("False", bool, False), ("3", int, 3), ("1e-3", float, 1e-3), ("a b", str, "a b"), ("x", Literal["x", "y"], "x"),
    ("3,5, 7", tuple[int, ...], (3, 5, 7)), ("q,v", str | list[str] | tuple[str, ...], ["q", "v"]), (".*q", str | list[str], ".*q"),
    ("none", int | None, None), ("4", int | None, 4), ("q=2,layers.1=3", dict[str, int], {"q": 2, "layers.1": 3}), ("2", Literal[1, 2], 2),
])  # fmt: skip
def test_an_options_text_becomes_a_value_of_its_fields_type(text, kind, value):
    assert parse(text, kind, "--options x") == value


@pytest.mark.parametrize("text, kind, said", [
    ("yes", bool, "--options x is 'yes': wanted true or false"), ("3.5", int, "wanted a whole number"), ("much", float, "wanted a number"),
    ("z", Literal["x", "y"], "choose one of x, y"),
])  # fmt: skip
def test_a_text_of_another_type_is_refused(text, kind, said):
    with pytest.raises(InputError, match=said):
        parse(text, kind, "--options x")


def test_flags_and_options_reach_the_config():
    config = method_config("lora", {"rank": 3, "lora_dropout": 0.25}, {"rslora": "true", "rank-pattern": "q=1"})
    assert config == peft.LoRA(rank=3, dropout=0.25, rslora=True, rank_pattern={"q": 1})
    assert method_config("rslora", {}, {}).rslora and method_config("last", {"last_n": 2}, {}).n == 2


def test_text_becomes_token_ids_where_a_method_takes_them(small_model):
    _, tokenizer = load(small_model)
    assert method_config("tokens", {}, {"tokens": "red"}, tokenizer).ids == tuple(tokenizer.encode("red", add_special_tokens=False))


@pytest.mark.parametrize("name, flags, given, said", [
    ("head", {"rank": 2}, {}, "--rank is an option of --method lora, .*, not of head: leave it out"),
    ("lora", {"last_n": 2}, {}, "--last-n is an option of --method last, not of lora"),
    ("lora", {}, {"length": "3"}, "--options length: the method lora has no such option; it has alpha, "),
    ("tokens", {}, {}, "--method tokens needs --options ids VALUE"),
])  # fmt: skip
def test_an_option_of_another_method_is_refused(name, flags, given, said):
    with pytest.raises(InputError, match=said):
        method_config(name, flags, given)


def test_a_penalty_is_added_per_step_not_per_token(small_model, monkeypatch):
    from minift.data.batches import Batch
    from minift.recipes import sft

    model, _ = load(small_model)
    batch = Batch(torch.tensor([[1, 4, 5, 6]]), torch.tensor([[False, True, True, True]]), None)
    plain, targets = sft.loss(model, batch)
    monkeypatch.setattr(sft, "penalty", lambda model: torch.tensor(0.5))
    assert sft.loss(model, batch)[0].item() / targets == pytest.approx(plain.item() / targets + 0.5)


def test_a_fusion_mixes_the_adapters_of_two_runs_and_carries_them_along(minift, small_model, data, tmp_path):
    common = ("--model", small_model, "--data", data, "--eval-data", data, "--max-steps", 2, "--lr", 1e-2, "--samples", 0, "--precision", "fp32")
    for run in ("one", "two"):
        assert minift("sft", "--method", "pfeiffer", *common, "--out", tmp_path / run, "--seed", len(run) + ord(run[0]))[0] == 0
    both = f"{tmp_path / 'one/adapter'},{tmp_path / 'two/adapter'}"
    status, said, complaint = minift("sft", "--method", "fusion", *common, "--out", tmp_path / "mix", "--options", "adapters", both)
    assert status == 0, complaint
    assert sorted(path.name for path in (tmp_path / "mix/adapter/mixed").iterdir()) == ["one", "two"]
    use = ("--model", small_model, "--adapter", tmp_path / "mix/adapter", "--data", data, "--out", tmp_path / "m.json")
    assert minift("evaluate", *use)[0] == 0
    reported = float(next(line for line in said.splitlines() if line.startswith("held-out loss")).split()[4])
    assert json.loads((tmp_path / "m.json").read_text())["nats per token"] == pytest.approx(reported, abs=0.0006)
    status, _, complaint = minift("sft", "--method", "fusion", *common, "--out", tmp_path / "none")
    assert status == 2 and "--method fusion needs --options adapters DIR,DIR" in complaint


@pytest.mark.parametrize("text, kind, value", [
    ("q_proj", str | list[str] | tuple[str, ...], ["q_proj"]), ("all-norms", str | list[str], "all-norms"), ("1", str | tuple[int, ...], (1,)),
    ("all", str | tuple[int, ...], "all"), ("0, 2", str | tuple[int, ...], (0, 2)),
])  # fmt: skip
def test_one_name_is_a_list_of_one_and_a_number_is_no_word(text, kind, value):
    assert parse(text, kind, "--options x") == value


def test_a_documented_default_may_be_given_and_one_option_not_twice(minift, small_model, data, tmp_path):
    common = ("sft", "--model", small_model, "--data", data, "--eval-data", data, "--max-steps", 1, "--samples", 0, "--precision", "fp32")
    assert minift(*common, "--method", "layernorm", "--targets", "all-norms", "--out", tmp_path / "a")[0] == 0
    status, _, complaint = minift(*common, "--rank", 2, "--options", "rank", 1, "--out", tmp_path / "b")
    assert status == 2 and "--options rank and the flag for it were both given" in complaint
