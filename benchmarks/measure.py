"""Honest timing: systems take turns, medians and ratios are kept, and the machine is named.

A single time on a shared machine says little. Each round runs every system once, in an order that reverses from round to round; a
system's number is the median over rounds, and a comparison is the median of the per-round ratios."""

import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"


def in_turn(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each timer returns, one per round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds + 1):
        for name in list(timers) if number % 2 else list(timers)[::-1]:
            taken = timers[name]()
            if number:
                seconds[name].append(taken)
    return seconds


def wall(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(systems: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: {name: [one per round]}, after one call of each that is not counted."""
    return in_turn({name: lambda call=call: wall(call) for name, call in systems.items()}, rounds)


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """How many times faster than `base` each system is: the median of the ratios within a round."""
    return {name: median(b / own for b, own in zip(seconds[base], times)) for name, times in seconds.items()}


def machine() -> dict[str, str | int]:
    """What the numbers were made on."""
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout.strip()
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(), "commit": commit}


def store(name: str, values: dict) -> None:
    """Write benchmarks/results/NAME.json, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **values}, indent=2) + "\n")
