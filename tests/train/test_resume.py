"""A run that was interrupted and gone on with ends with the same bits as one that never stopped (trap 37): every method, every recipe, every
optimizer, and every place at which Ctrl-C may come. In processes that are killed: test_kills.py."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from minift.recipes import sft
from minift.recipes.methods import METHODS
from minift.train import checkpoint, loop, state_file
from minift.train.adamw import AdamW
from minift.train.kept import Checkpoints
from minift.train.log import read_metrics
from tests.train.test_state_file import same

WORDS = ("red", "blue", "green", "grey", "white", "black")
ROWS = {
    "sft": [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in WORDS for thing in ("sun", "cat", "tea")],
    "pairs": [{"prompt": f"say {word} {i}", "chosen": f" {word} please", "rejected": f" no {word} {i}"} for i, word in enumerate(WORDS * 3)],
    "embed": [{"anchor": f"{word} {i}", "positive": f"{i} the {word}"} for i, word in enumerate(WORDS * 6)],
    "classify": [{"text": f"a {word} thing, {i}", "label": word} for i, word in enumerate(WORDS * 4)],
}
NEEDED = {"tokens": ("--options", "ids", "5,7"), "bitfit": ("--options", "add-missing", "true"), "adalora": ("--options", "init-r", "3", "target-r", "2")}
COMMON = ("--precision", "fp32", "--accumulate", 2, "--epochs", 9, "--lr", 1e-2)
"""Two micro-batches to a step; the options below make epochs of four micro-batches at least, so the fourth is the second of its step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "book.txt").write_text("\n\n".join(f"The {word} {thing} of {number} is {word}." for word in WORDS for thing in ("sun", "cat") for number in range(30)))
    return folder


def result(folder):
    """The tensors a run wrote."""
    files = sorted(file for file in folder.rglob("*.safetensors") if file.parent.name != "checkpoints")
    assert files
    return {f"{file.relative_to(folder)} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def equal(one, other):
    """The same result, the same numbers on the way, and the same state to go on from: weights, averages, random numbers, what was the best."""
    a, b = result(one), result(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    keep = lambda line: {name: value for name, value in line.items() if not name.endswith("_per_s")}
    assert [keep(line) for line in read_metrics(one)] == [keep(line) for line in read_metrics(other)]
    kept = [Checkpoints(folder) for folder in (one, other)]
    assert max(kept[0].scores) == max(kept[1].scores) and kept[0].best_step() == kept[1].best_step()
    for step in kept[0].scores.keys() & kept[1].scores.keys():                     # an interruption leaves one of its own
        assert same(checkpoint.read(kept[0].file(step)), checkpoint.read(kept[1].file(step)))


def interrupt(monkeypatch, at):
    """Ctrl-C as the micro-batch number `at` of this run begins; those before it have drawn their dropout."""
    honest, calls = loop.autocast, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(loop, "autocast", counted)


@pytest.fixture
def compare(minift, tmp_path, monkeypatch):
    """Run a command line whole, and again interrupted in the middle of its second step and resumed."""

    def run(*command, at=4, after=1, **places):
        status, _, complaint = minift(*command, "--out", tmp_path / "whole")
        assert status == 0, complaint
        with monkeypatch.context() as patched:
            interrupt(patched, at)
            status, said, complaint = minift(*command, "--out", tmp_path / "parts")
        assert status == 1 and f"interrupted after step {after} of" in said, complaint
        status, _, complaint = minift(*command, "--out", tmp_path / "parts", "--resume")
        assert status == 0, complaint
        equal(tmp_path / "whole", tmp_path / "parts")

    return run


@pytest.fixture
def tuned(data, small_model):
    """The command line of a small sft run."""
    return ("sft", "--model", small_model, "--data", data / "sft.jsonl", "--held-out", 0.3, "--samples", 0, "--batch-tokens", 60, "--max-steps", 4, "--eval-every", 3, *COMMON)


def options(method):
    known = METHODS[method].fields()
    return (*(("--rank", 2) if "rank" in known else ()), *(("--lora-dropout", 0.2) if "dropout" in known else ()), *NEEDED.get(method, ()))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "fusion"])
def test_trap37_every_method_goes_on_to_the_bit(compare, tuned, method):
    compare(*tuned, "--method", method, *options(method))


def test_trap37_a_fusion_goes_on_to_the_bit(compare, minift, tuned, tmp_path):
    for name in ("one", "two"):
        assert minift(*tuned, "--method", "pfeiffer", "--out", tmp_path / name, "--seed", len(name) + ord(name[0]), "--max-steps", 1)[0] == 0
    compare(*tuned, "--method", "fusion", "--options", "adapters", f"{tmp_path / 'one/adapter'},{tmp_path / 'two/adapter'}")


