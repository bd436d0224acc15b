"""`--profile`: the page, its numbers and its picture, from the recipes."""

import json

import pytest

from minift.recipes.profile_report import page, utilisation, verdict, write_profile
from tests.recipes.test_pretrain import FLAGS, book  # noqa: F401
from tests.recipes.test_sft import data  # noqa: F401

FOUND = {
    "timed": [4, 5, 6, 7], "counted": 8, "traced": 9, "bf16": False, "dtype": "float32", "checkpointing": False, "threads": 2, "device": "cpu",
    "torch": "2.13.0", "peak": 100e9, "foretold": {"weights": 8e6, "gradients": 8e6, "optimizer": 16e6, "activations": 50e6},
    "measured": {"weights": 8e6, "gradients": 8e6, "optimizer": 16e6, "activations": 48e6}, "flop": 5e9, "counted_tokens": 1000, "tokens": 800.0,
    "ms": {"data": 2.0, "forward": 20.0, "loss": 10.0, "backward": 44.0, "optimizer": 4.0},
    "operators": [["aten::mm", 30, 45.0], ["aten::mul", 90, 9.0]], "traced_ms": 90.0, "products_ms": 63.0,
}  # fmt: skip


def test_utilisation_worked_by_hand():
    """5 GFLOP for 1,000 tokens are 4 for 800; in 80 ms that is 50 GFLOP a second, half of the peak."""
    assert utilisation(FOUND) == {"ms": 80.0, "flop": 4e9, "per_s": 50e9, "share": 0.5}


def test_the_page_says_what_the_numbers_mean():
    text = page(FOUND)
    for part in ("| backward | 44.0 | 55% |", "| MFU | 50.0% |", "| activations | 50.0 | 48.0 |", "| together | 82.0 | 80.0 |", "| aten::mm | 30 | 45.0 | 50% |",
                 "800 a step, 10,000 a second", "4.0 GFLOP", "Steps 4 to 7"):    # fmt: skip
        assert part in text, part
    assert "30% of the time is outside matrix products" in verdict(FOUND) and "55% of it in the backward pass" in verdict(FOUND)
    assert "HFU" in page({**FOUND, "checkpointing": True}) and "MFU" not in page({**FOUND, "checkpointing": True})
    assert "data is not ready" in verdict({**FOUND, "ms": {**FOUND["ms"], "data": 30.0}})


def test_a_run_without_a_profile_has_no_page(tmp_path):
    assert write_profile(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--method", "full", "--precision", "bf16"), ("--checkpointing",)], ids=" ".join)
def test_sft_leaves_the_page_the_picture_and_the_trace(minift, small_model, data, tmp_path, options):  # noqa: F811
    run = tmp_path / "run"
    status, said, complaint = minift("sft", "--model", small_model, "--data", data / "pairs.jsonl", "--out", run, "--max-steps", 10, "--epochs", 99,
                                     "--batch-tokens", 128, "--samples", 0, "--precision", "fp32", "--held-out", 0.3, "--profile", *options)    # fmt: skip
    assert status == 0 and not complaint and f"More: {run / 'profile.md'}" in said
    text = (run / "profile.md").read_text()
    assert "Steps 4 to 7" in text and ("HFU" in text) == ("--checkpointing" in options)
    assert (run / "profile.png").read_bytes()[:4] == b"\x89PNG" and (run / "trace.json.gz").stat().st_size > 1000
    found = json.loads((run / "profile.json").read_text())
    assert 0 < utilisation(found)["share"] < 1 and found["dtype"] == ("bfloat16" if "bf16" in options else "float32")


def test_pretrain_has_it_too(minift, book, tmp_path):  # noqa: F811
    options = [*FLAGS, "--context", 64, "--max-steps", 5, "--profile"]
    status, _, complaint = minift("pretrain", "--data", book, "--out", tmp_path / "run", *options)
    assert status == 0 and not complaint and "| loss |" in (tmp_path / "run" / "profile.md").read_text()
    found = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert found["foretold"]["activations"] == pytest.approx(found["measured"]["activations"], rel=0.3)          # all logits are kept here


ROWS = {
    "dpo": {"prompt": "a red sun number {} is", "chosen": " red.", "rejected": " a blue one."},
    "reward": {"prompt": "a red sun number {} is", "chosen": " red.", "rejected": " a blue one."},
    "embed": {"anchor": "a red sun number {}", "positive": "{} suns are red"},
    "classify": {"text": "a sun number {}", "label": "red"},
}


@pytest.mark.parametrize("verb", ROWS)
def test_every_recipe_of_the_loop_has_it(minift, small_model, tmp_path, verb):
    rows = [{name: text.format(i) for name, text in ROWS[verb].items()} for i in range(60)]
    if verb == "classify":
        rows = [{**row, "label": ("red", "blue")[i % 2]} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ("--batch-tokens", 200) if verb in ("dpo", "reward") else ("--rows", 8)
    status, said, complaint = minift(verb, "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run", "--method", "lora", *sizes,
                                     "--held-out", 0.3, "--max-steps", 5, "--epochs", 9, "--precision", "fp32", "--profile")    # fmt: skip
    assert status == 0 and not complaint and "profile.md" in said
    found = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert found["timed"] == [1, 2, 3] and found["flop"] > 0 and found["tokens"] > 0 and found["ms"]["forward"] > 0 and found["ms"]["loss"] > 0
    assert found["foretold"]["activations"] == pytest.approx(found["measured"]["activations"], rel=0.6)          # their losses are not in the formula


def test_learning_from_rewards_has_other_steps(minift, small_model, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red sun is"}\n' * 9)
    status, _, complaint = minift("grpo", "--model", small_model, "--data", tmp_path / "prompts.jsonl", "--out", tmp_path / "run", "--max-steps", 1,
                                  "--rewards", "length:3", 1.0, "--profile")    # fmt: skip
    assert status == 2 and "--profile is for recipes" in complaint
