"""What a run leaves for people: the loss curve as a picture, and tables that read the same in a terminal and in Markdown.

Proved in tests/recipes/test_report.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from minift.data.examples import Report
from minift.data.sources import Row
from minift.files import write_text
from minift.train.log import read_metrics

INK, TRAIN, HELD_OUT = "#333333", "#9db8d2", "#c4472b"


def pyplot():
    """matplotlib.pyplot, imported when there is a picture to draw: half a second that nobody should wait for before a first step. No window: pictures go to files."""
    if "matplotlib.pyplot" not in sys.modules:                                # else a notebook has chosen where they go
        import matplotlib

        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_loss(folder: Path, title: str, before: float | None = None, ylabel: str = "loss, nats per token") -> Path:
    """Draw folder/metrics.jsonl as folder/loss.png: training loss per step, its running mean, and the held-out loss, which starts at
    `before` if that is known. A run stopped before its first step has a picture without a curve."""
    plt = pyplot()
    metrics = read_metrics(folder)
    steps, losses = [m["step"] for m in metrics if "loss" in m], [m["loss"] for m in metrics if "loss" in m]
    held_out = [(m["step"], m["eval_loss"]) for m in metrics if "eval_loss" in m]
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    axes.plot(steps, losses, color=TRAIN, linewidth=0.8, label="training, each step")
    width = len(losses) // 25
    if width > 1:                                      # of a short run the mean would be the curve itself
        axes.plot(steps, running_mean(losses, width), color="#2f5f8f", linewidth=1.8, label="training, running mean")
    if before is not None:
        held_out = [(0, before), *held_out]
    if held_out:
        axes.plot(*zip(*held_out), "o-", color=HELD_OUT, linewidth=1.8, markersize=5, label="held out")
        place, value = held_out[-1]
        axes.annotate(f"{value:.3g}", (place, value), xytext=(0, 7), textcoords="offset points", ha="center", color=HELD_OUT)
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "loss.png", dpi=130)
    plt.close(figure)
    return folder / "loss.png"


def write_samples(folder: Path, rows: Sequence[Row], before: Sequence[str], after: Sequence[str]) -> None:
    """samples.md: questions, the reference answers, and what the model said before and after."""
    shown = [(row.question.replace("\x1f", " ").replace("\x1e", ": "), row.answer, b, a) for row, b, a in zip(rows, before, after)]
    table = markdown_table(["question", "the file's answer", "before", "after"], shown)
    write_text(folder / "samples.md", f"# Held-out samples\n\n{table}\n")


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the last `width` values (fewer at the start)."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / (i + 1 - max(0, i + 1 - width)) for i in range(len(values))]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a | in a cell is escaped and a line break becomes a blank."""
    clean = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(clean(cell) for cell in line) + " |" for line in lines)


def terminal_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """The same table for the terminal; behind the first `left` columns stand numbers, to the right."""
    table = Table(title=escape(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*[escape(str(cell)) for cell in row])
    return table


def describe(train: Report, valid: Report) -> str:
    """What became of the rows, in a few lines; nothing that was dropped or cut goes unsaid."""
    lines = [f"{train.kept} examples to train on ({train.targets} of {train.tokens} tokens are targets), {valid.kept} held out ({valid.targets})"]
    if train.duplicates:
        lines.append(f"{train.duplicates} questions repeat an earlier one")
    for name, report in (("training", train), ("held-out", valid)):
        if report.truncated:
            lines.append(f"{report.truncated} {name} examples were cut to --max-length, {report.answers_cut} of them in the answer")
        if report.without_answer:
            some = ", ".join(report.without_answer[:3]) + (" ..." if len(report.without_answer) > 3 else "")
            lines.append(f"{len(report.without_answer)} {name} rows have no answer and are left out: {some}")
    return "\n".join(lines)