def test_trap37_a_base_in_four_bits_goes_on_to_the_bit(compare, tuned):
    compare(*tuned, "--method", "lora", "--quantize", "nf4", *options("lora"))


@pytest.mark.parametrize("more", [("--ema", 0.9), ("--neftune", 5.0), ("--schedule", "wsd", "--cooldown", 0.5), ("--checkpointing",), ("--batching", "bucketed"),
                                  ("--eval-every", 1, "--keep-best", 2)], ids=str)    # fmt: skip
def test_trap37_every_option_of_the_loop_goes_on_to_the_bit(compare, tuned, more):
    compare(*tuned, *options("lora"), *more)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "lion", "sgd", "galore", "muon"])
def test_trap37_every_optimizer_goes_on_to_the_bit_in_pre_training_with_dropout(compare, data, optimizer):
    """The matrices are large enough to have averages in 8 bits, and directions for GaLore to look for anew after the interruption."""
    own = ("--galore-rank", 4, "--galore-every", 2) if optimizer == "galore" else ()
    shape = ("--vocab-size", 340, "--hidden-size", 64, "--layers", 2, "--heads", 2, "--kv-heads", 1, "--mlp-size", 80, "--context", 24, "--batch-size", 8)
    compare("pretrain", "--data", data / "book.txt", *shape, "--dropout", 0.2, "--optimizer", optimizer, *own, "--max-steps", 4, "--dtype", "float32", *COMMON)


@pytest.mark.parametrize("verb, own", [
    ("dpo", ("--data", "pairs", "--batch-tokens", 80, "--samples", 0)), ("dpo", ("--data", "pairs", "--batch-tokens", 80, "--samples", 0, "--loss", "orpo")),
    ("reward", ("--data", "pairs", "--batch-tokens", 80, "--samples", 0)), ("embed", ("--data", "embed", "--rows", 6, "--learn-temperature")),
    ("classify", ("--data", "classify", "--rows", 5)),
], ids=str)    # fmt: skip
def test_trap37_every_recipe_goes_on_to_the_bit(compare, data, small_model, verb, own):
    files = [data / f"{word}.jsonl" if word in ROWS else word for word in own]
    compare(verb, "--model", small_model, *files, "--method", "lora", *options("lora"), "--held-out", 0.3, "--max-steps", 4, "--eval-every", 2, *COMMON)


# ---- wherever Ctrl-C comes


def real(calls, at):
    """A SIGINT, which may have to wait, at the call number `at`."""
    calls.append(1)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGINT)


PLACES = {
    "before anything": (loop, "_windows", 1, 0),
    "between forward and backward": (torch.Tensor, "backward", 5, 2),
    "after the optimizer's step": (AdamW, "step", 3, 3),
    "after the step's line": (loop.Log, "step", 2, 2),
    "an evaluation begins": (sft, "evaluate", 1, 2),
    "the last evaluation begins": (sft, "evaluate", 2, 4),
    "after an evaluation's line": (loop.Log, "evaluation", 1, 2),
    "a save": (state_file, "_bytes", 9, 2),
    "the last save": (Checkpoints, "write", 2, 4),
}
"""home, name, the call at which the signal comes, steps taken by then."""


