"""Systems that are compared live in processes of their own and take turns: only one computes at a time, the others wait.

    Side(spawn, target, ..., log=file)  starts a process that runs target(gate, ...); what its libraries print goes into the file
    target:  load the model, gate.open(), then for every step that it takes gate.tick(loss), or gate.tick(loss, work) if steps are not alike
    turns(sides, rounds, steps)  every side takes `steps` steps a round, the order reversed from round to round

A loop of ours calls `tick` after each step; a trainer that owns its loop calls it from its callback, which does not return until it is that
side's turn again. A turn's wall clock and CPU seconds run from the word to go to the last tick. CPU seconds are those of all threads of the
process, which other programs on the machine change less. Both are kept per step, or per unit of work: where sides make other batches of the same
rows, a step of one is not a step of the other. Peak memory is the largest resident set of the process, libraries included.
Proved in tests/benchmarks/test_preference_step.py."""

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import machine

QUIET = dict(HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
"""The environment of every side: nothing is looked up on the network. Threads wait as they do for a user: those told to sleep at once (OMP_WAIT_POLICY) made
steps of many small operations up to a third slower; by default they sleep after milliseconds, long before another side's turn is over."""


def memory(kind: str) -> float:
    """MiB of this process now (VmRSS) or at its largest (VmHWM), as Linux counts them."""
    line = next(line for line in open("/proc/self/status") if line.startswith(kind))
    return int(line.split()[1]) / 1024


class Absent(RuntimeError):
    """A side cannot run here, and says why: a library of its own is not installed."""


class Gate:
    """In a side's process: lets it take the steps of a turn, then tells what they cost and waits for the next turn."""

    def __init__(self, pipe):
        self.pipe, self.count, self.work = pipe, 0, 0.0
        self.losses: list[float] = []

    def open(self) -> None:
        """The model is loaded. Returns when it is this side's turn."""
        self.pipe.send({"loaded": memory("VmRSS")})
        self._wait()

    def tick(self, loss: float, work: float = 1.0) -> None:
        """A step was taken. Returns at once, or when it is this side's turn again."""
        self.losses.append(loss)
        self.work += work
        if len(self.losses) == self.count:
            wall, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
            self.pipe.send({"losses": self.losses, "wall": wall / self.work, "cpu": cpu / self.work, "peak": memory("VmHWM")})
            self._wait()

    def _wait(self) -> None:
        self.count, self.losses, self.work = self.pipe.recv(), [], 0.0
        self.cpu, self.start = time.process_time(), time.perf_counter()


def print_into(log: Path) -> None:
    """What this process prints from now on is added to the file; that of C libraries too."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def serve(pipe, log: Path | None, target: Callable[..., None], *arguments: Any) -> None:
    """A side's process, until it is told to stop."""
    if log is not None:
        print_into(log)
    try:
        target(Gate(pipe), *arguments)
    except Absent as absent:
        pipe.send({"absent": str(absent)})
    except Exception as error:
        if log is not None:
            traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {error}"})


class Side:
    """A process that takes steps when asked. RuntimeError if it fails."""

    def __init__(self, spawn, target: Callable[..., None], *arguments: Any, log: Path | None = None):
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(other, log, target, *arguments), daemon=True)
        self.process.start()
        other.close()
        self.turns: list[dict] = []
        self.losses: list[float] = []

    def loaded(self) -> float:
        """Waits for the model; MiB it holds. Absent if this side cannot run here."""
        self.before = self._answer()["loaded"]
        return self.before

    def steps(self, count: int, timed: bool = True) -> None:
        self.pipe.send(count)
        turn = self._answer()
        self.losses += turn["losses"]
        if timed:
            self.turns.append(turn)

    def seconds(self) -> float:
        """Of a step (or a unit of work), wall clock, the median over the turns."""
        return median(t["wall"] for t in self.turns)

    def summary(self) -> dict[str, float]:
        """Medians over the turns."""
        peak = self.turns[-1]["peak"]
        return {
            "ms": round(1000 * self.seconds()), "cpu_s": round(median(t["cpu"] for t in self.turns), 3),
            "peak_mib": round(peak), "added_mib": round(peak - self.before),
        }  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()

    def _answer(self) -> dict:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the process ended with code {self.process.exitcode}") from None
        if "absent" in answer:
            raise Absent(answer["absent"])
        if "error" in answer:
            self.process.join()
            raise RuntimeError(answer["error"])
        return answer


def turns(sides: Mapping[str, Side], rounds: int, steps: int, start: int = 0) -> None:
    """start: rounds that were taken before, so that the order goes on reversing."""
    for number in range(start, start + rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            sides[name].steps(steps)


def faster(their: Side, our: Side, kind: str) -> dict[str, float]:
    """Times as fast as theirs, of "wall" or "cpu": median, least and most of the ratios within a round."""
    each = [t[kind] / o[kind] for t, o in zip(their.turns, our.turns)]
    return {"median": round(median(each), 2), "least": round(min(each), 2), "most": round(max(each), 2)}


def read(file: Path) -> dict:
    """The stored numbers."""
    return json.loads(file.read_text()) if file.exists() else {"rows": {}}


def add(file: Path, change: dict, packages: tuple[str, ...], on: Mapping[str, Any] | None = None) -> None:
    """Add to the stored numbers, so that what is measured stays if the next row fails; rows are added one by one, each with the processor and the commit it was
    measured with. on: `machine()` when the processes started; a commit may have come since."""
    values, on = read(file), on or machine()
    for row in values["rows"].values() if "machine" in values else ():                                # what was said of all rows so far stays true of these
        row.setdefault("on", {name: values["machine"][name] for name in ("cpu", "commit")})
    values["machine"] = {**on, **{name: version(name) for name in packages}}
    values["rows"].update({key: row | {"on": {"cpu": on["cpu"], "commit": on["commit"]}} for key, row in change.get("rows", {}).items()})
    values |= {key: value for key, value in change.items() if key != "rows"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


def made_on(values: dict, packages: Mapping[str, str]) -> str:
    """The line below the tables: processor, versions, commit; behind it the rows that were measured with others. packages: name -> what is to be said of it."""
    on, others = values["machine"], {}
    for key, row in values["rows"].items():
        other = row.get("on", on)
        if (other["cpu"], other["commit"]) != (on["cpu"], on["commit"]):
            others.setdefault((other["cpu"], other["commit"]), []).append(key)
    versions = ", ".join(f"{name} {on[name]}{said}" for name, said in packages.items())
    said = [f"{', '.join(keys)}: {'' if cpu == on['cpu'] else f'{cpu}, '}commit {commit}" for (cpu, commit), keys in others.items()]
    return "; ".join([f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}, {versions}, Python {on['python']}, commit {on['commit']}", *said]) + "."


def hardware(on: Mapping[str, Any]) -> str:
    """What a picture says of where its numbers are from; the page says more."""
    return f"{on['cpu']}, {on['threads']} threads, torch {on['torch']}"


def between_marks(page: Path, lines: list[str]) -> None:
    """Put lines between the page's two marks; a page that is not there yet becomes the lines alone."""
    before, _, rest = (page.read_text() if page.exists() else "").partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    page.write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end of table -->{after}")
