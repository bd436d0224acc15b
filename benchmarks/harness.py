"""What the benchmarks beside other libraries share: from the command line, over sides that take turns, to rows that are stored as measured.

    Bench(name, about, cases, precisions, compare, line, write_page, ...)     a benchmark; main(bench) is its command line
    beside(run, call, targets, arguments, steps, check)                       one row: the sides' medians, and how much faster ours are

A side is a function of a module benchmarks.PREFIX_*, named "peers.trl_dpo", say, so that a side's process imports its own libraries only. It loads
its model, calls gate.open() and steps on (benchmarks/turns.py). The first step is not timed. What the sides computed in the first steps is
compared (`check`) before a speed is kept. A side whose library is not installed says Absent, and the row keeps why.
Our sides are those whose names begin with "minift". Proved in tests/benchmarks/test_harness.py."""

import argparse
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, machine
from benchmarks.turns import QUIET, Absent, Gate, Side, add, faster, read, turns

DOCS = RESULTS.parents[1] / "docs"


@dataclass(frozen=True)
class Run:
    """What a row is measured with."""

    spawn: Any
    """multiprocessing's context."""
    folder: Path
    """What all sides read."""
    sizes: Any
    rounds: int
    log: Path
    """What the sides' libraries print is added to it."""
    only: Sequence[str] | None = None
    """These sides, if not all."""


