"""Make one LoRA adapter of several: 0.7 of one and 0.3 of another, a vote between them, or one minus another.

    minift combine --adapters style/ facts/ --weights 0.7 0.3 --out both/

What is added are the changes the adapters make to each weight, never their matrices by themselves (minift/peft/combine.py).
Proved in tests/recipes/test_using.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from minift import folder as folders
from minift import peft
from minift.errors import InputError
from minift.files import recover, refuse_if_used
from minift.recipes import base_record
from minift.recipes.report import terminal_table


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make one LoRA adapter of several."""

    adapters: tuple[Path, ...]
    """The adapter folders, all for one base model."""
    weights: tuple[float, ...]
    """A number for each: its change is multiplied by it. Negative takes it away."""
    out: Path
    """The folder to write."""
    how: Literal["linear", "concat", "svd", "ties", "dare"] = "linear"
    """linear: the exact sum at the smallest rank. concat: the exact sum, ranks added. svd: the sum cut to --rank. ties: trim, elect a sign,
    mean of those who agree. dare: drop entries at random, rescale. The last two are cut to --rank too."""
    rank: int | None = None
    """Of svd, ties and dare; none: the largest that one of the adapters has in the module."""
    density: float = 0.5
    """The share of a change's entries that ties and dare keep."""
    seed: int = 0
    """Of dare's draws."""
    model: str = "base"
    """The base model the adapters are for."""
    overwrite: bool = False
    """Replace the folder."""


def run(config: Config) -> None:
    if len(config.adapters) != len(config.weights):
        raise InputError(f"{len(config.adapters)} --adapters but {len(config.weights)} --weights: give one number for each folder")
    refuse_if_used(config.out, config.overwrite)
    folders_in, records = [recover(folder) for folder in config.adapters], []
    for folder in folders_in:
        records.append(base_record.read(folder))
        if records[-1] is not None and records[-1].get("rounded_by") == "loftq":
            raise InputError(f"{folder} is LoftQ's: part of it makes up for rounding its base, which a weighted sum would lose. Merge it instead")
        if records[-1] != records[0]:
            both = f"{folders_in[0]} and {folder}"
            raise InputError(f"{both} were not trained on the same kind of base ({base_record.FILE}): no base is right for both, combine others")
    model, _ = folders.decoder(config.model)
    sets = {f"{place}": weight for place, weight in enumerate(config.weights, 1)}
    for name, folder in zip(sets, folders_in):
        peft.load(model, folder, name)
    kept = peft.combine(model, sets, "combined", config.how, config.rank, config.density, config.seed)
    peft.save(model, config.out, "combined", config.overwrite, config.model)
    if records[0] is not None:
        base_record.put(config.out, records[0])
    rows = [[path, str(rank), f"{100 * share:.2f} %"] for path, (rank, share) in kept.items()]
    Console().print(terminal_table(f"{config.out}: {config.how}", ["module", "rank", "kept of ‖ΔW‖²"], rows))
    print(f"written: {config.out}, a LoRA adapter for {config.model}")
