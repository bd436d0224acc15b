"""Notebooks are tests: run every lesson from its first cell to its last, and fail where one fails.

    python -m notebooks.execute                        every notebook of this folder
    python -m notebooks.execute 03_the_loop            one of them
    python -m notebooks.execute 03_the_loop --store    and keep the outputs in the file
    python -m notebooks.execute --jobs 2               two at a time: a lesson computes on one core

Each runs in a fresh kernel, in a temporary copy of this folder, so nothing a lesson writes stays behind. A lesson ends with a cell
of assertions: a wrong number stops it, the notebook and the cell are named, and the exit status is 1.
What --store keeps is what a reader sees and nothing else: no times, no versions, no counters of earlier runs.
Proved in tests/parity/test_execute.py (nbclient comes with the extra [notebooks])."""

import argparse
import base64
import io
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

HERE = Path(__file__).parent
LARGEST = 300_000
"""Bytes of a stored notebook: the repository is cloned by people who only want the library."""


def execute(path: Path, seconds: int = 600) -> nbformat.NotebookNode:
    """Run one notebook in a copy of its folder and return it with its outputs. Raises RuntimeError naming notebook and cell."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"        # pictures go into the notebook, also where CI says Agg
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / path.parent.name
        shutil.copytree(path.parent, copy, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__", ".ipynb_checkpoints", "runs"))
        client = NotebookClient(
            notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": str(copy)}},
            extra_arguments=["--IPKernelApp.log_level=40"],                            # errors only
        )  # fmt: skip
        try:
            client.execute()
        except CellExecutionError as error:
            raise RuntimeError(f"{path.name}, {where(notebook)}{error.ename}: {error.evalue}".rstrip(": ")) from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise RuntimeError(f"{path.name}: {str(error).strip().splitlines()[0]}") from None
    return notebook


def where(notebook: nbformat.NotebookNode) -> str:
    """The cell that failed, counted from 1, and the line of it: "cell 7, line 2 (assert 1 == 2): "."""
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                plain = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.traceback))
                arrows = re.findall(r"^-+> (\d+) (.*)$", plain, flags=re.M)               # the first is in the cell, the rest in what it called
                return f"cell {number}" + (f", line {arrows[0][0]} ({arrows[0][1].strip()}): " if arrows else ": ")
    return ""


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out everything that differs from run to run without saying anything, so that a stored change is a real one."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": smaller(output.data["image/png"])}    # not also "<Figure size 720x340 with 1 Axes>"
    return notebook


def smaller(png: str) -> str:
    """A picture (base64, as notebooks keep it) in 64 colours, which is all a plot has: a third of the bytes."""
    aside = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(aside, "png", optimize=True)
    return base64.b64encode(aside.getvalue()).decode()


def store(notebook: nbformat.NotebookNode, path: Path) -> int:
    """Write the outputs back, and return the file's bytes. Raises RuntimeError, and writes nothing, if there are too many."""
    text = nbformat.writes(tidy(notebook)) + "\n"
    if len(text.encode()) > LARGEST:
        raise RuntimeError(f"{path.name} would have {len(text.encode()):,} bytes, more than {LARGEST:,}: draw fewer or smaller pictures")
    path.write_text(text, encoding="utf-8")
    return len(text.encode())


def cpu_seconds() -> float:
    """Of all kernels that have ended so far: the price that a lesson states."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def passed(path: Path, keep: bool) -> bool:
    """Run one lesson, say how it went, and whether it passed."""
    began, used = time.perf_counter(), cpu_seconds()
    try:
        notebook = execute(path)
        kept = f", {store(notebook, path) // 1000} kB stored" if keep else ""
        print(f"{path.stem}: passed in {time.perf_counter() - began:.0f} s ({cpu_seconds() - used:.0f} CPU seconds){kept}", flush=True)
        return True
    except RuntimeError as error:
        print(f"{path.stem}: FAILED\n{error}", file=sys.stderr, flush=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks.execute", description="Run the lessons from first to last cell.")
    parser.add_argument("names", nargs="*", help="notebooks of this folder, with or without .ipynb (default: all)")
    parser.add_argument("--store", action="store_true", help="keep the outputs in the notebook files")
    parser.add_argument("--jobs", type=int, default=1, help="lessons at a time (default: 1)")
    options = parser.parse_args()
    known = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    wanted = [name.removesuffix(".ipynb") for name in options.names] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        print(f"no notebook {', '.join(unknown)} in {HERE.name}/; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if options.jobs > 1:                                       # a process for each, so that CPU seconds are its own kernel's
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            found = list(pool.map(passed, [known[name] for name in wanted], [options.store] * len(wanted)))
    else:
        found = [passed(known[name], options.store) for name in wanted]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
