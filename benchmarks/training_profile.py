"""Where a step's time goes on each side of benchmarks/training.py: PyTorch's profiler over some steps of minift, HF Trainer, trl and torchtune.

    python -m benchmarks.training_profile [--case full lora ...] [--precision fp32 bf16] [--sides ...]
    python -m benchmarks.training_profile --memory    not the time of a step but its memory (training_memory.py)
    python -m benchmarks.training_profile --quick     tiny models, to see that it runs; nothing is stored
    python -m benchmarks.training_profile --report    only the page and the picture, from the stored numbers

Each side is a process of its own, one after another: the first two steps are not profiled, the next three are (of `real` fifty). An operation's own time counts for one kind (KINDS); what the
profiler saw no operation in (Python, the allocator, waiting) is "between". Profiling itself takes time, so the sums say what a step is made of; how fast one is,
docs/training_speed.md says. Of `real`, ms are of 1,000 real tokens, and trl is shown as it comes and sorted by length, its fastest way. Writes benchmarks/results/training_profile.json and docs/training_profile.md with its picture.
Proved in tests/benchmarks/test_training_profile.py."""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import training_memory
from benchmarks.harness import DOCS, run_side
from benchmarks.measure import RESULTS, machine
from benchmarks.training import LIBRARIES, OURS, TRAINER, TRL
from benchmarks.training import SIDES as SIDES_OF
from benchmarks.training_case import CASES, FULL, QUICK, Sizes, write_start
from benchmarks.turns import QUIET, Absent, add, between_marks, hardware, made_on, print_into, read

KINDS = {
    "products": r"aten::(mm|addmm|addmm_|bmm|baddbmm|addmv_?|mv|linear|matmul)$|mkldnn",
    "attention": r"scaled_dot_product",
    "head and loss": r"softmax|nll_loss|cross_entropy|aten::(exp_?|gather|scatter\w*|logsumexp|xlogy)$",
    "optimizer": r"adam|foreach|Optimizer|linalg_vector_norm|clip",
    "copies": r"aten::(copy_|clone|cat|index\w*|embedding\w*|zero_|fill_|repeat\w*|masked_\w+|where)$",
    "elementwise": r"aten::(mul_?|add_?|addcmul_?|div_?|sub_?|neg|pow|silu\w*|rsqrt_?|mean|sum|sigmoid\w*|cos|sin|square_?|eq|ne|lt|gt|ge|le|bitwise_\w+)$|rms_norm|layer_norm",
}
"""Kind -> what the names of its operations look like; the first that fits counts. Everything else that has a name is "other"."""
PARTS = (*KINDS, "other", "between")
WARM, STEPS, REAL_STEPS = 2, 3, 50
"""Steps before, and of the profile; of `real`, where 50 are what trl sorts by length at a time."""
SORTED = "trl, by length"
SIDES = (OURS, TRAINER, TRL, SORTED, "torchtune")
TARGETS = LIBRARIES | {SORTED: SIDES_OF["real"][SORTED]}


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


class Traced:
    """A gate that profiles the steps behind the first ones, and then ends the side."""

    def __init__(self, pipe, steps: int = STEPS):
        self.pipe, self.last, self.steps, self.work = pipe, WARM + steps, 0, 0.0

    def open(self) -> None:
        pass

    def tick(self, loss: float, work: float = 1.0) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.steps += 1
        if self.steps > WARM:
            self.work += work
        if self.steps == WARM:
            self.profile = profile(activities=[ProfilerActivity.CPU])
            self.profile.__enter__()
            self.start = time.perf_counter()
        if self.steps == self.last:
            wall = time.perf_counter() - self.start
            self.profile.__exit__(None, None, None)
            self.pipe.send(parts({event.key: event.self_cpu_time_total / 1000 for event in self.profile.key_averages()}, 1000 * wall, self.work))
            os._exit(0)


def parts(operations: Mapping[str, float], wall: float, work: float) -> dict[str, float]:
    """Operations' own ms, those of the whole -> ms of each part of one step (or of a unit of work), "step" their sum. Names of annotations around operations, which hold Python's time, are "between"."""
    found = dict.fromkeys(PARTS, 0.0)
    for name, own in operations.items():
        found[kind_of(name) if re.match(r"(aten|mkldnn|torch_\w+)::", name) or kind_of(name) != "other" else "between"] += own
    found["between"] += max(0.0, wall - sum(found.values()))
    return {part: round(ms / work, 2) for part, ms in found.items()} | {"step": round(wall / work, 2)}


def side(pipe, gate: Callable[[Any], Any], log: Path, target: str, *arguments) -> None:
    print_into(log)
    try:
        run_side("training", gate(pipe), target, *arguments)
    except Absent as absent:
        pipe.send({"absent": str(absent)})


def target_of(name: str, case: str) -> str:
    return "ours.packed" if CASES[case].real and name == OURS else TARGETS[name]


