"""The newcomer's run, in small: a random model, a few steps and judged functions, but the real signatures and docstrings."""

import json
import re

import pytest

from minift.data.pydocs import Pair, pairs, split_of
from minift.errors import InputError
from minift.recipes import quickstart
from minift.recipes.quickstart import Config, Scores, as_row, run, samples_markdown, side_by_side, spread, table
from minift.train.log import read_metrics

SOME = dict(judged=12, max_steps=3, eval_every=2, batch_tokens=512, precision="fp32")


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    return run(Config(out=folder, model=str(small_model), **SOME), quiet=True)


def test_the_run_leaves_a_report_and_everything_it_rests_on(finished):
    for name in ("report.md", "samples.md", "loss.png", "metrics.jsonl", "config.json", "adapter/adapter_config.json",
                 "adapter/adapter_model.safetensors"):    # fmt: skip
        assert (finished.folder / name).stat().st_size > 0, name
    assert (finished.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(finished.folder)
    assert [m["step"] for m in lines if "loss" in m] == [1, 2, 3] and [m["step"] for m in lines if "eval_loss" in m] == [2, 3]
    settings = json.loads((finished.folder / "config.json").read_text())["settings"]
    assert settings["rank"] == 16 and settings["lr"] == 3e-3                       # the resolved settings: defaults too


def test_the_report_holds_the_numbers_of_the_result_and_says_what_was_done(finished, small_model):
    text = (finished.folder / "report.md").read_text()
    for row in table(finished.before, finished.after):
        assert "| " + " | ".join(row) + " |" in text
    assert "12 functions from" in text and "![loss](loss.png)" in text and "LoRA of rank 16" in text and "(32 / 16)" in text
    assert "3 steps" in text and f"--adapter {finished.folder}/adapter --model {small_model}" in text
    trained = 16 * 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)             # rank, layers, in + out of q o, k v, gate up down
    assert re.search(rf"Can {trained:,}\s+new numbers", text)
    section = text.split("**Five functions")[1].split("**Try it.**")[0]
    assert section.count("\n| ") == 2 + 5


def test_training_lowers_the_loss_on_functions_of_modules_it_never_saw(finished):
    assert finished.after.loss < finished.before.loss - 0.01 and len(finished.after.written) == 12 and not finished.interrupted


def test_the_adapter_of_the_report_can_be_used_as_it_says(finished, minift, small_model):
    status, said, _ = minift("generate", "--model", small_model, "--adapter", finished.folder / "adapter", "--prompt", '# a\ndef b():\n    """',
                             "--max-new-tokens", 5)    # fmt: skip
    assert status == 0 and said.startswith('# a\ndef b():\n    """') and len(said) > 24


def test_an_earlier_quickstart_is_replaced_and_nothing_else_is(minift, small_model, tmp_path, monkeypatch):
    few = [pair for pair in pairs("valid") if len(pair.prompt) < 120][:8]
    monkeypatch.setattr(quickstart, "pairs", lambda split, packages: few)
    quick = ("quickstart", "--model", small_model, "--max-steps", 1, "--judged", 4, "--precision", "fp32")
    for seed in (1, 2):
        status, said, _ = minift(*quick, "--out", tmp_path / "run", "--seed", seed)
        assert status == 0 and f"Report: {tmp_path / 'run' / 'report.md'}" in said and f"Result: {tmp_path / 'run' / 'adapter'}" in said
        assert json.loads((tmp_path / "run/config.json").read_text())["settings"]["seed"] == seed
    assert all(name in said for name in ("loss, nats per token", "ROUGE-L", "PEP 257", "truth", "before", "after"))
    status, _, complaint = minift(*quick, "--out", tmp_path / "run", "--method", "adalora", "--options", "tinit", 2, "tfinal", 2)
    assert status == 2 and "1 steps are too few" in complaint and (tmp_path / "run/report.md").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"verb": "sft", "settings": {}}')
    status, _, complaint = minift(*quick, "--out", tmp_path / "mine")
    assert status == 2 and "is in use, and not by an earlier quickstart" in complaint
    assert (tmp_path / "mine/config.json").read_text() == '{"verb": "sft", "settings": {}}'
    status, said, _ = minift(*quick, "--out", tmp_path / "full", "--method", "full")
    text = (tmp_path / "full/report.md").read_text()
    assert status == 0 and "full trains every weight of the model" in text and "LoRA of" not in text and f"--model {tmp_path / 'full'}/model" in text


def test_judged_by_at_least_one_function(small_model, tmp_path):
    with pytest.raises(InputError, match="--judged is 0"):
        run(Config(out=tmp_path / "run", model=str(small_model), judged=0), quiet=True)


def test_the_three_sides_share_no_module():
    sides = [{pair.module for pair in pairs(split)} for split in ("train", "valid", "test")]
    assert all(split_of(module) == split for split, side in zip(("train", "valid", "test"), sides) for module in side)
    assert len(pairs("test")) >= 200                                               # what the judgement needs


def test_a_row_is_the_prompt_and_the_summary():
    row = as_row(Pair("asyncio.locks", '# asyncio.locks\ndef locked(self):\n    """', "Return True if lock is acquired."))
    assert (row.prompt[-9:], row.completion, row.where) == (':\n    """', "Return True if lock is acquired.", "asyncio.locks")


def test_the_table_worked_by_hand():
    before, after = Scores(4.0, 0.125, 0.02, ()), Scores(3.0, 0.375, 0.61, ())
    assert table(before, after) == [
        ["loss, nats per token", "4.000", "3.000", "-25%"],
        ["ROUGE-L", "0.125", "0.375", "+0.250"],
        ["PEP 257 summaries", "2%", "61%", "+59 points"],
    ]


def test_judged_functions_are_spread_over_all_and_samples_over_the_judged():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7] and spread([1, 2], 5) == [1, 2]
    judged = [Pair("m", f'# m\ndef f{i}():\n    """', f"Do {i}.") for i in range(20)]
    shown = side_by_side(judged, Scores(0, 0, 0, tuple("b" * 20)), Scores(0, 0, 0, tuple(map(str, range(20)))))
    assert [after for _, _, after in shown] == ["2", "6", "10", "14", "18"]
    assert len(side_by_side(judged[:3], Scores(0, 0, 0, ("",) * 3), Scores(0, 0, 0, ("",) * 3))) == 3


def test_an_empty_summary_is_shown_as_nothing():
    text = samples_markdown([(Pair("m", '# m\ndef f(a | b):\n    """', "Do it."), "", "Done.")])
    assert text.splitlines()[2] == "| def f(a \\| b) | Do it. | (nothing) | Done. |"
