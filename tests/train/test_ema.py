"""Averages of the weights: by hand, what is measured and kept with them, and the same after a stop."""

import itertools
import json

import pytest
import torch
from torch import nn

from minift.data.batches import pad
from minift.errors import InputError
from minift.folder import load
from minift.recipes.sft import Config, choose_parameters
from minift.train import ema
from minift.train.ema import Averages
from minift.train.loop import LoopConfig, fit
from tests.train.test_loop import EIGHT, Bigram, exact_loss

BATCHES = [pad([example]) for example in EIGHT]


def one(value: float, dtype=torch.float64) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False, dtype=dtype)
    layer.weight.data.fill_(value)
    return layer


def test_worked_by_hand():
    # d = 0.5; weights 1, 2, 4 after the steps, 100 before them: 1, (2 + 0.5) / 1.5, (4 + 1 + 0.25) / 1.75. The 100 is no part of it
    layer = one(100.0)
    averages = Averages(layer, 0.5)
    for weight, average in ((1.0, 1.0), (2.0, 2.5 / 1.5), (4.0, 5.25 / 1.75)):
        layer.weight.data.fill_(weight)
        averages.update()
        assert averages.averages["weight"].item() == pytest.approx(average, rel=1e-12)


def test_inside_the_model_has_the_averages_and_after_it_its_weights_to_the_bit():
    layer = one(0.1, torch.float32)
    averages = Averages(layer, 0.9)
    for weight in (0.3, 0.7):
        layer.weight.data.fill_(weight)
        averages.update()
    before = layer.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), averages.applied():
        assert layer.weight.item() == pytest.approx((0.7 + 0.9 * 0.3) / 1.9)
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)
    averages.into_model()
    assert layer.weight.item() == pytest.approx((0.7 + 0.9 * 0.3) / 1.9)


def test_an_interruption_just_behind_an_evaluation_leaves_the_weights(tmp_path, monkeypatch):
    class Early:
        """Ctrl-C where no block protects from it yet."""
        left = 1

        def __enter__(self):
            Early.left -= 1
            if Early.left == 0:
                raise KeyboardInterrupt

        def __exit__(self, *error):
            pass

    falling = itertools.count(99, -1)                                              # so the last weights are the result

    def run(name, **more):
        return train(tmp_path / name, lambda: {"loss": next(falling)}, ema=0.8, eval_every=2, **more)

    whole, _ = run("whole")
    monkeypatch.setattr(ema, "unbroken", Early)
    _, outcome = run("cut")
    assert outcome.stopped == "interrupted" and outcome.steps == 2
    parts, _ = run("cut", resume=True, seed=99)
    assert torch.equal(whole.table, parts.table)


def test_only_what_trains_is_averaged_and_small_dtypes_in_float32():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    averages = Averages(model, 0.999)
    assert averages.averages.keys() == {"1.weight", "1.bias"} and averages.averages["1.weight"].dtype == torch.float32
    for _ in range(50):                                                            # in bfloat16, steps of a thousandth would be lost
        averages.update()
    model[1].weight.data.add_(1.0)
    averages.update()
    moved = averages.averages["1.weight"] - (model[1].weight.detach().float() - 1)
    assert 0.015 < moved.mean() < 0.025                                            # one step of 51


def train(folder, evaluate=None, resume=False, seed=0, model=None, **settings):
    model = Bigram(seed) if model is None else model
    config = LoopConfig(**{**dict(lr=0.1, epochs=1, precision="fp32", clip=0, schedule="constant", warmup=0.0), **settings})
    outcome = fit(model, lambda epoch: BATCHES, exact_loss, config, folder, evaluate, resume, quiet=True)
    return model, outcome


def weights_of_each_step(folder, **settings):
    """The weights after each step of a run without averages."""
    seen, model = [], Bigram()
    config = LoopConfig(**{**dict(lr=0.1, epochs=1, precision="fp32", clip=0, schedule="constant", warmup=0.0), **settings})
    fit(model, lambda epoch: BATCHES, exact_loss, config, folder, quiet=True, after_step=lambda step, steps: seen.append(model.table.detach().clone()))
    return seen


def corrected_mean(weights, decay):
    shares = [decay ** (len(weights) - 1 - i) for i in range(len(weights))]
    return sum(share * w for share, w in zip(shares, weights)) / sum(shares)


def test_the_result_is_the_average_of_a_run_that_steps_as_without(tmp_path):
    passed = weights_of_each_step(tmp_path / "plain")
    model, _ = train(tmp_path / "averaged", ema=0.8)
    torch.testing.assert_close(model.table.detach(), corrected_mean(passed, 0.8), rtol=0, atol=1e-12)


def test_evaluations_and_the_best_weights_are_averages_too(tmp_path):
    passed, seen, scores = weights_of_each_step(tmp_path / "plain"), [], iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0])
    model = Bigram()

    def evaluate():
        seen.append(model.table.detach().clone())
        return {"loss": next(scores)}

    train(tmp_path / "averaged", evaluate, ema=0.8, eval_every=1, model=model)
    for step, table in enumerate(seen, 1):
        torch.testing.assert_close(table, corrected_mean(passed[:step], 0.8), rtol=0, atol=1e-12)
    assert torch.equal(model.table, seen[1])                                       # the best: after two steps


def test_trap37_going_on_is_the_same_to_the_bit(tmp_path):
    whole, _ = train(tmp_path / "whole", ema=0.8)
    train(tmp_path / "parts", ema=0.8, max_steps=3)
    parts, outcome = train(tmp_path / "parts", resume=True, seed=99, ema=0.8)
    assert outcome.steps == 8 and torch.equal(whole.table, parts.table)


def test_a_checkpoint_of_other_weights_or_of_none_is_refused():
    averages = Averages(one(1.0), 0.5)
    for state in ({"state": {}, "param_groups": []}, {"step": 1, "averages": {"other": torch.ones(1, 1)}}):
        with pytest.raises(InputError, match="the checkpoint holds no averages of these weights"):
            averages.load_state_dict(state)


def test_adalora_is_refused(small_model):
    with pytest.raises(InputError, match="--ema cannot go with --method adalora"):
        choose_parameters(load(small_model)[0], Config(data=(), out="", method="adalora", ema=0.9))


def test_a_run_with_averages_is_measured_with_them(minift, small_model, tmp_path):
    rows = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "grey") for thing in ("sun", "cat", "tea", "sea")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("sft", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--held-out", 0.3, "--samples", 0, "--epochs", 9, "--max-steps", 4, "--lr", 1e-2,
            "--precision", "fp32")    # fmt: skip
    status, said, complaint = minift(*base, "--out", tmp_path / "run", "--ema", 0.9)
    assert status == 0, complaint
    lines = [json.loads(line) for line in open(tmp_path / "run" / "metrics.jsonl")]
    best = min(line["eval_loss"] for line in lines if "eval_loss" in line)
    assert f"-> {best:.3f} nats/token" in said