@pytest.mark.parametrize("place", PLACES)
def test_trap37_wherever_ctrl_c_comes_the_run_ends_where_a_whole_one_ends(minift, tuned, tmp_path, monkeypatch, place):
    """sft.evaluate draws random numbers here: an evaluation that is begun again begins with the same ones."""
    home, name, at, after = PLACES[place]
    evaluate = sft.evaluate
    monkeypatch.setattr(sft, "evaluate", lambda *given: evaluate(*given) + 0.1 * torch.rand(()).item())
    command = (*tuned, *options("lora"), "--eval-every", 2)
    assert minift(*command, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patched:
        honest, calls = getattr(home, name), []

        def signalled(*given, **more):
            found = honest(*given, **more) if place.startswith("after") else None
            real(calls, at)
            return found if place.startswith("after") else honest(*given, **more)

        patched.setattr(home, name, signalled)
        status, said, complaint = minift(*command, "--out", tmp_path / "parts")
    assert status == 1 and f"interrupted after step {after} of 4" in said, complaint
    status, _, complaint = minift(*command, "--out", tmp_path / "parts", "--resume")
    assert status == 0, complaint
    equal(tmp_path / "whole", tmp_path / "parts")


def test_a_run_may_be_interrupted_at_every_step_of_its_way(minift, tuned, tmp_path, monkeypatch):
    command = (*tuned, *options("lora"), "--eval-every", 2)
    assert minift(*command, "--out", tmp_path / "whole")[0] == 0
    said, more = "", ()
    while "interrupted after step 3" not in said:
        with monkeypatch.context() as patched:
            interrupt(patched, 4 if not more else 3)                               # in the middle of a step, one step on each time
            _, said, _ = minift(*command, "--out", tmp_path / "parts", *more)
        more = ("--resume",)
    assert minift(*command, "--out", tmp_path / "parts", "--resume")[0] == 0
    equal(tmp_path / "whole", tmp_path / "parts")


# ---- what else is not to be lost


def test_patience_that_has_run_out_stays_so(minift, tuned, tmp_path, monkeypatch):
    """Killed after the last checkpoint and before its result, a run must not go on training when it is resumed."""
    command = (*tuned, "--eval-every", 1, "--patience", 2, "--lr", 0, "--out", tmp_path / "run")
    assert "stopped at step 3 of 4" in minift(*command)[1]
    before = result(tmp_path / "run"), read_metrics(tmp_path / "run")
    monkeypatch.setattr(torch.Tensor, "backward", lambda *given: pytest.fail("another step"))
    status, said, _ = minift(*command, "--resume")
    assert status == 0 and "stopped at step 3 of 4" in said
    assert same(before, (result(tmp_path / "run"), read_metrics(tmp_path / "run")))


def test_evaluations_without_a_better_one_are_counted_across_a_stop(minift, tuned, tmp_path, monkeypatch):
    scores = iter([3.0, 4.0, 5.0, 2.0])
    monkeypatch.setattr(sft, "evaluate", lambda *given: next(scores))
    command = (*tuned, "--eval-every", 1, "--patience", 2, "--out", tmp_path / "run")
    with monkeypatch.context() as patched:
        interrupt(patched, 6)                                                      # in the third step, after 3.0 and 4.0
        assert minift(*command)[0] == 1
    assert "no better held-out loss in 2 evaluations: stopped at step 3" in minift(*command, "--resume")[1] and next(scores) == 2.0


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_its_first_step(minift, tuned, tmp_path):
    command = (*tuned, *options("lora"))
    assert minift(*command, "--out", tmp_path / "whole")[0] == minift(*command, "--out", tmp_path / "run")[0] == 0
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    status, said, _ = minift(*command, "--out", tmp_path / "run", "--resume")
    assert status == 0 and "no checkpoint in" in said and "starting from the first step" in said
    equal(tmp_path / "whole", tmp_path / "run")


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_gone_on_with(minift, tuned, tmp_path):
    command = (*tuned, *options("lora"), "--save-every", 1, "--keep-last", 3)
    assert minift(*command, "--out", tmp_path / "whole")[0] == minift(*command, "--out", tmp_path / "run")[0] == 0
    newest = tmp_path / "run/checkpoints/step-4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    status, said, _ = minift(*command, "--out", tmp_path / "run", "--resume")
    assert status == 0 and "step-4.safetensors is cut short, damaged, or no checkpoint" in said and "going on from step 3" in said
    equal(tmp_path / "whole", tmp_path / "run")


def test_with_no_whole_checkpoint_the_run_says_so_and_ends(minift, tuned, tmp_path):
    command = (*tuned, "--out", tmp_path / "run")
    assert minift(*command)[0] == 0
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(b"PK")
    status, _, complaint = minift(*command, "--resume")
    assert status == 2 and "no earlier checkpoint in" in complaint and "start again with --overwrite" in complaint


def test_checkpoints_are_kept_as_asked(minift, tuned, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(sft, "evaluate", lambda *given: next(scores))
    assert minift(*tuned, "--eval-every", 1, "--keep-last", 1, "--keep-best", 2, "--out", tmp_path / "run")[0] == 0
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["step-2.safetensors", "step-4.safetensors"]
    for option in ("--keep-last", "--keep-best"):
        status, _, complaint = minift(*tuned, option, 0, "--out", tmp_path / "none")
        assert status == 2 and f"{option} is 0: wanted 1 or more" in complaint


def test_a_best_checkpoint_between_two_saves_is_one_to_go_on_from(minift, tuned, tmp_path, monkeypatch):
    """Evaluated at step 2, saved as the best one; the next save is due at step 3, in whose middle the process dies without a word."""
    class Dead(BaseException):
        pass

    command = (*tuned, *options("lora"), "--eval-every", 2, "--save-every", 3)
    assert minift(*command, "--out", tmp_path / "whole")[0] == 0
    assert Checkpoints(tmp_path / "whole").scores[3] is None                       # not the evaluation of step 2's weights
    with monkeypatch.context() as patched:
        calls, backward = [], torch.Tensor.backward

        def dying(*given):
            calls.append(1)
            if len(calls) == 5:
                raise Dead
            return backward(*given)

        patched.setattr(torch.Tensor, "backward", dying)
        with pytest.raises(Dead):
            minift(*command, "--out", tmp_path / "parts")
    assert sorted(Checkpoints(tmp_path / "parts").scores) == [2]
    assert minift(*command, "--out", tmp_path / "parts", "--resume")[0] == 0
    equal(tmp_path / "whole", tmp_path / "parts")
