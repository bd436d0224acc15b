"""Which checkpoints a run keeps: the newest ones, to go on from, and the best ones, for the result.

    checkpoints/step-12.safetensors          one file per step; its header says what the evaluation at that step was, if there was one

A new file is whole, under its name and on the disk before an old one is deleted, so at every moment there is one to go on from. A file that
turns out to be damaged is set aside as step-12.safetensors.damaged, and the run goes on from the one before.
Proved in tests/train/test_kept.py; under SIGKILL in tests/train/test_kills.py. Left out: files of one run on several disks."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from minift.errors import InputError
from minift.train import checkpoint, state_file
from minift.train.checkpoint import Place

NAME = re.compile(r"step-(\d+)\.safetensors")
PICKLED = ("last.pt", "best.pt")
"""What earlier versions wrote."""


class Checkpoints:
    """The files of the run in `run_folder`; keep_last, keep_best: how many of each kind are kept, at least 1."""

    def __init__(self, run_folder: Path, keep_last: int = 2, keep_best: int = 1):
        self.folder, self.keep_last, self.keep_best = run_folder / "checkpoints", keep_last, keep_best
        self.unreadable: dict[int, InputError] = {}
        """Steps whose file does not even say what it holds, until `newest` sets them aside."""
        found = sorted(int(match[1]) for path in self.folder.glob("*") if (match := NAME.fullmatch(path.name)))
        self.scores: dict[int, float | None] = {step: self._score(step) for step in found}
        """step of each file -> its evaluation; the smaller, the better."""

    def __len__(self) -> int:
        return len(self.scores)

    def file(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def begin(self) -> None:
        """A run starts from its first step: whatever an earlier one has left is none of it."""
        for step in list(self.scores):
            self._delete(step)

    def write(self, state: dict) -> Path:
        """Keep `state` (checkpoint.state_of), then delete what need not be kept any longer."""
        for path in self.folder.glob(".step-*.writing"):                       # of a write that was killed
            path.unlink()
        path = self.file(state["step"])
        state_file.write(path, state)
        self.scores[state["step"]] = state["score"]
        for step in sorted(self.scores.keys() - set(sorted(self.scores)[-self.keep_last :]) - set(self._ranked()[: self.keep_best])):
            self._delete(step)
        return path

    def newest(self, say: Callable[[str], None] = print) -> dict | None:
        """The newest state that is whole; None if none was ever written. `say` is told of the ones that are not."""
        if not self.scores and (old := next((self.folder / name for name in PICKLED if (self.folder / name).exists()), None)):
            raise InputError(f"{old} was pickled by an earlier version of minift, and a pickle can run any program, so it is not opened: finish the run with that "
                             "version, or start it again with --overwrite")  # fmt: skip
        damaged = []
        for step in sorted(self.scores, reverse=True):
            try:
                state = checkpoint.read(self.file(step))
            except InputError as error:
                damaged.append((step, error))
                continue
            for bad, error in (dict(damaged) | self.unreadable).items():
                say(f"{error}; going on from step {step}")
                self._set_aside(bad)
            self.unreadable.clear()
            return state
        if damaged:
            raise InputError(f"{damaged[0][1]}, and no earlier checkpoint in {self.folder} is whole: start again with --overwrite instead of --resume")
        return None

    def restore(self, model: nn.Module, optimizers: list, say: Callable[[str], None]) -> tuple[Place, dict]:
        """Go on from the newest state: (where the run is, the recipe's own numbers); from the first step, if there is none yet. The best evaluation is that of a file."""
        state = self.newest(say)
        if state is None:
            say(f"no checkpoint in {self.folder} yet: starting from the first step")
            return Place(), {}
        place = checkpoint.restore(state, model, optimizers)
        return replace(place, best=self.scores.get(self.best_step())), state["extra"]

    def is_good(self, score: float | None) -> bool:
        """Would an evaluation like this be one of the best that are kept?"""
        ranked = self._ranked()
        return score is not None and (len(ranked) < self.keep_best or score < self.scores[ranked[self.keep_best - 1]])

    def best(self, parts: tuple[str, ...] | None = None) -> dict:
        """The state with the best evaluation, of equal ones the first."""
        ranked = self._ranked()
        if not ranked:
            raise InputError(f"{self.folder} holds no checkpoint of an evaluation any more: start again with --overwrite")
        try:
            return checkpoint.read(self.file(ranked[0]), parts)
        except (InputError, FileNotFoundError) as error:
            raise InputError(f"the best checkpoint cannot be read: {error}. Delete it, and run the same command with --resume: it ends with the best of the others") from None

    def best_step(self) -> int | None:
        return next(iter(self._ranked()), None)

    def kept(self) -> str:
        """Where to go on from, for an error text."""
        return f"the checkpoint of step {max(self.scores)} is {self.file(max(self.scores))}" if self.scores else "no checkpoint had been written yet"

    def _ranked(self) -> list[int]:
        """Steps that were evaluated, the best first."""
        return sorted((step for step, score in self.scores.items() if score is not None), key=lambda step: (self.scores[step], step))

    def _score(self, step: int) -> float | None:
        try:
            return state_file.head(self.file(step)).get("score")
        except InputError as error:
            self.unreadable[step] = error
            return None

    def _delete(self, step: int) -> None:
        self.file(step).unlink(missing_ok=True)
        del self.scores[step]

    def _set_aside(self, step: int) -> None:
        self.file(step).rename(self.file(step).with_name(self.file(step).name + ".damaged"))
        del self.scores[step]
