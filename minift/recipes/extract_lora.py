"""Turn a fully fine-tuned checkpoint into a LoRA adapter: the difference to its base, cut to low rank by an SVD.

    minift extract-lora --base base --tuned runs/full/model --rank 16 --out adapter/

The table says for each module how much of the difference the adapter holds, and lists what it cannot hold at all.
Proved in tests/recipes/test_using.py."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from minift import folder as folders
from minift import peft
from minift.errors import InputError
from minift.files import refuse_if_used
from minift.models.folder import read_model
from minift.models.parameters import Parameters
from minift.recipes.report import terminal_table


@dataclass(frozen=True, kw_only=True)
class Config:
    """Turn a fully fine-tuned checkpoint into a LoRA adapter for its base."""

    tuned: Path
    """The fine-tuned checkpoint."""
    out: Path
    """The adapter folder to write."""
    base: str = "base"
    """The checkpoint it started from, or the bundled "base"."""
    rank: int | None = None
    """Of every module; with --share, the largest that one may have."""
    share: float | None = None
    """Take the smallest rank that holds this share of ‖ΔW‖², 0.9 say, module by module."""
    targets: tuple[str, ...] = ("all-linear",)
    """Modules: "all-linear", or names such as q_proj."""
    overwrite: bool = False
    """Replace the folder."""


def run(config: Config) -> None:
    refuse_if_used(config.out, config.overwrite)
    model, tuned = read_model(folders.locate(config.base)), Parameters(folders.locate(config.tuned))
    if tuned.config.family != model.config.family:
        raise InputError(f"{config.base} is a {model.config.family} model and {config.tuned} a {tuned.config.family}: name its own base")
    targets = "all-linear" if config.targets == ("all-linear",) else config.targets
    found = peft.extract_lora(model, tuned, config.rank, config.share, targets)
    peft.save(model, config.out, "extracted", config.overwrite, config.base)
    rows = [[path, str(rank), f"{100 * share:.2f} %"] for path, (rank, share) in found.kept.items()]
    rows += [[name, "", f"left: {size:.4g}"] for name, size in found.left.items()]
    rows.append(["all that differs", "", f"{100 * found.share:.2f} %"])
    Console().print(terminal_table(f"{config.tuned} - {config.base}", ["module", "rank", "kept of ‖ΔW‖²"], rows))
    if found.left:
        print(f"{len(found.left)} parameters differ and are not in the adapter; the table gives the norm of each difference")
    print(f"written: {config.out}, a LoRA adapter for {config.base}")
