"""What is in a folder: a model's modules, shapes, parameters and memory; for an adapter, what it changes and by how much.

    ‖ΔW‖ is the Frobenius norm of the change an adapter makes to a weight, (alpha / r) B A for LoRA; minift/peft/changes.py has the others.

Nothing of a model is loaded, unless --model asks for the differences to its weights: shapes come from the headers of the files.
Proved in tests/recipes/test_using.py."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from minift import folder as folders
from minift.errors import InputError
from minift.files import recover
from minift.models.folder import config_json, config_of, skeleton, wanted_tensors
from minift.models.stored import FLOATS, stored
from minift.peft import files as adapters
from minift.peft.adapter_folders import config_path
from minift.peft.changes import changes, changes_on
from minift.quant.folder import gather
from minift.quant.layout import stated
from minift.recipes.base_record import Asked
from minift.recipes.loading import load_base, put_on
from minift.recipes.report import terminal_table


@dataclass(frozen=True)
class Config:
    """A table of a model's or an adapter's modules, parameters and memory."""

    folder: Annotated[str, tyro.conf.Positional]
    """A model folder, an adapter folder, or the bundled "base"."""
    model: str | None = None
    """The base model of an adapter: measures the change of each weight, which the file alone does not tell for every method."""
    quantize: Asked | None = None
    """With --model: its linears in 4 or 8 bits, as the adapter was trained on; none: full weights, though it was not."""


def run(config: Config) -> None:
    path = recover(config.folder)
    is_adapter = config_path(path).exists()
    if config.model is not None and not is_adapter:
        raise InputError(f"--model names the base of an adapter, and {path} is none: leave it out")
    if config.quantize is not None and config.model is None:
        raise InputError("--quantize says how --model is loaded: give both")
    Console().print(adapter_table(path, config.model, config.quantize) if is_adapter else model_table(folders.locate(config.folder)))


def model_table(folder: Path) -> Table:
    """One line per kind of tensor: repeated blocks are one line, and so is a quantized weight with its scales."""
    kinds: dict[tuple[str, tuple[int, ...], str], int] = {}
    held, hf, packed, total = stored(folder), config_json(folder), {}, 0
    size = sum(prod(tensor.shape) * FLOATS.get(tensor.dtype, 1) for tensor in held.values())
    if method := hf.pop("quantization_config", None):
        plan = skeleton(config := config_of(hf, folder))
        held, packed = gather(held, wanted_tensors(config, plan), plan)
    for name, tensor in held.items():
        dtype = stated(method).scheme if name in packed else tensor.dtype
        key = (".".join("N" if part.isdigit() else part for part in name.split(".")), tensor.shape, dtype)
        kinds[key] = kinds.get(key, 0) + 1
        total += prod(tensor.shape)
    rows = []
    for (name, shape, dtype), times in kinds.items():
        numbers = times * prod(shape)
        rows.append([name, str(times), " x ".join(map(str, shape)), dtype, f"{numbers:,}", f"{100 * numbers / total:.1f} %"])
    rows.append(["all", str(sum(kinds.values())), "", "", f"{total:,}", f"{size / 1e6:,.1f} MB"])
    return terminal_table(str(folder), ["tensor", "times", "shape", "stored as", "parameters", "share"], rows)


def adapter_table(folder: Path, base: str | None = None, quantize: Asked | None = None) -> Table:
    method, tensors = adapters.read(folder)
    if base is None:
        found = changes(method, tensors)
    else:
        model, _ = load_base(base, quantize, encoders=True)
        put_on(model, folder, quantize)
        try:
            found = changes_on(model)
        except InputError as error:
            raise InputError(f"--model measures what merging would change. {error}; without --model its own numbers are shown") from None
    measures = {change.measure for change in found}
    numbers, size = sum(tensor.numel() for tensor in tensors.values()), sum(t.numel() * t.element_size() for t in tensors.values())
    rows = [[
        c.module, "" if c.rank is None else str(c.rank), f"{c.parameters:,}", f"{c.size:.4f}" if len(measures) == 1 else f"{c.measure} {c.size:.4f}",
        "" if c.singular_values is None or not len(c.singular_values) else f"{c.singular_values[0]:.4f}",
    ] for c in found]    # fmt: skip
    header = ["module", "rank", "parameters", measures.pop() if len(measures) == 1 else "size", "largest singular value"]
    used = [place for place, name in enumerate(header) if any(row[place] for row in rows)]
    rows.append(["all", "", f"{numbers:,}", f"{size / 1e6:.2f} MB", ""])
    return terminal_table(f"{folder}: {method}", [header[i] for i in used], [[row[i] for i in used] for row in rows])
