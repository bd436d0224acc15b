"""Fresh processes that take turns: what it takes from the start of a process to its end, imports included.

    in_turn({"import torch": [python, "-c", "import torch"], ...}, rounds)  ->  {name: Fresh}

Each round starts every command once and waits for it, in an order that reverses from round to round; the first round only fills the file cache and is
not counted. CPU seconds and peak memory are the kernel's account of the process (wait4). That account begins before the program does, with the memory of
whoever forked it; so a small process, this file run by itself, does the forking and tells what it saw. Proved in tests/benchmarks/test_fresh.py."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median


class Fresh:
    """Like a Side that has taken its turns: one a process."""

    def __init__(self):
        self.turns: list[dict] = []

    def summary(self) -> dict[str, float]:
        middle = lambda kind: median(turn[kind] for turn in self.turns)
        return {"ms": round(1000 * middle("wall")), "cpu_s": round(middle("cpu"), 3), "peak_mib": round(middle("peak"))}


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int, log: Path) -> dict[str, Fresh]:
    """What they print goes to the log. RuntimeError if one fails."""
    found = {name: Fresh() for name in commands}
    for number in range(rounds + 1):
        for name in list(commands)[:: 1 if number % 2 else -1]:
            turn = once(name, commands[name], log)
            if number:
                found[name].turns.append(turn)
    return found


def once(name: str, command: Sequence[str], log: Path) -> dict[str, float]:
    """Seconds and MiB of one process. RuntimeError if it fails."""
    told = subprocess.run([sys.executable, "-S", __file__, log, *command], capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"{name} could not be started: {told.stderr.strip()[-200:]}")
    turn = json.loads(told.stdout)
    if code := turn.pop("code"):
        raise RuntimeError(f"{name}: the process ended with code {code}")
    return turn


def main() -> None:
    log, *command = sys.argv[1:]
    with open(log, "a") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)                  # Popen need not wait again
    print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024, "code": process.returncode}))


if __name__ == "__main__":
    main()
