"""4 bits on a CPU: minift beside bitsandbytes, in one process, taking turns.

    python -m benchmarks.quant_cpu [--sizes 1024 4096] [--rounds 9] [--threads 1 2]
    python -m benchmarks.quant_cpu --report          only the page, from the stored numbers

NF4, blocks of 64, without and with double quantization: quantize and dequantize an N x N weight, and the linear y = x WT for 1, 16 and 256
rows of x, with float32, bfloat16 and float16 weights and x; beside them the dense linear. Bytes and values are compared to the bit first,
outputs of the linears with the dense one on the rounded weight; where they differ no speed is printed. Each round runs every system once, in
an order that reverses; a ratio is the median of the ratios within a round. CPU seconds are those of all threads of the process, which other
programs on the machine change less; OpenMP's threads sleep while they wait (OMP_WAIT_POLICY=passive), for both.
Writes benchmarks/results/quant_cpu.json and the table in docs/quant_cpu.md."""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")                                   # read when torch is imported

import torch

from benchmarks.measure import RESULTS, store
from minift import quant

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS = (1, 16, 256)
PAGE = RESULTS.parents[1] / "docs" / "quant_cpu.md"


def turns(systems: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """{system: {"wall": seconds of each round, "cpu": ...}}, after one call of each that is not counted."""
    found = {name: {"wall": [], "cpu": []} for name in systems}
    for number in range(rounds + 1):
        for name in list(systems) if number % 2 else list(systems)[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            systems[name]()
            if number:
                found[name]["wall"].append(time.perf_counter() - wall)
                found[name]["cpu"].append(time.process_time() - cpu)
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of each system, and how many times faster than bitsandbytes by either clock."""
    base = found["bitsandbytes"]
    over = lambda clock, own: median(b / max(o, 1e-9) for b, o in zip(base[clock], own[clock]))
    return {
        name: {"ms": 1e3 * median(own["wall"]), "least_ms": 1e3 * min(own["wall"]), "cpu_ms": 1e3 * median(own["cpu"]),
               "faster_wall": over("wall", own), "faster_cpu": over("cpu", own)}
        for name, own in found.items()
    }  # fmt: skip


def systems(size: int, dtype: torch.dtype):
    """(job, {system: call}) for each row of the table, after the answers agree."""
    import bitsandbytes as bnb

    theirs = bnb.functional
    torch.manual_seed(0)
    w = (torch.randn(size, size) * 0.02).to(dtype)
    yield "quantize", {
        "bitsandbytes": lambda: theirs.quantize_4bit(w, quant_type="nf4", blocksize=64),
        "minift": lambda: quant.quantize(w, "nf4", 64, False),
    }
    for double in (False, True):
        packed, state = theirs.quantize_4bit(w, quant_type="nf4", blocksize=64, compress_statistics=double)
        q = quant.quantize(w, "nf4", 64, double)
        assert torch.equal(q.packed, packed.flatten()), "not the same bytes"
        assert torch.equal(quant.dequantize(q), theirs.dequantize_4bit(packed, state)), "not the same values"
        yield f"dequantize{', double quant' if double else ''}", {
            "bitsandbytes": lambda p=packed, s=state: theirs.dequantize_4bit(p, s), "minift": lambda q=q: quant.dequantize(q)
        }  # fmt: skip
    dense = torch.nn.Linear(size, size, bias=False, dtype=dtype)
    dense.weight.data.copy_(w)
    ours = quant.QuantizedLinear.of(dense, "nf4")
    layer = bnb.nn.Linear4bit(size, size, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    layer.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer = layer.to("cpu")
    W = ours.weight.float()
    for M in ROWS:
        x = torch.randn(M, size, dtype=dtype)
        exact = x.float() @ W.T
        far = {name: ((f(x).float() - exact).norm() / exact.norm()).item() for name, f in (("minift", ours), ("bitsandbytes", layer))}
        assert far["minift"] <= 4 * torch.finfo(dtype).eps, far                       # W, x and y rounded to dtype
        calls = {"bitsandbytes": lambda x=x: layer(x), "minift": lambda x=x: ours(x), "dense": lambda x=x: dense(x)}
        yield f"linear, {M} row{'s' * (M > 1)}", calls


@torch.no_grad()
def measure(sizes: list[int], rounds: int, threads: list[int]) -> None:
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        for size, (name, dtype) in itertools.product(sizes, DTYPES.items()):
            for job, calls in systems(size, dtype):
                found = summary(turns(calls, rounds))
                rows.append({"size": size, "threads": count, "dtype": name, "job": job, "systems": found})
                ours = found["minift"]
                print(f"{size}, {count} thread(s)  {name}  {job:26} {found['bitsandbytes']['ms']:8.1f} ms -> {ours['ms']:7.1f} ms   "
                      f"{ours['faster_wall']:5.2f} times as fast, {ours['faster_cpu']:5.2f} by CPU seconds", flush=True)  # fmt: skip
    store("quant_cpu", {"bitsandbytes": version("bitsandbytes"), "rounds": rounds, "cores": os.cpu_count(), "load": os.getloadavg()[1], "rows": rows})


def table(stored: dict) -> str:
    columns = ["N", "threads", "dtype", "what", "bitsandbytes, ms", "minift, ms", "dense, ms", "faster, wall clock", "faster, CPU seconds"]
    lines = [f"| {' | '.join(columns)} |", "|---" * 9 + "|"]
    for row in stored["rows"]:
        their, ours, dense = (row["systems"].get(name) for name in ("bitsandbytes", "minift", "dense"))
        beside = f"{dense['ms']:.1f}" if dense else ""
        lines.append(
            f"| {row['size']} | {row['threads']} | {row['dtype']} | {row['job']} | {their['ms']:.1f} | {ours['ms']:.1f} | {beside} "
            f"| {ours['faster_wall']:.2f} | {ours['faster_cpu']:.2f} |"
        )
    made = stored["machine"]
    where = (
        f"{made['cpu']}, torch {made['torch']}, bitsandbytes {stored['bitsandbytes']}, Python {made['python']}, commit {made['commit']}; "
        f"{stored['rounds']} rounds; programs waiting for its {stored['cores']} cores, this one among them: {stored['load']:.1f} on average."
    )
    return "\n".join([*lines, "", where])


def report() -> None:
    stored = json.loads((RESULTS / "quant_cpu.json").read_text())
    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- table -->\n")
    PAGE.write_text(f"{before}<!-- table -->\n{table(stored)}\n<!-- end of table -->{rest.split('<!-- end of table -->')[1]}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        measure(arguments.sizes, arguments.rounds, arguments.threads)
    report()
