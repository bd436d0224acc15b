"""Every kernel of the registry on this machine's GPU, in at most 8 minutes: first whether it is right, then how fast beside others.

    python -m benchmarks.kernels [names] [--rounds 20] [--seconds 480] [--json FILE]
    python -m benchmarks.kernels --report [FILE ...]         only the page and the pictures, from stored results

Each kernel has a process of its own (benchmarks/kernel_case.py) and a share of the time: one that hangs is killed, and what it measured
until then stays. The copy and the bf16 product that percentages refer to are measured in that same process, before the kernel.
What is stored names the card, its driver, clocks and power as read (never set), versions, commit and date, kernel by kernel: a run of a
few names replaces those and keeps the others. Exit status 1 if a kernel is wrong, crashes or does not finish.

Without a GPU no kernel is timed and nothing is stored as such. What runs there are CPU rows: the kernels' plain torch references against
bitsandbytes' own CPU functions, and they are called that.
Writes benchmarks/results/kernels-GPU.json, docs/kernels.md and docs/kernels-GPU.png. Proved in tests/benchmarks/test_kernels.py."""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.kernels_report import case_lines, write_page
from benchmarks.measure import RESULTS
from minift_kernels.chips import GPUS, bound, known
from minift_kernels.registry import Kernel, kernels
from minift_kernels.runtime import INTERPRETED

START, COMPILE, SLOWER, RESERVE, MINIMUM = 15.0, 8.0, 200.0, 15.0, 1.0
"""What a budget reckons with, in seconds: a process that imports and measures the ceilings; torch.compile of a case; how many times its bound
everything of one round takes (all providers, flushes, graphs); what is kept for writing the page; with less than the last a kernel is not begun."""


def expected_seconds(kernel: Kernel, rounds: int) -> float:
    """A guess, from the cases' least work on an H200: only its proportions between kernels count."""
    cases = (bound(kernel.work(**case), GPUS["h200"]).seconds for case in kernel.benches.values())
    return START + sum(COMPILE + rounds * SLOWER * max(seconds, 20e-6) for seconds in cases)


def share(left: float, expected: list[float]) -> float:
    """Of the seconds left, those of the first kernel of the list: what others do not use is theirs in turn."""
    return max(0.0, left) * expected[0] / sum(expected)


def supervised(command: list[str], seconds: float, to: Path) -> tuple[list[dict], str]:
    """Run a command that writes lines of JSON to `to`. Its lines, and "" or what went wrong; after `seconds` it and its children are killed."""
    to.write_text("")
    log, trouble = to.with_suffix(".log"), ""
    with open(log, "w") as complaints:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=complaints)
        try:
            if status := process.wait(seconds):
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                trouble = f"ended with status {status}: {(said or ['no message'])[-1][:300]}"
        except subprocess.TimeoutExpired:
            trouble = f"not finished after {seconds:.0f} seconds, and killed"
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                trouble += "; it is still there"                           # waiting inside the driver
    lines = to.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")], trouble    # a line cut short by the end is not whole


def kernel_record(lines: list[dict], trouble: str, wanted: list[str]) -> dict:
    """A kernel's part of the stored file. Its state: "measured", or "failed" with the reasons in `troubles`."""
    cases = {line["case"]: {k: v for k, v in line.items() if k != "case"} for line in lines if "case" in line}
    troubles = [f"{name}: {why}" for name, c in cases.items() if (why := c.get("crashed") or c.get("accuracy", {}).get("failure"))]
    troubles += [trouble] if trouble else []
    troubles += [f"{name}: not measured" for name in wanted if name not in cases or "skipped" in cases[name]]
    record = {"state": "failed" if troubles else "measured", "troubles": troubles, **versions()}
    for line in lines:
        record |= {key: line[key] for key in ("card", "ceilings", "card_after") if key in line}
    return {**record, "cases": cases}


