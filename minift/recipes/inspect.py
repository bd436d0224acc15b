"""What is in a folder: a model's modules, shapes, parameters and memory; for an adapter, what it changes and by how much.

    ‖ΔW‖ is the Frobenius norm of (alpha / r) B A, the change an adapter makes to a weight.

Nothing of a model is loaded: shapes come from the headers of the safetensors files.
Proved in tests/recipes/test_using.py."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from minift import folder as folders
from minift.models.folder import FLOATS, stored
from minift.peft import files as adapters
from minift.peft.changes import changes
from minift.recipes.report import terminal_table


@dataclass(frozen=True)
class Config:
    """A table of a model's or an adapter's modules, parameters and memory."""

    folder: Annotated[str, tyro.conf.Positional]
    """A model folder, an adapter folder, or the bundled "base"."""


def run(config: Config) -> None:
    path = Path(config.folder)
    is_adapter = (path / "adapter_config.json").exists()
    Console().print(adapter_table(path) if is_adapter else model_table(folders.locate(config.folder)))


def model_table(folder: Path) -> Table:
    """One line per kind of tensor: repeated blocks are one line."""
    kinds: dict[tuple[str, tuple[int, ...], str], int] = {}
    total = size = 0
    for name, tensor in stored(folder).items():
        key = (".".join("N" if part.isdigit() else part for part in name.split(".")), tensor.shape, tensor.dtype)
        kinds[key] = kinds.get(key, 0) + 1
        total += prod(tensor.shape)
        size += prod(tensor.shape) * FLOATS.get(tensor.dtype, 1)
    rows = []
    for (name, shape, dtype), times in kinds.items():
        numbers = times * prod(shape)
        rows.append([name, str(times), " x ".join(map(str, shape)), dtype, f"{numbers:,}", f"{100 * numbers / total:.1f} %"])
    rows.append(["all", str(sum(kinds.values())), "", "", f"{total:,}", f"{size / 1e6:,.1f} MB"])
    return terminal_table(str(folder), ["tensor", "times", "shape", "stored as", "parameters", "share"], rows)


def adapter_table(folder: Path) -> Table:
    method, tensors = adapters.read(folder)
    total = sum(tensor.numel() for tensor in tensors.values())
    rows = [[c.module, str(c.rank), f"{c.parameters:,}", f"{c.norm:.4f}", f"{c.singular_values[0]:.4f}"] for c in changes(method, tensors)]
    rows.append(["all", "", f"{total:,}", "", f"{sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6:.2f} MB"])
    return terminal_table(f"{folder}: {method}", ["module", "rank", "parameters", "‖ΔW‖", "largest singular value"], rows)
