"""What a process that trains holds at its peak: `python -m benchmarks.training_profile --memory`, docs/training_memory.md.

    peak = libraries + weights + optimizer + step + rest         MiB

peak is the largest resident set of eight steps. libraries is the resident set when the model was loaded and its weights read once, less the weights (transformers maps them from their file, which
makes them resident when they are read); weights and optimizer are the tensors alive then and between two steps, step is what PyTorch's profiler saw allocated above that at once in the next two
steps (gradients, activations, logits), and rest what the peak is more than all of this: holes between allocations, scratch memory of kernels that PyTorch does not know of.
Gradients are let go of before the profiler begins, since it does not see the end of what it did not see begin. Proved in tests/benchmarks/test_training_memory.py."""

import gc
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.training import OURS
from benchmarks.turns import between_marks, hardware, made_on, memory

PARTS = ("libraries", "weights", "optimizer", "step", "rest")
WARM, STEPS = 8, 2
MIB = 2**20


class Weighed:
    """A gate that looks at the memory of the steps behind the first ones, and then ends the side."""

    def __init__(self, pipe):
        self.pipe, self.steps = pipe, 0

    def open(self) -> None:
        for tensor in tensors():
            tensor.detach().flatten()[::512].sum()                                # a number of every page
        self.loaded, self.weights = memory("VmRSS"), alive()

    def tick(self, loss: float, work: float = 1.0) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.steps += 1
        if self.steps == WARM:
            self.peak = memory("VmHWM")                                          # the profiler needs memory itself
            for tensor in tensors():
                if tensor.is_leaf:
                    tensor.grad = None
            self.border = alive()
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()
        if self.steps == WARM + STEPS:
            self.profile.__exit__(None, None, None)
            changes = sorted((event.start_ns(), event.nbytes()) for event in self.profile.profiler.kineto_results.events() if event.name() == "[memory]")
            above = highest(change for _, change in changes)
            self.pipe.send(parts(self.peak, self.loaded, self.weights, self.border, above))
            os._exit(0)


def tensors() -> list:
    """Those that Python knows of and that have memory: a compiler's (torch._subclasses, and what those wrap) have none."""
    import torch

    kind = lambda found: issubclass(type(found), torch.Tensor) and not type(found).__module__.startswith("torch._")          # isinstance would wake other libraries' lazy objects
    return [found for found in gc.get_objects() if kind(found) and found.layout == torch.strided and not torch._is_functional_tensor(found)]


def alive() -> int:
    """Bytes of all tensors, each piece of memory once."""
    return sum({found.untyped_storage().data_ptr(): found.untyped_storage().nbytes() for found in tensors()}.values())


def highest(changes: Iterable[int]) -> int:
    """The most that is held on the way, if 0 is held at first."""
    now = most = 0
    for change in changes:
        now += change
        most = max(most, now)
    return most


def parts(peak: float, loaded: float, weights: int, border: int, step: int) -> dict[str, float]:
    """peak and loaded in MiB, the others in bytes -> MiB of each part; "peak" is their sum."""
    found = {"libraries": loaded - weights / MIB, "weights": weights / MIB, "optimizer": (border - weights) / MIB, "step": step / MIB}
    found["rest"] = peak - sum(found.values())
    return {part: round(size) for part, size in found.items()} | {"peak": round(peak)}


def lines(rows: Mapping[str, dict]) -> list[str]:
    head = f"| work | dtype | side | peak, MiB | {' | '.join(PARTS)} | ours / theirs | without our rest |"
    table = [head, "|" + "---|" * (head.count("|") - 1)]
    for key, row in rows.items():
        case, precision = key.split()
        for name, found in row["sides"].items():
            if "absent" not in found:
                ours = row["sides"][OURS]
                beside = " | " if name == OURS else f"{ours['peak'] / found['peak']:.2f} | {(ours['peak'] - ours['rest']) / found['peak']:.2f}"
                table.append(f"| {case} | {precision} | {name} | {found['peak']:,} | {' | '.join(f'{found[part]:,}' for part in PARTS)} | {beside} |")
    return table


def draw(picture: Path, rows: Mapping[str, dict], on: str) -> None:
    """Stacked bars by part, of every side of every row."""
    from minift.recipes.report import pyplot

    plt = pyplot()
    bars = [(f"{key} {name}", found) for key, row in rows.items() for name, found in row["sides"].items() if "peak" in found]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.24 * len(bars)), layout="constrained")
    left = [0.0] * len(bars)
    for part in PARTS:
        sizes = [max(0, found[part]) for _, found in bars]
        axes.barh([label for label, _ in bars], sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes)]
    axes.invert_yaxis()
    axes.set_xlabel("MiB at the peak of the resident set")
    axes.set_title(f"What a process that trains holds\n{on}", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def write_page(page: Path, values: dict) -> None:
    draw(page.with_suffix(".png"), values["rows"], hardware(values["machine"]))
    between_marks(page, [f"![what a process that trains holds]({page.stem}.png)", "", *lines(values["rows"]), "", made_on(values, dict.fromkeys(("transformers", "peft", "trl"), ""))])
