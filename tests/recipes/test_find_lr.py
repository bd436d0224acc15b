"""minift find-lr: sft's options in, a rate, its curve and a picture out, and nothing else."""

import json

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file

from minift.recipes import find_lr
from minift.train.lr_finder import Sweep


@pytest.fixture
def find(minift, small_model, tmp_path):
    rows = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "grey", "green") for thing in ("sun", "cat", "tea", "sea")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*options):
        return minift("find-lr", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run", "--held-out", 0.3, "--batch-tokens", 64,
                      "--precision", "fp32", "--lowest", 1e-4, "--highest", 10, "--steps", 30, *options)    # fmt: skip

    return run


@pytest.mark.parametrize("options", [("--method", "lora"), ("--method", "full", "--optimizer", "lion", "--neftune", 5, "--checkpointing"),
                                     ("--method", "lora+", "--optimizer", "adafactor", "--batching", "bucketed")])    # fmt: skip
def test_it_suggests_a_rate_and_writes_the_curve_and_the_picture(find, small_model, tmp_path, options):
    before = {path.name: path.read_bytes() for path in small_model.iterdir()}
    status, said, complaint = find(*options)
    assert status == 0, complaint
    found = json.loads((tmp_path / "run/lr.json").read_text())
    rates, smooth = found["rates"], found["smooth"]
    assert f"suggested: --lr {found['suggestion']:.1e} (a tenth of the rate with the lowest loss)" in said
    assert found["suggestion"] == pytest.approx(rates[smooth.index(min(smooth))] / 10) and found["lowest_loss_at"] == rates[smooth.index(min(smooth))]
    assert found["steepest"] in rates and rates[0] == 1e-4 and rates == sorted(rates) and len(rates) == len(smooth) == len(found["losses"])
    assert matplotlib.image.imread(tmp_path / "run/lr.png").shape[:2] == (520, 936)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "lr.json", "lr.png"]
    assert {path.name: path.read_bytes() for path in small_model.iterdir()} == before


def test_sft_with_the_suggested_rate_learns(find, minift, small_model, tmp_path):
    """The rate is 1.0 here, so high that the last bits of a norm decide whether the loss ends at 0.795 or 0.804 of where it began; a rate that did not learn would end at 1, or burst."""
    find()
    rate = json.loads((tmp_path / "run/lr.json").read_text())["suggestion"]
    status, _, complaint = minift("sft", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "sft", "--held-out", 0.3, "--lr", rate, "--epochs", 20,
                                  "--batch-tokens", 64, "--precision", "fp32", "--samples", 0)    # fmt: skip
    assert status == 0, complaint
    losses = [json.loads(line)["loss"] for line in open(tmp_path / "sft/metrics.jsonl") if '"loss"' in line]
    assert losses[-1] < 0.85 * losses[0]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "sft/adapter/adapter_model.safetensors").values())


@pytest.mark.parametrize("losses", [[2.0, 3.0, 5.0, 9.0], [2.0]])
def test_a_loss_that_never_falls_ends_the_run_with_a_picture_and_no_suggestion(find, tmp_path, monkeypatch, losses):
    monkeypatch.setattr(find_lr, "sweep", lambda *_: Sweep([10.0**i for i in range(len(losses))], losses, losses))
    status, said, complaint = find()
    assert status == 1 and "the loss never fell between" in complaint and "suggested" not in said and (tmp_path / "run/lr.png").exists()


def test_a_range_that_ends_too_early_is_said(find):
    status, said, _ = find("--lowest", 1e-4, "--highest", 1e-2)
    assert status == 0 and "the loss still fell at the highest rate: pass a --highest above 0.01" in said


@pytest.mark.parametrize("options, text", [
    (("--lowest", 1, "--highest", 0.1), "--lowest is 1, --highest 0.1: wanted two rates above 0"), (("--lowest", 0), "above 0"), (("--steps", 3), "--steps is 3"),
    (("--lr", 1e-3), "--lr has no effect on a search for the rate: leave it out"), (("--epochs", 2), "--epochs has no effect"), (("--ema", 0.9), "--ema has no effect"),
    (("--schedule", "wsd"), "--schedule has no effect"), (("--resume",), "--resume has no effect"), (("--samples", 0), "--samples has no effect"),
    (("--optimizer", "galore"), "--optimizer galore is for whole weight matrices (--method full or last), and --method lora trains others"),
    (("--method", "full", "--optimizer", "galore"), "wider than --galore-rank 128, and the smaller side of the widest of them is 32"),
])    # fmt: skip
def test_what_cannot_be_or_has_no_effect_is_refused_and_nothing_is_written(find, tmp_path, options, text):
    status, _, complaint = find(*options)
    assert status == 2 and text in " ".join(complaint.split()), complaint
    assert not (tmp_path / "run").exists()
