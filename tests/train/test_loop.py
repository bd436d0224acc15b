"""The loop's promises, on models small enough to work out by hand."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from minift.data.batches import Batch, Example, pad
from minift.errors import InputError
from minift.losses.sft import next_token
from minift.train.kept import Checkpoints
from minift.train.loop import LoopConfig, fit


class Bigram(nn.Module):
    """The smallest language model: token t alone decides about token t + 1. Float64, so that 1e-12 means something."""

    def __init__(self, seed=0):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))

    def forward(self, ids):
        return self.table[ids]


def exact_loss(model, batch):
    """next_token in float64: the library's own sums in float32, which would hide differences below 1e-6."""
    logits, counted = model(batch.token_ids)[:, :-1], batch.loss_mask[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.token_ids[:, 1:], reduction="none")
    return (nats * counted).sum(), counted.sum()


def ragged(lengths, seed=1):
    dice = torch.Generator().manual_seed(seed)
    return [Example(torch.randint(7, (n,), generator=dice).tolist(), [False] + [True] * (n - 1)) for n in lengths]


EIGHT = ragged([2, 9, 3, 5, 11, 2, 7, 4])


def train(tmp_path, batches, name="run", loss=exact_loss, **settings):
    model = Bigram()
    settings = {"lr": 0.1, "epochs": 1, "precision": "fp32", "clip": 0, **settings}
    outcome = fit(model, lambda epoch: batches, loss, LoopConfig(**settings), tmp_path / name, quiet=True)
    return model, outcome, [json.loads(line) for line in open(tmp_path / name / "metrics.jsonl")]


