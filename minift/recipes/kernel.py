"""`minift kernel NAME`: a kernel as a lesson. Its maths, what bounds it on a GPU of your choice, what the compiler made of it, what was measured.

    minift kernel dequantize --gpu a100 --shape n 4096 block_size 128

Four sources, each said to be missing where it is: the kernel's own first page; its `work`, over the data of minift_kernels/chips.py; the record
of the compile gate, that of its newest Triton; results that benchmarks/kernels.py stored. No GPU is needed; Triton is, since kernels are
written in it. Everything is made for 80 columns: no word and no number is split, cases go on in a second line.
Proved in tests/recipes/test_kernel.py."""

import importlib.util
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

import minift_kernels
from minift.errors import InputError
from minift.recipes.methods import parse
from minift.recipes.report import terminal_table
from minift_kernels.chips import GPU, GPUS, bound
from minift_kernels.registry import Kernel, kernels

GATE = Path(minift_kernels.__file__).with_name("gate.json")
"""What the compile gate found: benchmarks/results/kernel_gate.json, which travels with the package."""
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
"""In a checkout; an installed package has none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A kernel as a lesson: its maths, what bounds it, what the compiler made of it, what was measured."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """One kernel; empty: all, with a line each."""
    gpu: Literal["h200", "h100", "a100", "mi300x"] = "h200"
    """The GPU that bounds are for. It need not be here."""
    shape: dict[str, str] = field(default_factory=dict)
    """A case of your own, as FIELD VALUE pairs: --shape n 4096 block_size 128. Fields left out are those of the kernel's first case."""


def run(config: Config) -> None:
    if importlib.util.find_spec("triton") is None:
        raise InputError("the kernels are written in Triton, which is not installed: pip install triton (it has wheels for Linux on x86-64 only)")
    console, there = Console(), kernels()
    if not config.name:
        if config.shape:
            raise InputError("--shape belongs to one kernel: minift kernel NAME --shape ...")
        rows = [[name, idea(page(kernel))] for name, kernel in there.items()]
        console.print(terminal_table("minift kernel NAME", ["kernel", "what it computes"], rows, left=2))
        return
    if config.name not in there:
        near = ", ".join(get_close_matches(config.name, there, n=3, cutoff=0.4))
        raise InputError(f"there is no kernel {config.name!r}{'; near names: ' + near if near else ''}. There are {', '.join(there)}")
    kernel, gpu = there[config.name], GPUS[config.gpu]
    cases = ({"yours": own_case(kernel, config.shape)} if config.shape else {}) | dict(kernel.benches)
    rows = [bound_row(kernel, gpu, name, case) for name, case in cases.items()]
    console.print(folded(page(kernel), console.width), markup=False, highlight=False, soft_wrap=True)
    console.print()
    title = ["case", "MB", "GFLOP", "FLOP/\nbyte", "bytes,\nus", "FLOPs,\nus", "bound\nby"]
    console.print(fitted(f"What bounds it on one {gpu.name}: the larger of two times. {ceilings(gpu)}", title, rows))
    if config.shape:
        console.print(f"yours: {shown(cases['yours'])}\n", markup=False, highlight=False)
    show_gate(console, kernel, gpu)
    show_measured(console, kernel)


def page(kernel: Kernel) -> str:
    """The docstring of the file that a kernel is written in."""
    home = next(m for name, m in sys.modules.items() if name.startswith("minift_kernels.") and getattr(m, "KERNEL", None) is kernel)
    return inspect.getdoc(home) or ""


