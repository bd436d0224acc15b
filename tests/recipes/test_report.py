import json
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from minift.recipes.report import draw_loss, markdown_table, running_mean, terminal_table


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a run with these metrics; returns label -> (steps, values) of its curves."""

    def draw(lines, **options):
        axes, subplots = [], plt.subplots
        monkeypatch.setattr(plt, "subplots", lambda **sizes: axes.extend(found := subplots(**sizes)) or found)
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        file = draw_loss(tmp_path, "A title", **options)
        assert file.read_bytes().startswith(b"\x89PNG") and axes[1].get_title() == "A title"
        assert axes[1].get_xlabel() == "optimizer step" and axes[1].get_ylabel() == "loss, nats per token"
        return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes[1].get_lines()}

    return draw


LINES = [{"step": 1, "loss": 4.0}, {"step": 1, "eval_loss": 3.5}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]


def test_the_picture_has_training_and_held_out_loss_from_the_untrained_level_on(drawn):
    curves = drawn(LINES, before=5.0)
    assert curves["training, each step"] == ([1, 2], [4.0, 2.0])
    assert curves["held out"] == ([0, 1, 2], [5.0, 3.5, 2.5])
    assert drawn(LINES)["held out"] == ([1, 2], [3.5, 2.5])


def test_a_run_without_evaluation_or_without_a_step_has_a_picture_too(drawn):
    assert "held out" not in drawn(LINES[::2])
    assert drawn([])["training, each step"] == ([], [])
    assert drawn([], before=5.0)["held out"] == ([0], [5.0])


def test_a_long_run_has_its_running_mean_and_a_short_one_only_its_steps(drawn):
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1, 51)]
    assert drawn(lines)["training, running mean"][1][:3] == [1.0, 0.5, 0.5]       # over 50 / 25 = 2 steps
    assert "training, running mean" not in drawn(lines[:49])


def test_no_picture_stays_open(drawn):
    drawn(LINES)
    assert plt.get_fignums() == []


def test_the_running_mean_by_hand():
    assert running_mean([2.0, 4.0, 9.0, 1.0], 2) == [2.0, 3.0, 6.5, 5.0]
    assert running_mean([2.0, 4.0], 1) == [2.0, 4.0]


def test_a_markdown_table_survives_bars_and_line_breaks():
    assert markdown_table(["a", "b"], [["x | y", "one\ntwo"]]) == "| a | b |\n| --- | --- |\n| x \\| y | one two |"


def test_a_terminal_table_shows_brackets_as_they_are(capsys):
    Console(width=60).print(terminal_table("runs[1]", ["tensor", "value"], [["list[int]", "[bold]"], ["end\\", "2"]]))
    text = capsys.readouterr().out
    assert all(part in text for part in ("runs[1]", "list[int]", "[bold]", "end\\"))


def test_no_recipe_brings_matplotlib_before_it_draws():
    """Half a second that nobody waits for before a first step. compare, which needs its boxes to place labels, is the only one that does."""
    code = (
        "import importlib, pkgutil, sys, minift.recipes\n"
        "for module in pkgutil.iter_modules(minift.recipes.__path__):\n"
        "    if not module.name.startswith('compare'):\n"
        "        importlib.import_module(f'minift.recipes.{module.name}')\n"
        "print([name for name in sys.modules if name.startswith('matplotlib')])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
