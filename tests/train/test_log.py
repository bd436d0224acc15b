import importlib.util
import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from minift.errors import InputError
from minift.train import log as module
from minift.train.log import Log, read_metrics


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def console(monkeypatch):
    """What the log prints, as on a pipe or, with terminal=True, on a terminal."""
    out = io.StringIO()
    terminal = [False]
    monkeypatch.setattr(module, "Console", lambda quiet: Console(file=out, quiet=quiet, width=100, force_terminal=terminal[0]))
    return out, terminal


def test_one_line_per_step_and_evaluation_as_they_happen(tmp_path, clock):
    with Log(tmp_path, steps=2, quiet=True) as log:
        clock[0] += 2
        log.step(1, loss=3.5, lr=0.1, grad_norm=0.7, tokens=30)
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 3.5, "lr": 0.1, "grad_norm": 0.7, "tokens": 30, "tokens_per_s": 15.0}]
        clock[0] += 3
        log.step(2, loss=3.0, lr=0.05, grad_norm=0.6, tokens=20)
        log.evaluation(2, {"loss": 3.25, "bits_per_byte": 1.5})
    assert read_metrics(tmp_path)[1]["tokens_per_s"] == 10.0                       # (30 + 20) / (2 + 3)
    assert read_metrics(tmp_path)[2] == {"step": 2, "eval_loss": 3.25, "eval_bits_per_byte": 1.5}


def test_a_log_file_gets_a_line_each_ten_seconds_and_one_at_the_end(tmp_path, clock, console):
    with Log(tmp_path, steps=30) as log:
        for step in range(1, 31):
            clock[0] += 1
            log.step(step, 2.0, 0.1, 1.0, 50)
    assert console[0].getvalue().splitlines() == [
        "step 11/30  loss 2.000  50 tokens/s  ETA 19 s",
        "step 22/30  loss 2.000  50 tokens/s  ETA 8 s",
        "step 30/30  loss 2.000  50 tokens/s  ETA 0 s",
    ]


def test_the_time_left_of_a_resumed_run_counts_only_its_own_steps(tmp_path, clock, console):
    with Log(tmp_path, steps=1000, start=500) as log:
        for step in range(501, 512):
            clock[0] += 1
            log.step(step, 2.0, 0.1, 1.0, 50)
    assert "step 511/1000  loss 2.000  50 tokens/s  ETA 489 s" in console[0].getvalue()


def test_a_terminal_shows_a_live_line_with_loss_speed_and_time_left(tmp_path, clock, console):
    console[1][0] = True
    with Log(tmp_path, steps=4) as log:
        clock[0] += 1
        log.step(1, 2.5, 0.1, 1.0, 1200)
    text = console[0].getvalue()
    assert "1/4" in text and "loss 2.500" in text and "1,200 tokens/s" in text and "ETA" in text


def test_an_evaluation_is_said_in_words(tmp_path, console):
    with Log(tmp_path, steps=4) as log:
        log.evaluation(3, {"loss": 2.34567, "bits_per_byte": 1.5})
    assert console[0].getvalue() == "step 3: held-out loss 2.346  held-out bits per byte 1.5\n"


def test_quiet_is_quiet(tmp_path, console):
    with Log(tmp_path, steps=1, quiet=True) as log:
        log.step(1, 2.0, 0.1, 1.0, 50)
        log.say("nothing")
    assert console[0].getvalue() == ""


def test_a_run_that_goes_on_takes_steps_behind_its_checkpoint_again_and_drops_a_line_cut_short(tmp_path):
    lines = [{"step": step, "loss": 9.0 - step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    assert read_metrics(tmp_path) == lines
    with Log(tmp_path, steps=4, start=2, quiet=True) as log:
        log.evaluation(3, {"loss": 1.0})
    assert read_metrics(tmp_path) == [*lines[:2], {"step": 3, "eval_loss": 1.0}]


def test_the_file_is_closed_after_an_error_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Log(tmp_path, steps=1, quiet=True) as log:
            raise KeyboardInterrupt
    assert log.file.closed


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="the package tensorboard is installed")
def test_tensorboard_without_its_package_is_explained(tmp_path):
    with pytest.raises(InputError, match="pip install tensorboard, or leave the option out"):
        Log(tmp_path, steps=1, tensorboard=True)


@pytest.mark.parametrize("start", [0, 4])
def test_tensorboard_does_not_show_the_steps_that_are_taken_again(tmp_path, monkeypatch, start):
    made = []
    package = SimpleNamespace(SummaryWriter=lambda *given, **named: made.append((given, named)) or SimpleNamespace(close=lambda: None))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    with Log(tmp_path, steps=9, start=start, tensorboard=True, quiet=True):
        assert made == [((tmp_path,), {"purge_step": start + 1})]


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    class Board:
        got, closed = [], False

        def add_scalar(self, *what):
            self.got.append(what)

        def close(self):
            self.closed = True

    board = Board()
    monkeypatch.setattr(module, "_board", lambda folder, start: board)
    with Log(tmp_path, steps=2, tensorboard=True, quiet=True) as log:
        log.evaluation(1, {"loss": 2.0})
    assert board.got == [("step", 1, 1), ("eval_loss", 2.0, 1)] and board.closed