def versions() -> dict:
    """What was measured with, and when. A package that is not there is None."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        commit = ""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "commit": commit, "python": platform.python_version(), **{n: version(n) for n in ("torch", "triton", "bitsandbytes")}}


def measure(
    names: list[str], rounds: int, seconds: float, file: Path, gpu: str, command: Callable[[str, float, Path], list[str]], now=time.monotonic
) -> bool:
    """Measure the kernels one after the other and store each at once; False if one failed. `command`: name, seconds, file -> what to run."""
    end, all_kernels = now() + seconds - RESERVE, kernels()
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"gpu": gpu, "kernels": {}}
    expected, good = [expected_seconds(all_kernels[name], rounds) for name in names], True
    for number, name in enumerate(names):
        mine = share(end - now(), expected[number:])
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "lines.json"
            ran = supervised(command(name, mine, to), mine, to) if mine > MINIMUM else ([], f"{mine:.0f} seconds were left for it")
            record = kernel_record(*ran, list(all_kernels[name].benches))
        stored["kernels"][name] = record
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        for line in case_lines(name, record):
            print(line, flush=True)
        good &= record["state"] == "measured"
    return good


def without_gpu(names: list[str], rounds: int) -> None:
    """Say what cannot run, then the CPU rows."""
    are = "is" if len(names) == 1 else "are"
    print(f"No GPU here: {', '.join(names)} {are} not timed, nor are a copy and cuBLAS to state them against. Triton's interpreter runs")
    print("the kernels on a CPU to check them (make test); its speed says nothing. `make gate` compiles them for sm80, sm90 and gfx942.\n")
    from benchmarks.kernels_cpu import rows

    for line in rows(rounds):
        print(line, flush=True)


def case_command(rounds: int) -> Callable[[str, float, Path], list[str]]:
    """The process of a kernel, which stops by itself a little before it would be killed."""
    return lambda name, seconds, to: [
        sys.executable, "-m", "benchmarks.kernel_case", name, "--seconds", str(max(1.0, seconds - START)), "--rounds", str(rounds), "--to", str(to),
    ]  # fmt: skip


def main(words: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", help="kernels (default: all)")
    options.add_argument("--rounds", type=int, default=20, help="turns of every system, at least 20")
    options.add_argument("--seconds", type=float, default=480, help="for everything")
    options.add_argument("--json", type=Path, help="where to store (default: benchmarks/results/kernels-GPU.json)")
    options.add_argument("--report", type=Path, nargs="*", metavar="FILE", help="only the page and the pictures, from these files (default: all)")
    chosen = options.parse_args(words)
    stored = lambda: sorted(RESULTS.glob("kernels-*.json"))
    if chosen.report is not None:
        print(f"wrote {write_page(chosen.report or stored())}")
        return 0
    if chosen.rounds < 20:
        options.error(f"--rounds {chosen.rounds}: an interval from fewer than 20 says little")
    if not START + RESERVE < chosen.seconds < float("inf"):
        options.error(f"--seconds {chosen.seconds:g}: wanted more than {START + RESERVE:g}, of which a process takes {START:g} to begin")
    there = kernels()
    for name in chosen.names:
        if name not in there:
            near = ", ".join(get_close_matches(name, there, n=3))
            options.error(f"there is no kernel {name!r}{'; near names: ' + near if near else ''}. There are {', '.join(there)}")
    names = chosen.names or list(there)
    if not torch.cuda.is_available():
        without_gpu(names, chosen.rounds)
        return 0
    if INTERPRETED:
        options.error("TRITON_INTERPRET=1 is set: the kernels would run in the interpreter. Run it without")
    gpu = torch.cuda.get_device_name()
    file = chosen.json or RESULTS / f"kernels-{known(gpu) or '-'.join(gpu.lower().split())}.json"
    good = measure(names, chosen.rounds, chosen.seconds, file, gpu, case_command(chosen.rounds))
    print(f"wrote {file}" + ("; --report makes a page of it" if chosen.json else f" and {write_page(stored())}"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