@dataclass(frozen=True)
class Bench:
    """A benchmark, its sizes and its page."""

    name: str
    """Of benchmarks/results/NAME.json, and of its sides' modules."""
    about: str
    """For --help: the module's docstring, of which the first line is shown."""
    cases: Sequence[str]
    precisions: Sequence[str]
    compare: Callable[[Run, str, str], dict]
    """(run, case, precision) -> the row. RuntimeError if a side fails or results differ."""
    line: Callable[[str, dict], str]
    """("CASE PRECISION", row) -> what is printed of it."""
    write_page: Callable[[Path, dict], None]
    """(page, stored numbers)."""
    start: Callable[[Path, Any], None]
    """(folder, sizes): writes what all sides read, in a process of its own."""
    full: Any
    quick: Any
    packages: tuple[str, ...]
    """Whose versions are stored."""
    page: str = ""
    """docs/PAGE.md."""
    rounds: int = 3
    measured: Callable[[str, str], bool] = lambda case, precision: True
    """(case, precision) -> is there such a row?"""
    by_case: bool = False
    """The order of the rows: case after case, or precision after precision."""

    def keys(self, cases: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
        pairs = [(c, p) for c in cases for p in precisions] if self.by_case else [(c, p) for p in precisions for c in cases]
        return [(case, precision) for case, precision in pairs if self.measured(case, precision)]


def run_side(prefix: str, gate: Gate, target: str, *arguments: Any) -> None:
    """In the side's process: the function of benchmarks.PREFIX_MODULE that "MODULE.FUNCTION" names."""
    module, function = target.split(".")
    getattr(importlib.import_module(f"benchmarks.{prefix}_{module}"), function)(gate, *arguments)


def ours(name: str) -> bool:
    return name.startswith("minift")


def beside(
    run: Run, call: Callable[..., None], targets: Mapping[str, str], arguments: Sequence[Any], steps: int,
    check: Callable[[dict[str, list[float]]], Any] | None = None, versus: Callable[[str], Sequence[str]] = lambda name: ["minift"],
) -> dict:
    """One row. call(gate, target, *arguments) is a side's process. check(losses of each side so far) returns how far apart they lie, or raises RuntimeError. versus(their name): which of our sides
    it is compared with; what the first of them gains is kept under their name, what the others gain under "THEIRS / OURS"."""
    sides: dict[str, Side] = {}
    row: dict = {"rounds": run.rounds}
    try:
        for name, target in targets.items():
            if run.only is not None and name not in run.only:
                continue
            sides[name] = Side(run.spawn, call, target, *arguments, log=run.log)
            try:
                sides[name].loaded()                                            # one after another: loading is not contended
            except Absent as absent:
                row.setdefault("absent", {})[name] = str(absent)
                sides.pop(name).stop()
        for side in sides.values():
            side.steps(1, timed=False)
        turns(sides, 1, steps)
        if check is not None and len(sides) > 1:
            row["apart"] = check({name: list(side.losses) for name, side in sides.items()})
        turns(sides, run.rounds - 1, steps, start=1)
        row["sides"] = {name: side.summary() for name, side in sides.items()}
        row["faster"] = gains(sides, versus)
        return row
    finally:
        for side in sides.values():
            side.stop()


def gains(sides: Mapping[str, Any], versus: Callable[[str], Sequence[str]]) -> dict[str, dict]:
    """Their name (or "THEIRS / OURS") -> {"wall": times as fast, "cpu": ...}."""
    found = {}
    for name, side in sides.items():
        for place, own in enumerate([] if ours(name) else versus(name)):
            if own in sides:
                found[name if place == 0 else f"{name} / {own}"] = {kind: faster(side, sides[own], kind) for kind in ("wall", "cpu")}
    return found


def agreed(losses: Mapping[str, Sequence[float]], allowed: float) -> float:
    """How far the sides' losses lie apart. RuntimeError if that is too far."""
    apart = float(np.ptp(list(zip(*losses.values())), axis=1).max())                    # a NaN stays one
    if not apart <= allowed:
        raise RuntimeError(f"the losses differ by {apart:.1e}, allowed are {allowed:.0e}: {dict(losses)}")
    return apart


def main(bench: Bench) -> None:
    options = argparse.ArgumentParser(description=bench.about.splitlines()[0])
    options.add_argument("--case", nargs="+", choices=list(bench.cases), default=list(bench.cases))
    options.add_argument("--precision", nargs="+", choices=list(bench.precisions), default=list(bench.precisions))
    options.add_argument("--rounds", type=int, default=bench.rounds)
    options.add_argument("--sides", nargs="+", help="only these, to look at them; nothing is stored unless --json names a file")
    options.add_argument("--missing", action="store_true", help="only the rows that are not stored yet")
    options.add_argument("--quick", action="store_true", help="tiny sizes, one round, to see that it runs")
    options.add_argument("--json", type=Path, help="where the numbers are kept")
    options.add_argument("--markdown", type=Path, default=DOCS / f"{bench.page}.md", help="the page with the tables")
    log = Path(tempfile.gettempdir()) / f"{bench.name}.log"
    options.add_argument("--log", type=Path, default=log, help="what the sides' libraries print is added to it")
    options.add_argument("--report", action="store_true", help="only the page, from the stored numbers")
    chosen = options.parse_args()
    stored = chosen.json or (None if chosen.quick or chosen.sides else RESULTS / f"{bench.name}.json")
    whole = chosen.report or measure(bench, chosen, stored)
    if stored is not None and stored.exists() and not (chosen.quick and chosen.markdown == options.get_default("markdown")):
        bench.write_page(chosen.markdown, read(stored))
    if not whole:
        sys.exit("some rows could not be measured; see above")


def measure(bench: Bench, chosen: argparse.Namespace, stored: Path | None) -> bool:
    """Measure and store row after row; False if one failed."""
    os.environ.update(QUIET)
    on = machine()
    spawn, whole = multiprocessing.get_context("spawn"), True
    sizes = bench.quick if chosen.quick else bench.full
    known = read(stored)["rows"] if chosen.missing and stored is not None else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        writer = spawn.Process(target=bench.start, args=(folder, sizes))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("what the sides read could not be written")
        run = Run(spawn, folder, sizes, 1 if chosen.quick else chosen.rounds, chosen.log, chosen.sides)
        for case, precision in bench.keys(chosen.case, chosen.precision):
            key = f"{case} {precision}"
            if key in known:
                continue
            try:
                row = bench.compare(run, case, precision)
            except RuntimeError as error:
                print(f"{key}: {error} (more in {chosen.log})", flush=True)
                whole = False
                continue
            if stored is not None:
                add(stored, {"rows": {key: row}}, bench.packages, on)
            print(bench.line(key, row), flush=True)
    return whole
