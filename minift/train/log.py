"""What a run says and keeps: a live line for the person, metrics.jsonl for the plot, TensorBoard on request.

metrics.jsonl holds one JSON object per line, {"step": ..., "loss": ..., ...}. A run that goes on from step s after a kill, 0 if it was killed
before its first checkpoint, takes the steps behind s again, so their old lines are dropped: each step has one line.
Proved in tests/train/test_log.py."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minift.errors import InputError
from minift.files import write_text


class Log:
    """Use as a context manager around the training loop."""

    def __init__(self, folder: Path, steps: int, start: int = 0, tensorboard: bool = False, quiet: bool = False, unit: str = "tokens"):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "metrics.jsonl").exists():
            kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= start]
            write_text(folder / "metrics.jsonl", "".join(kept))
        self.file = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        self.board = _board(folder, start) if tensorboard else None
        self.console = Console(quiet=quiet)
        self.progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=self.console, refresh_per_second=2,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=steps, completed=start, note="")
        self.unit = unit
        """What a step's targets are called."""
        self.start, self.began, self.tokens, self.said = start, time.perf_counter(), 0, time.perf_counter()

    def __enter__(self) -> "Log":
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()
        self.file.close()
        if self.board is not None:
            self.board.close()

    def step(self, step: int, loss: float, lr: float, grad_norm: float, tokens: int, more: Mapping[str, float] = {}) -> None:
        """One optimizer step has been taken: `step` counts from 1, `tokens` are the targets it used (tokens, or pairs); more: other
        numbers for its line."""
        self.tokens += tokens
        rate = self.tokens / (time.perf_counter() - self.began)
        self._write({"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, self.unit: tokens, f"{self.unit}_per_s": round(rate, 1), **more})
        watched = "".join(f"  {name} {more[name]:.3f}" for name in ("reward", "kl") if name in more)
        note = f"loss {loss:.3f}{watched}  {rate:,.0f} {self.unit}/s"
        self.progress.update(self.task, completed=step, note=note)
        total = self.progress.tasks[0].total
        if not self.console.is_terminal and (time.perf_counter() - self.said > 10 or step == total):    # a log file gets a line each 10 s
            self.said = time.perf_counter()
            left = (total - step) * (time.perf_counter() - self.began) / (step - self.start)
            self.console.print(f"step {step}/{total:.0f}  {note}  ETA {left:.0f} s", highlight=False)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        self._write({"step": step, **{f"eval_{name}": value for name, value in values.items()}})
        self.say(f"step {step}: " + "  ".join(f"held-out {name.replace('_', ' ')} {value:.4g}" for name, value in values.items()))

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _write(self, values: dict[str, float]) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, values["step"])


def read_metrics(folder: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, less a last one that a kill cut short."""
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _board(folder: Path, start: int):
    """TensorBoard's writer; what an earlier start has written of the steps behind `start` is not shown."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard, or leave the option out") from error
    return SummaryWriter(folder, purge_step=start + 1)
