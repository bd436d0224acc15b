"""Fold an adapter into its base: W + (alpha / r) B A becomes the weight, and the result is a plain checkpoint that needs no minift.

Methods whose work no weight can do (bottlenecks, virtual tokens, edits of positions) refuse and say why. In bfloat16 or float16 each
merged weight is computed in float32 and rounded once, which may lose a small change: float32 keeps it.

Proved in tests/recipes/test_using.py."""

from dataclasses import dataclass
from pathlib import Path

from minift import folder as folders
from minift import peft
from minift.errors import InputError
from minift.files import refuse_if_used
from minift.peft.attach import state_of
from minift.recipes.loading import ModelChoice


@dataclass(frozen=True, kw_only=True)
class Config(ModelChoice):
    """Fold an adapter into its base model and write a plain checkpoint."""

    out: Path
    """The folder to write."""
    overwrite: bool = False
    """Replace the folder."""


def run(config: Config) -> None:
    if config.adapter is None:
        raise InputError("merge needs --adapter FOLDER, the adapter to fold in")
    refuse_if_used(config.out, config.overwrite)
    model, tokenizer = config.load()
    if getattr(state_of(model).sets["default"], "add_missing", False):
        found = f"a {model.config.family} checkpoint has no place for the biases this BitFit added"
        raise InputError(f"{found}: keep the adapter beside the model, or tune the biases of a family that has some, such as GPT-2")
    peft.merge(model)
    peft.remove(model, "default")
    folders.save(model, tokenizer, config.out, config.overwrite)
    print(f"written: {config.out}, a plain {model.config.family} checkpoint in {config.dtype}")
