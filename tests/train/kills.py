"""Kills a training run with SIGKILL at random moments, looks at what is left, and goes on with it.

    python -m tests.train.kills --kills 50            a minute or two; the ordinary tests (test_kills.py) take 5

A life of the run is a process forked from this one, which has imported torch but never computed with it. It writes its checkpoints slowly, in pieces, and
half of the kills wait for one of them. After each kill: every checkpoint under its name is whole, at least one is there once one was, and at most
--save-every steps are lost. In the end: the same adapter, byte for byte, as of a run that never stopped, and a line for each step. Exit status 1 if not."""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot  # noqa: F401

from minift import cli, files
from minift.recipes import sft  # noqa: F401
from minift.train import checkpoint
from minift.train.kept import Checkpoints
from minift.train.log import read_metrics

STEPS, SAVE_EVERY = 24, 2
ROWS = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "green", "grey") for thing in ("sun", "cat", "tea", "sea")]


def prepare(home: Path) -> None:
    """A small model's folder and a file of rows."""
    import pydoc_data.topics

    from minift import tokenizer
    from minift.folder import save
    from tests.conftest import random_model

    tokens = tokenizer.train([text[:2000] for text in list(pydoc_data.topics.topics.values())[:12]], 400)
    save(random_model(tokens), tokens, home / "model")
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def command(home: Path, out: Path, *more) -> list[str]:
    own = ("sft", "--model", home / "model", "--data", home / "rows.jsonl", "--out", out, "--held-out", 0.3, "--samples", 0, "--batch-tokens", 60, "--epochs", 99, "--max-steps", STEPS,
           "--save-every", SAVE_EVERY, "--eval-every", 5, "--keep-last", 1, "--accumulate", 2, "--lora-dropout", 0.2, "--rank", 2, "--precision", "fp32")    # fmt: skip
    return [str(word) for word in (*own, *more)]


class Slow:
    """A file whose every write is two, with a moment between them."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, raw) -> None:
        half = len(raw) // 2
        for part in (raw[:half], raw[half:]):
            self.file.write(part)
            self.file.flush()
            time.sleep(1e-4)


def slow_down() -> None:
    """Writing takes long, and so does what comes after it: a kill may fall into any part of it."""
    files.open = lambda path, mode: Slow(open(path, mode))
    for name in ("fsync", "replace", "unlink"):
        honest = getattr(os, name)

        def slowly(*given, honest=honest, **more):
            time.sleep(2e-3)
            honest(*given, **more)
            time.sleep(2e-3)

        setattr(os, name, slowly)


def begin(job, home: Path) -> int:
    """The id of a process that does `job` and ends with the status it returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            said = os.open(home / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(said, stream)
            status = job() or 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def end(child: int) -> int:
    """Its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(child: int, run: Path, dice: random.Random, seconds: float) -> str:
    """Wait for a moment and kill; where it was."""
    until = time.monotonic() + dice.uniform(0, seconds)
    if dice.random() < 0.5:
        saves = dice.randint(1, 4)                                                    # the next save, or a later one
        where, busy = "during a save", False
        while saves and not ended(child):
            now = any(run.glob("checkpoints/.step-*.writing"))
            saves, busy = saves - (now and not busy), now
        until = time.monotonic() + dice.uniform(0, 0.08)
    else:
        where = "anywhere"
    while time.monotonic() < until and not ended(child):
        time.sleep(1e-4)
    os.kill(child, signal.SIGKILL)
    return where


def look(run: Path) -> tuple[int, int]:
    """(step of the newest checkpoint, steps lost) of a run that was killed. Raises AssertionError at anything that cannot be gone on with."""
    kept = Checkpoints(run)
    for step in kept.scores:
        assert checkpoint.read(kept.file(step))["step"] == step
    logged = max((line["step"] for line in read_metrics(run)), default=0) if (run / "metrics.jsonl").exists() else 0
    newest = max(kept.scores, default=0)
    assert logged - newest <= SAVE_EVERY, f"step {logged} was taken, and {newest} is the last one saved"
    return newest, logged - newest


def same(one: Path, other: Path) -> bool:
    """The same adapter to the bit, and the same numbers on the way."""
    keep = lambda line: {name: value for name, value in line.items() if not name.endswith("_per_s")}
    adapters = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (one, other)]
    return adapters[0] == adapters[1] and [keep(line) for line in read_metrics(one)] == [keep(line) for line in read_metrics(other)]


def main(kills: int, seed: int) -> int:
    dice, done, runs, last, lost = random.Random(seed), Counter(), 0, 0, Counter()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        started = begin(lambda: prepare(home), home)
        assert end(started) == 0, (home / "said.txt").read_text()
        whole, began = home / "whole", time.monotonic()
        assert end(begin(lambda: (slow_down(), cli.main(command(home, whole)))[1], home)) == 0, (home / "said.txt").read_text()
        seconds = time.monotonic() - began
        while True:
            run = home / f"run-{runs}"
            more = ("--resume",) if (run / "config.json").exists() else ()
            child = begin(lambda: (slow_down(), cli.main(command(home, run, *more)))[1], home)
            if sum(done.values()) < kills:
                where = kill(child, run, dice, seconds)
            status = end(child)
            if status == -signal.SIGKILL:
                newest, gone = look(run)
                assert newest >= last, f"step {last} had been saved, and now {newest} is the newest"
                last, done[where], lost[gone] = newest, done[where] + 1, lost[gone] + 1
                print(f"kill {sum(done.values())} of {kills}, {where}: the newest checkpoint is of step {newest}, {gone} steps lost", flush=True)
                continue
            assert status == 0, (home / "said.txt").read_text()
            if not same(whole, run):
                print(f"run {runs + 1} did not end as the one that never stopped")
                return 1
            runs, last = runs + 1, 0
            print(f"run {runs} ended with the bits of one that never stopped", flush=True)
            if sum(done.values()) >= kills:
                break
    parts = ", ".join(f"{count} {where}" for where, count in sorted(done.items()))
    steps = ", ".join(f"{gone}: {count} times" for gone, count in sorted(lost.items()))
    print(f"{kills} kills ({parts}) of {runs} runs of {STEPS} steps, saved every {SAVE_EVERY}: no unreadable file, each run ended bit-equal. Steps lost {steps}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill a training run at random moments and look at what is left.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.kills, given.seed))