def test_trap01_one_batch_of_eight_equals_two_of_four_equals_eight_of_one(tmp_path):
    results = []
    for size in (8, 4, 1):
        batches = [pad(EIGHT[i : i + size]) for i in range(0, 8, size)]
        results.append(train(tmp_path, batches, str(size), accumulate=8 // size))
    for model, outcome, metrics in results[1:]:
        assert outcome.steps == 1
        assert torch.allclose(model.table, results[0][0].table, rtol=0, atol=1e-12)
        assert math.isclose(metrics[0]["grad_norm"], results[0][2][0]["grad_norm"], rel_tol=1e-12)
        assert math.isclose(metrics[0]["loss"], results[0][2][0]["loss"], rel_tol=1e-12)


def test_trap02_ten_batches_at_accumulation_four_are_three_steps_and_the_last_is_scaled_by_its_own_tokens(tmp_path):
    batches = [pad([example]) for example in ragged([3, 8, 2, 5, 4, 9, 6, 2, 7, 3])]
    _, outcome, metrics = train(tmp_path, batches, accumulate=4, schedule="constant", warmup=0)
    assert outcome.steps == len(metrics) == 3
    assert [m["tokens"] for m in metrics] == [2 + 7 + 1 + 4, 3 + 8 + 5 + 1, 6 + 2]
    alone = train(tmp_path, batches[8:], "alone", accumulate=4)[2][0]["loss"]
    fresh = train(tmp_path, batches, "still", accumulate=4, lr=0.0)[2][2]["loss"]     # lr 0: the weights do not move
    assert math.isclose(fresh, alone, rel_tol=1e-12)


def test_the_schedule_counts_optimizer_steps_not_micro_batches(tmp_path):
    batches = [pad([example]) for example in EIGHT]
    _, _, metrics = train(tmp_path, batches, accumulate=2, schedule="linear", warmup=0, lr=1.0)
    assert [m["lr"] for m in metrics] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_trap06_a_batch_without_targets_is_harmless(tmp_path):
    nothing = Batch(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool))
    model, outcome, metrics = train(tmp_path, [nothing, pad(EIGHT[:2])], weight_decay=0.0)
    assert outcome.steps == 2 and metrics[0]["loss"] == 0.0 and metrics[0]["grad_norm"] == 0.0
    assert torch.isfinite(model.table).all()


def test_going_on_after_a_stop_ends_where_the_uninterrupted_run_ends(tmp_path):
    batches = [pad([example]) for example in EIGHT]
    whole = train(tmp_path, batches, "whole", epochs=2, schedule="cosine", max_steps=11)[0]
    calls = 0

    def interrupting(model, batch):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return exact_loss(model, batch)

    _, outcome, _ = train(tmp_path, batches, "cut", loss=interrupting, epochs=2, max_steps=11)
    assert outcome.stopped == "interrupted" and outcome.steps == 5
    model = Bigram(seed=99)                                                        # other weights: all must come from the checkpoint
    config = LoopConfig(lr=0.1, epochs=2, precision="fp32", clip=0, max_steps=11)
    assert fit(model, lambda epoch: batches, exact_loss, config, tmp_path / "cut", resume=True, quiet=True).steps == 11
    assert torch.equal(model.table, whole.table)


def test_a_loss_that_is_not_a_number_stops_before_the_weights_are_touched(tmp_path):
    seen = []

    def poisoned(model, batch):
        seen.append(model.table.detach().clone())
        total, count = exact_loss(model, batch)
        return (total * float("nan") if len(seen) == 4 else total), count

    model = Bigram()
    config = LoopConfig(lr=0.1, epochs=1, precision="fp32", save_every=2)
    with pytest.raises(FloatingPointError, match=r"nan at step 4 \(epoch 1, batch 4\).*the checkpoint of step 2 is .*step-2.safetensors"):
        fit(model, lambda epoch: [pad([e]) for e in EIGHT], poisoned, config, tmp_path, quiet=True)
    assert torch.equal(model.table, seen[3])
    assert Checkpoints(tmp_path).newest()["step"] == 2


def test_the_best_weights_are_kept_and_patience_stops(tmp_path):
    scores = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    kept = []
    model = Bigram()

    def evaluate():
        kept.append(model.table.detach().clone())
        return {"loss": next(scores)}

    config = LoopConfig(lr=0.1, epochs=1, eval_every=1, patience=2, precision="fp32")
    outcome = fit(model, lambda epoch: [pad([e]) for e in EIGHT], exact_loss, config, tmp_path, evaluate, quiet=True)
    assert (outcome.stopped, outcome.steps, outcome.best) == ("patience", 4, 2.0)
    assert torch.equal(model.table, kept[1])


def test_clipping_bounds_the_step_by_the_whole_gradients_norm(tmp_path):
    metrics = train(tmp_path, [pad(EIGHT)], clip=1e-3)[2]
    assert metrics[0]["grad_norm"] > 1e-3                                          # logged as it was, before clipping
    model = Bigram()
    total, count = exact_loss(model, pad(EIGHT))
    (total / count).backward()
    assert math.isclose(metrics[0]["grad_norm"], model.table.grad.norm().item(), rel_tol=1e-12)


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    model = Bigram().requires_grad_(False)
    with pytest.raises(InputError, match="every parameter is frozen"):
        fit(model, lambda epoch: [pad(EIGHT)], exact_loss, LoopConfig(), tmp_path, quiet=True)


def test_the_librarys_loss_is_the_exact_one_in_float32():
    model, batch = Bigram(), pad(EIGHT)
    total, count = next_token(model(batch.token_ids), batch.token_ids, batch.loss_mask)
    exact, _ = exact_loss(model, batch)
    assert count == sum(len(e.ids) - 1 for e in EIGHT) and math.isclose(total.item(), exact.item(), rel_tol=1e-6)


def test_who_wants_to_is_told_of_every_step_while_its_gradients_are_there(tmp_path):
    told, model, batches = [], Bigram(), [pad([example]) for example in EIGHT[:5]]
    tell = lambda step, steps: told.append((step, steps, model.table.grad is not None))
    fit(model, lambda epoch: batches, exact_loss, LoopConfig(epochs=1, accumulate=2), tmp_path, quiet=True, after_step=tell)
    assert told == [(1, 3, True), (2, 3, True), (3, 3, True)]


def test_an_evaluation_that_does_not_count_is_never_the_best(tmp_path):
    losses, model, batches = iter([1.0, 3.0, 2.0, 2.5]), Bigram(), [pad([example]) for example in EIGHT[:4]]
    outcome = fit(model, lambda epoch: batches, exact_loss, LoopConfig(epochs=1, eval_every=1), tmp_path, lambda: {"loss": next(losses)}, quiet=True,
                  counts=lambda step, steps: step > 1)    # fmt: skip
    assert outcome.best == 2.0


def test_a_recipe_may_add_numbers_to_each_step(tmp_path):
    asked = []
    settings = LoopConfig(lr=0.1, epochs=2, precision="fp32")
    fit(Bigram(), lambda epoch: [pad(EIGHT)], exact_loss, settings, tmp_path, quiet=True, metrics=lambda: asked.append(1) or {"margin": len(asked)})
    assert [line["margin"] for line in map(json.loads, open(tmp_path / "metrics.jsonl"))] == [1, 2]


def test_trap37_a_step_that_is_cut_short_is_taken_again_with_the_same_random_numbers(tmp_path):
    """Interrupted when a micro-batch of step 3 has drawn its dropout already; the rate is not zero at any step."""
    batches, calls = [pad([example]) for example in EIGHT], []

    def with_dropout(model, batch):
        total, count = exact_loss(model, batch)
        return total * nn.functional.dropout(torch.ones((), dtype=torch.float64), 0.5), count

    def interrupting(model, batch):
        value = with_dropout(model, batch)
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return value

    whole = train(tmp_path, batches, "whole", loss=with_dropout, accumulate=2)[0]
    assert train(tmp_path, batches, "cut", loss=interrupting, accumulate=2)[1].steps == 2
    model, config = Bigram(seed=99), LoopConfig(lr=0.1, epochs=1, precision="fp32", clip=0, accumulate=2)
    fit(model, lambda epoch: batches, with_dropout, config, tmp_path / "cut", resume=True, quiet=True)
    assert torch.equal(model.table, whole.table)


def test_an_evaluation_without_a_cost_is_never_the_best(tmp_path):
    costs, seen, model = iter([math.nan, -0.5, -0.9, -0.8]), [], Bigram()
    tell = lambda step, steps: seen.append(model.table.detach().clone())
    config = LoopConfig(lr=0.1, epochs=1, precision="fp32", clip=0, eval_every=1, keep_last=1, patience=3)
    batches = [pad([example]) for example in EIGHT[:4]]
    outcome = fit(model, lambda epoch: batches, exact_loss, config, tmp_path / "run", lambda: {"loss": 1.0}, quiet=True, after_step=tell, cost=lambda values: next(costs))
    assert outcome.best == -0.9 and outcome.stopped == "finished" and torch.equal(model.table, seen[2])


def test_with_no_cost_at_all_the_last_weights_are_the_result(tmp_path):
    model, config = Bigram(), LoopConfig(lr=0.1, epochs=1, precision="fp32", eval_every=1, patience=1)
    batches = [pad([example]) for example in EIGHT[:4]]
    outcome = fit(model, lambda epoch: batches, exact_loss, config, tmp_path / "run", lambda: {"loss": 1.0}, quiet=True, cost=lambda values: math.nan)
    assert outcome.best is None and outcome.steps == 4 and Checkpoints(tmp_path / "run").best_step() is None


def test_epochs_of_other_lengths_are_no_epochs_of_this_loop(tmp_path):
    epochs = [[pad([example]) for example in EIGHT[:n]] for n in (4, 2)]
    with pytest.raises(ValueError, match="epoch 1 has 2 micro-batches, 1 steps of 2; the first had 2 steps"):
        fit(Bigram(), lambda epoch: epochs[epoch], exact_loss, LoopConfig(epochs=2, precision="fp32", accumulate=2), tmp_path / "run", quiet=True)


def test_other_data_do_not_go_on_with_a_run(tmp_path):
    batches = [pad([example]) for example in EIGHT]
    go_on = lambda batches: fit(Bigram(), lambda epoch: batches, exact_loss, LoopConfig(epochs=2, precision="fp32"), tmp_path / "run", resume=True, quiet=True)
    train(tmp_path, batches, max_steps=3)
    for others in (batches[::-1], batches[:-1], [pad(EIGHT)], [pad([Example(EIGHT[0].ids, [False] * 2)]), *batches[1:]]):
        with pytest.raises(InputError, match="the training data are not those that this run was begun with"):
            go_on(others)
    assert go_on(batches).steps == 16


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    batches = [pad([example]) for example in EIGHT]

    calls = []

    def meanwhile(model, batch):
        calls.append(1)
        if len(calls) == 3:
            train(tmp_path, batches)
        return exact_loss(model, batch)

    with pytest.raises(InputError, match="another process is training in .*run: wait until it has ended"):
        train(tmp_path, batches, loss=meanwhile, save_every=1)
    assert (tmp_path / "run/checkpoints/step-2.safetensors").exists()                  # who is refused takes nothing away
    train(tmp_path, batches)


def test_only_a_run_that_can_be_resumed_says_how(tmp_path, capsys):
    @dataclass(frozen=True)
    class Resumable(LoopConfig):
        resume: bool = False

    def interrupted(model, batch):
        raise KeyboardInterrupt

    for config in (LoopConfig, Resumable):
        fit(Bigram(), lambda epoch: [pad(EIGHT)], interrupted, config(epochs=1, precision="fp32"), tmp_path / config.__name__)
        assert ("--resume to go on" in capsys.readouterr().out) == (config is Resumable)