def folded(text: str, width: int) -> str:
    """Lines of at most `width`, broken between words: a sentence that goes on in the next line is filled up; an equation keeps its own, and
    is broken between its parts, which stand wide apart."""
    lines: list[str] = []
    for line in text.split("\n"):
        prose = lines and lines[-1] and line and not lines[-1].startswith("    ") and not line.startswith(("    ", "- "))
        if prose and not lines[-1].endswith((".", ":")):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    if max(map(len, text.split("\n"))) <= width:
        return text
    folded_lines: list[str] = []
    for line in lines:
        hanging = "  " if line.startswith("- ") else line[: len(line) - len(line.lstrip())]
        parts = [line]
        if line.startswith("    ") and len(line) > width:
            hanging, parts = " " * 8, []
            for part in re.split(" {3,}", line.strip()):
                fits = parts and len(parts[-1]) + 6 + len(part) <= width
                parts[-1:] = [f"{parts[-1]}      {part}"] if fits else [*parts[-1:], (hanging if parts else "    ") + part]
        for part in parts:
            folded_lines += textwrap.wrap(part, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(folded_lines)


def fitted(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> Table:
    """A table whose numbers and headers are never broken; columns without an entry are left out."""
    used = [i for i in range(len(header)) if any(str(row[i]) for row in rows)]
    table = terminal_table(title, [header[i] for i in used], [[str(row[i]) for i in used] for row in rows], left=left)
    for column in table.columns[left:]:
        column.no_wrap = True
    return table


def idea(text: str) -> str:
    """The first sentence: up to the first empty line."""
    return " ".join(text.split("\n\n")[0].split())


def own_case(kernel: Kernel, pairs: Mapping[str, str]) -> dict[str, Any]:
    """The kernel's first case with these fields changed; a value is read as what stands there."""
    name, case = next(iter(kernel.benches.items()))
    case = dict(case)
    for given, text in pairs.items():
        key = given.replace("-", "_")
        if key not in case:
            raise InputError(f"--shape {given}: {kernel.name} has no such field; it has {shown(case)}")
        if isinstance(case[key], torch.dtype):
            case[key] = getattr(torch, text.removeprefix("torch."), None)
            if not isinstance(case[key], torch.dtype):
                raise InputError(f"--shape {key} is {text!r}: wanted a dtype, as bfloat16")
        elif isinstance(case[key], bool | int | float | str):
            case[key] = parse(text, type(case[key]), f"--shape {key}")
        else:
            raise InputError(f"--shape {key}: a {type(case[key]).__name__} cannot be given here; it stays as in the case {name!r}")
    return case


def bound_row(kernel: Kernel, gpu: GPU, name: str, case: Mapping[str, Any]) -> list[str]:
    try:
        work = kernel.work(**case)
        if work.bytes <= 0 or work.flops < 0:
            raise ValueError(f"it would move {work.bytes:,.0f} bytes")
    except (ArithmeticError, ValueError, TypeError) as error:
        raise InputError(f"--shape: {kernel.name} cannot have the case {shown(case)}: {error}") from None
    least = bound(work, gpu)
    return [name, f"{work.bytes / 1e6:,.4g}", f"{work.flops / 1e9:,.4g}", f"{work.flops / work.bytes:.3g}", us(least.bytes_seconds),
            us(least.flops_seconds), least.by]  # fmt: skip


def us(seconds: float) -> str:
    return f"{1e6 * seconds:,.3g}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"


def shown(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {str(value).removeprefix('torch.')}" for key, value in case.items())


def ceilings(gpu: GPU) -> str:
    """What the times are over, and where it comes from."""
    if gpu.copy is None or gpu.matmul is None:
        return f"Data sheet: {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.bf16 / 1e12:.0f} TFLOP/s in bf16; nothing measured here"
    return (f"{gpu.copy / 1e12:.2f} TB/s in a copy (data sheet {gpu.bandwidth / 1e12:.2f}), {gpu.matmul / 1e12:.0f} TFLOP/s in a bf16 product (data "
            f"sheet {gpu.bf16 / 1e12:.0f}): given to us as measured on another one, by no script here")  # fmt: skip


def newest(versions: set[str]) -> str:
    """The last of Triton's versions: "3.10.0" comes after "3.7.1"."""
    return max(versions, key=lambda version: [int(part) for part in version.split(".") if part.isdigit()])


def show_gate(console: Console, kernel: Kernel, gpu: GPU) -> None:
    records = json.loads(GATE.read_text(encoding="utf-8")) if GATE.exists() else []
    ours = [r for r in records if r["kernel"] == kernel.name and r["chip"] == gpu.chip]
    if not ours:
        why = "nothing is stored of it" if records else "no record of the compile gate is stored here"
        console.print(f"What the compiler makes of it for {gpu.chip}: {why}. In a checkout `make gate` compiles it\n", markup=False, highlight=False)
        return
    triton = newest({r["triton"] for r in ours})
    ours = [r for r in ours if r["triton"] == triton]
    rows = [[r["build"].removeprefix(f"{gpu.chip} "), r["warps"], r["registers"], r["spill"] or "", f"{r['shared']:,}", r["instructions"],
             *per_weight(r, gpu)] for r in ours]  # fmt: skip
    spills = "some spill" if any(r["spill"] for r in ours) else "none spills"
    title = (f"What the compiler makes of it for {gpu.chip}, Triton {triton}: counts of its machine code, no measured speed; {spills}. A block may "
             f"have {gpu.shared:,} bytes of shared memory")  # fmt: skip
    header = ["build", "warps", "regs", "spilled,\nbytes", "shared,\nbytes", "instr.", "instr./\nweight", "us/1e6\nweights"]
    console.print(fitted(title, header, rows))


def per_weight(record: Mapping[str, Any], gpu: GPU) -> list[str]:
    """Instructions that one 4-bit weight costs, and the least time in which a million of them can be started."""
    return [f"{record['slots']:g}", f"{1e12 * record['slots'] / gpu.issue:.3f}"] if "slots" in record else ["", ""]


def results() -> Iterator[tuple[str, dict[str, Any]]]:
    """(GPU, kernel name -> record) of every stored run."""
    for file in sorted(RESULTS.glob("kernels-*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        yield stored["gpu"], stored["kernels"]


def show_measured(console: Console, kernel: Kernel) -> None:
    found = [(gpu, records[kernel.name]) for gpu, records in results() if kernel.name in records]
    for gpu, record in found:
        rows = []
        for case, c in record["cases"].items():
            for provider, row in c.get("providers", {}).items():
                faster = "{median:.2f}x ({low:.2f} to {high:.2f})".format(**row["ours_faster"]) if "ours_faster" in row else ""
                rows.append([case, provider, f"{row['us']['median']:,.1f}", f"{100 * row['roofline']:.0f} %", faster])
        with_what = f"torch {record['torch']}, triton {record['triton']}, commit {record['commit'] or 'unknown'}, {record['date'][:10]}"
        title = ["case", "who", "us", "of the\nroofline", "minift's speed"]
        console.print(fitted(f"Measured on {gpu} ({with_what})", title, rows, left=2))
        for trouble in record["troubles"]:
            console.print(f"failed there: {trouble}", markup=False, highlight=False)
    if not found:
        text = f"Measured: nothing is stored. On a GPU, in a checkout: python -m benchmarks.kernels {kernel.name}"
        console.print(text, markup=False, highlight=False)