def traced(spawn, log: Path, name: str, folder: Path, sizes: Sizes, case: str, precision: str, gate: Callable[[Any], Any] | None = None) -> dict:
    """Of one side, what its gate sends. RuntimeError if it fails."""
    gate = gate or partial(Traced, steps=REAL_STEPS if CASES[case].real and sizes == FULL else STEPS)
    here, there = spawn.Pipe()
    process = spawn.Process(target=side, args=(there, gate, log, target_of(name, case), folder, sizes, case, precision))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended without a word; see {log}") from None
    finally:
        process.join()


def bound(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The ratio if everything of ours but products and attention took no time."""
    return theirs["step"] / (ours["products"] + ours["attention"])


def lines(rows: Mapping[str, dict]) -> list[str]:
    head = f"| work | dtype | side | a step, ms | {' | '.join(PARTS)} | theirs / ours | if ours were products and attention alone |"
    table = [head, "|" + "---|" * (head.count("|") - 1)]
    for key, row in rows.items():
        case, precision = key.split()
        for name, found in row["sides"].items():
            if "absent" in found:
                continue
            beside = "" if name == OURS else f"{found['step'] / row['sides'][OURS]['step']:.2f} | {bound(row['sides'][OURS], found):.2f}"
            table.append(f"| {case} | {precision} | {name} | {found['step']:,.0f} | {' | '.join(f'{found[part]:,.0f}' for part in PARTS)} | {beside or ' | '} |")
    return table


def draw(picture: Path, rows: Mapping[str, dict], on: str) -> None:
    """Stacked bars by part: every side of every row but trl as it comes, whose bars would make the others short."""
    from minift.recipes.report import pyplot

    plt = pyplot()
    bars = [(f"{key} {name}", found, row["sides"][OURS]["step"]) for key, row in rows.items() for name, found in row["sides"].items() if "step" in found and name != TRL]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.24 * len(bars)), layout="constrained")
    left = [0.0] * len(bars)
    for part in PARTS:
        share = [found[part] / step for _, found, step in bars]
        axes.barh([label for label, *_ in bars], share, left=left, label=part)
        left = [a + b for a, b in zip(left, share)]
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("profiled time of a step, minift's step = 1")
    axes.set_title(f"Where a training step's time goes\n{on}", fontsize=9)
    axes.tick_params(labelsize=7)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(PARTS))
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def write_page(page: Path, values: dict) -> None:
    rows = values["rows"]
    draw(page.with_suffix(".png"), rows, hardware(values["machine"]))
    between_marks(page, [f"![where a step's time goes]({page.stem}.png)", "", *lines(rows), "", made_on(values, dict.fromkeys(("transformers", "peft", "trl"), ""))])


def main(given: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--case", nargs="+", choices=[c for c in CASES if c not in ("defaults", "start")], default=["full", "lora", "full-110m", "lora-110m", "full-v4096", "lora-v4096", "real"])
    options.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options.add_argument("--sides", nargs="+", choices=SIDES[1:], default=list(SIDES[1:]), help="beside minift")
    options.add_argument("--memory", action="store_true", help="not the time of a step but its memory, without torchtune")
    options.add_argument("--quick", action="store_true", help="tiny models; nothing is stored unless --json names a file")
    options.add_argument("--json", type=Path, help="where the numbers are kept")
    options.add_argument("--markdown", type=Path, help="the page with the table")
    options.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "training_profile.log", help="what the sides' libraries print is added to it")
    options.add_argument("--report", action="store_true", help="only the page, from the stored numbers")
    chosen = options.parse_args(given)
    gate, name, to_lines, to_page = (training_memory.Weighed, "training_memory", training_memory.lines, training_memory.write_page) if chosen.memory else (None, "training_profile", lines, write_page)
    stored, page = chosen.json or (None if chosen.quick else RESULTS / f"{name}.json"), chosen.markdown or DOCS / f"{name}.md"
    os.environ.update(QUIET)
    on, spawn, sizes = machine(), multiprocessing.get_context("spawn"), QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not chosen.report:
            writer = spawn.Process(target=write_start, args=(folder, sizes))
            writer.start()
            writer.join()
        for case, precision in [] if chosen.report else [(c, p) for c in chosen.case for p in chosen.precision]:
            names = [OURS, *(side for side in chosen.sides if shown(side, case, chosen.memory))]
            row = {"sides": {name: traced(spawn, chosen.log, name, folder, sizes, case, precision, gate) for name in names}}
            print("\n".join(to_lines({f"{case} {precision}": row})[2:]), flush=True)
            if stored is not None:
                add(stored, {"rows": {f"{case} {precision}": row}}, ("transformers", "peft", "trl"), on)
    if stored is not None and stored.exists():
        to_page(page, read(stored))


def shown(side: str, case: str, memory: bool) -> bool:
    """Is there such a side of this work, and is it looked at?"""
    if side == SORTED:
        return CASES[case].real
    return side != "torchtune" or (not memory and side in SIDES_OF.get(case, LIBRARIES))


if __name__ == "__main__":
    main()
