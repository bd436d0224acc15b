"""One kernel of the registry on this process's GPU: is it right, and if so, how fast beside the others?

    python -m benchmarks.kernel_case NAME --seconds 60 --rounds 20 --to FILE          what benchmarks/kernels.py starts, one process each

Right first (benchmarks/kernel_accuracy.py): what is not gets no time. Then op ("minift"), the reference as it is ("torch eager") and compiled
("torch.compile"), and the kernel's peers take turns on the same inputs. Each case is one line of JSON in FILE as soon as it is known, so that
what is measured stays when a later one hangs.
Proved in tests/benchmarks/test_kernels.py with a clock that is no clock."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from benchmarks.intervals import faster, spread
from benchmarks.kernel_accuracy import accuracy, copied
from minift_kernels.registry import Kernel, kernels

OURS, EAGER, COMPILED = "minift", "torch eager", "torch.compile"
COMPILE_SHARE = 0.5
"""Once this share of the kernel's time is gone, its further cases go without torch.compile, which takes seconds to tens of seconds each."""


class Clock(Protocol):
    """benchmarks/gpu_clock.py, or a false one in tests."""

    device: str

    def turns(self, systems: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]: ...

    def memory(self, call: Callable[[], object]) -> int: ...


def providers(kernel: Kernel, arguments: dict[str, Any], compile: bool) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Name -> call, each on inputs of its own if it changes them; and name -> why it cannot run."""
    own = lambda: copied(arguments) if kernel.mutates else arguments
    bind = lambda function: (lambda given=own(): function(**given))
    systems: dict[str, Callable[[], object]] = {OURS: bind(kernel.op), EAGER: bind(kernel.reference)}
    missing: dict[str, str] = {}

    def add(name: str, make: Callable[[], Callable[[], object] | None]) -> None:
        try:
            call = make()
            if call is None:
                missing[name] = "cannot run here"
            else:
                call()                                                     # it fails now or never
                systems[name] = call
        except Exception as error:                                         # whatever others raise: the row says it
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"

    torch.compiler.reset()                                                 # each case is compiled for its own shapes
    for name, peer in kernel.peers.items():
        add(name, lambda: peer(**own()))
    if COMPILED in kernel.peers:
        pass                                                               # the kernel knows a better one than its reference
    elif compile:
        add(COMPILED, lambda: bind(torch.compile(kernel.reference, dynamic=False)))
    else:
        missing[COMPILED] = "left out: no time left to compile"
    return systems, missing


def measure_case(kernel: Kernel, case: dict[str, Any], clock: Clock, rounds: int, ceilings: dict[str, float], compile: bool = True) -> dict[str, Any]:
    """A case's record. Where accuracy fails it holds no time. `ceilings`: measured bytes and FLOP per second, {} where there are none."""
    work = kernel.work(**case)
    record: dict[str, Any] = {"bytes": work.bytes, "flops": work.flops}
    arguments = kernel.make(device=clock.device, seed=0, **case)
    record["accuracy"] = accuracy(kernel, arguments)
    if record["accuracy"]["failure"]:
        return record
    if ceilings:
        times = {"bytes": work.bytes / ceilings["copy"], "FLOPs": work.flops / ceilings["matmul"]}
        record["bound_by"] = max(times, key=times.__getitem__)
        record["bound_us"] = round(1e6 * times[record["bound_by"]], 3)
    with torch.no_grad():
        systems, record["missing"] = providers(kernel, arguments, compile)
        seconds, notes = clock.turns(systems, rounds)
        record["rounds"], record["providers"] = rounds, {}
        for name, call in systems.items():
            row = {"us": spread(seconds[name]), "peak_bytes": clock.memory(call)}
            if ceilings:
                row["roofline"] = round(record["bound_us"] / 1e6 / median(seconds[name]), 4)
            if name != OURS:
                row["ours_faster"] = faster(seconds[OURS], seconds[name])
            if name in notes:
                row["note"] = notes[name]
            record["providers"][name] = row
    return record


def measure_kernel(
    kernel: Kernel, clock: Clock, rounds: int, seconds: float, ceilings: dict[str, float], say: Callable[[dict], None], now=time.monotonic
) -> None:
    """All cases, each said as {"case": name, ...} when it is known. A case that would outlast `seconds` by the one before is left out."""
    start, last = now(), 0.0
    for name, case in kernel.benches.items():
        begun = now()
        if begun - start + last > seconds:
            say({"case": name, "skipped": f"left out: {begun - start:.0f} of {seconds:.0f} seconds were gone"})
            continue
        try:
            say({"case": name, **measure_case(kernel, dict(case), clock, rounds, ceilings, begun - start < COMPILE_SHARE * seconds)})
        except Exception as error:                                         # out of memory, say: the other cases still have their turn
            say({"case": name, "crashed": f"{type(error).__name__}: {str(error)[:300]}"})
        last = now() - begun


def main(words: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("name")
    options.add_argument("--seconds", type=float, required=True)
    options.add_argument("--rounds", type=int, required=True)
    options.add_argument("--to", type=Path, required=True)
    chosen = options.parse_args(words)
    started = time.monotonic()
    from benchmarks.gpu_clock import GpuClock, card

    torch.backends.cuda.matmul.allow_tf32 = False                          # references are float32 where they say so
    clock = GpuClock()
    with open(chosen.to, "a", encoding="utf-8") as file:

        def say(record: dict) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        say({"card": card()})
        ceilings = clock.ceilings(chosen.rounds)
        say({"ceilings": ceilings})
        left = chosen.seconds - (time.monotonic() - started)
        measure_kernel(kernels()[chosen.name], clock, chosen.rounds, left, ceilings, say)
        say({"card_after": card()})


if __name__ == "__main__":
    main()
