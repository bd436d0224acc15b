"""Fold an adapter into its base: W + (alpha / r) B A becomes the weight, and the result is a plain checkpoint that needs no minift.

Methods whose work no weight can do (bottlenecks, virtual tokens, edits of positions) refuse and say why. In bfloat16 or float16 each
merged weight is computed in float32 and rounded once, which may lose a small change: float32 keeps it.
An adapter of `minift classify` comes with its head, and the result is a ...ForSequenceClassification with the names of its labels.
On a base in 4 or 8 bits (--quantize, or a folder that is quantized) the result is in --dtype all through: the rounded weights plus the
change, which is the model that was trained. --requantize rounds it to the same scheme again, which loses most of a small change
(trap 23), and says what share of it survived.
Proved in tests/recipes/test_using.py and test_qlora.py."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from minift import folder as folders
from minift import peft
from minift.classify.classifier import FILE, write_names
from minift.classify.classifier import load as load_classifier
from minift.errors import InputError
from minift.files import recover, refuse_if_used
from minift.models.sentence_folder import read_pooling
from minift.peft.attach import state_of
from minift.peft.quantized import Survived
from minift.quant import QuantizedLinear, dequantize_model
from minift.recipes.loading import ModelChoice
from minift.recipes.report import terminal_table


@dataclass(frozen=True, kw_only=True)
class Config(ModelChoice):
    """Fold an adapter into its base model and write a plain checkpoint."""

    out: Path
    """The folder to write."""
    requantize: bool = False
    """On a base in 4 or 8 bits: round the merged weights to the same scheme again, and report what is left of the change."""
    overwrite: bool = False
    """Replace the folder."""


def run(config: Config) -> None:
    if config.adapter is None:
        raise InputError("merge needs --adapter FOLDER, the adapter to fold in")
    refuse_if_used(config.out, config.overwrite)
    adapter = recover(config.adapter)
    classifier = load_classifier(adapter, config.device, config.model, getattr(torch, config.dtype)) if (adapter / FILE).exists() else None
    model, tokenizer = (classifier.model, classifier.tokenizer) if classifier else config.load(encoders=True)
    model.pooling = read_pooling(adapter) or model.pooling                # how an adapter of `minift embed` makes its vectors
    if getattr(state_of(model).sets["default"], "add_missing", False):
        found = f"a {model.config.family} checkpoint has no place for the biases this BitFit added"
        raise InputError(f"{found}: keep the adapter beside the model, or tune the biases of a family that has some, such as GPT-2")
    report = peft.merge(model, config.requantize)
    peft.remove(model, "default")
    if config.requantize:
        Console().print(survival_table(report))
        left = sum(report.values(), Survived())
        print(f"{100 * left.share:.0f} % of the change survived (cosine x size); the rest of what moved is rounding noise")
    else:
        dequantize_model(model)                                  # what the adapter left alone
    folders.save(model, tokenizer, config.out, config.overwrite)
    if classifier is not None:
        write_names(config.out, classifier)
    what = f"{scheme(model)}, other tensors in {config.dtype}" if config.requantize else config.dtype
    print(f"written: {config.out}, a plain {model.config.family} checkpoint in {what}")


def scheme(model: nn.Module) -> str:
    return next(module.q.scheme for module in model.modules() if isinstance(module, QuantizedLinear))


def survival_table(report: dict[str, Survived]) -> Table:
    """One line per module: the change that came through rounding, beside the one that was to."""
    row = lambda name, found: [name, f"{found.cosine:.3f}", f"{found.size:.3f}", f"{100 * found.share:.1f} %", f"{found.wanted**0.5:.4f}"]
    rows = [row(path, found) for path, found in report.items()]
    header = ["module", "cosine", "size, times", "survived", "‖ΔW‖ wanted"]
    return terminal_table("What rounding left of the change", header, [*rows, row("all", sum(report.values(), Survived()))])
