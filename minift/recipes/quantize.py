"""Round a model's linears to 4 or 8 bits, say what it cost, and write the result.

    rtn      each weight to the nearest number of its grid; needs no data
    gptq     int4: errors of earlier columns made up for by later ones (minift/quant/gptq.py)
    awq      int4: columns that read large inputs made finer (minift/quant/awq.py)

What it cost: the error of each layer, which says where; perplexity on held-out text before and after, which says whether it matters; bytes.
The text is the documentation on this machine, or --data, half of whose texts (by a hash of each) are for gptq and awq to calibrate on;
the other half is measured, whatever the method, so that methods compare. Windows are cut once: before and after differ in the model alone, and
the nats added have an interval over windows.
Embeddings, norms and the output head stay as they are. Proved in tests/recipes/test_quantize.py."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from minift import folder as folders
from minift.data import pydocs
from minift.data.batches import Example
from minift.data.sources import read_texts
from minift.data.split import split_rows
from minift.errors import InputError
from minift.evaluate.forgetting import text_windows
from minift.evaluate.perplexity import Perplexity, perplexity, scored_bytes
from minift.files import refuse_if_used, write_text
from minift.generate import position_limit
from minift.models.transformer import Transformer
from minift.quant import Scheme, awq, gptq, nbytes, quantize, quantize_model
from minift.quant.errors import Error, error
from minift.quant.linear import QuantizedLinear
from minift.quant.model import to_quantize
from minift.recipes.quantize_report import Added, Size, console_tables, draw_errors, markdown


@dataclass(frozen=True, kw_only=True)
class Config:
    """Round a model's linears to 4 or 8 bits, with a report of what it cost."""

    model: Annotated[str, tyro.conf.Positional]
    """A Hugging Face checkpoint folder, or the bundled "base"."""
    to: Scheme
    """nf4 and fp4: blocks of 16 levels, for QLoRA; int8: a scale per row; int4: a scale and a zero point per group of columns."""
    out: Path | None = None
    """Write the quantized checkpoint, report.md and errors.png to this folder; none: only tell."""
    method: Literal["rtn", "gptq", "awq"] = "rtn"
    """How numbers are rounded: rtn, to the nearest; gptq and awq, for int4 only, with a look at what the layers read."""
    block_size: int | None = None
    """Numbers that share a scale: 64 for nf4 and fp4, 128 for int4 if none is given; int8 has rows."""
    full_scales: bool = False
    """nf4 and fp4: keep the scales in float32, 4.5 bits per weight; else they are in 8 bits too ("double quantization"), 4.127."""
    data: tuple[str, ...] = ()
    """Text, JSONL, JSON or CSV files or globs to measure and calibrate on; none: the Python documentation on this machine."""
    context: int = 512
    """Tokens of a window of text."""
    windows: int = 64
    """How many are measured, at even distances over the held-out texts."""
    calibration: int | None = None
    """How many gptq and awq look at; none: 128."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights, and of what is not quantized."""
    overwrite: bool = False
    """Replace the folder."""


@dataclass(frozen=True)
class Result:
    before: Perplexity
    after: Perplexity
    added: Added
    """Nats per token that rounding adds, over windows."""
    errors: dict[str, Error]
    """Path of a linear -> its error."""
    sizes: dict[str, Size]
    """"the linears" and "the whole model"."""
    written: Path | None
    """The folder, if one was asked for."""


FEW = 8
"""With fewer windows a normal interval would be too narrow by far, and none is given."""
CALIBRATION_BATCH = 8
"""Windows run through a block at once."""


def run(config: Config, quiet: bool = False) -> Result:
    refuse_without_effect(config)
    if config.out is not None:
        refuse_if_used(config.out, config.overwrite)
    seen, held_out = texts(config)
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device)
    linears = to_quantize(model)
    if config.context > position_limit(model):
        raise InputError(f"--context is {config.context}, this model has {position_limit(model)} learned positions: pass that or less")
    measured = text_windows(tokenizer, held_out, config.context, config.windows)
    calibration = [] if config.method == "rtn" else text_windows(tokenizer, seen, config.context, config.calibration or 128)
    text_bytes = scored_bytes(tokenizer, measured)

    full_losses, bytes_before = by_window(model, measured), size_of(model)
    numbers = sum(linear.weight.numel() for linear in linears.values())
    full = sum(linear.weight.numel() * linear.weight.element_size() for linear in linears.values())
    errors = round_model(model, config, calibration)
    losses = by_window(model, measured)
    before, after = together(full_losses, text_bytes), together(losses, text_bytes)
    more = added([found.nats_per_token for found in full_losses], [found.nats_per_token for found in losses])
    packed = sum(nbytes(model.get_submodule(path).q) for path in linears)
    sizes = {"the linears": Size(full, packed, numbers), "the whole model": Size(bytes_before, size_of(model), None)}

    title = f"{config.model} to {config.to}" + ("" if config.method == "rtn" else f" by {config.method}")
    source = "the half of --data held out" if config.data else "the Python documentation of modules held out"
    held = f"{len(measured)} windows of {config.context} tokens of {source} ({before.tokens:,} tokens scored)"
    if not quiet:
        for table in console_tables(title, held, errors, sizes, before, after, more):
            Console().print(table)
    if config.out is not None:
        folders.save(model, tokenizer, config.out, config.overwrite)
        draw_errors(config.out / "errors.png", title, errors)
        settings = {name: value for name, value in asdict(config).items() if value not in (None, ()) and name not in ("out", "overwrite")}
        write_text(config.out / "report.md", markdown(title, held, errors, sizes, before, after, more, settings))
        if not quiet:
            print(f"written: {config.out}, with report.md and errors.png")
    return Result(before, after, more, errors, sizes, config.out)


def by_window(model: Transformer, windows: Sequence[Example]) -> list[Perplexity]:
    return [perplexity(model, [window]) for window in windows]


def together(found: Sequence[Perplexity], text_bytes: int) -> Perplexity:
    """Of all windows: one sum and one count, not a mean of means."""
    tokens = sum(one.tokens for one in found)
    return Perplexity(sum(one.nats_per_token * one.tokens for one in found) / tokens, tokens, text_bytes)


def added(full: Sequence[float], rounded: Sequence[float]) -> Added:
    """Loss of each window before and after: the same text twice, so what is spread is the difference, far less than the losses."""
    apart = [b - a for a, b in zip(full, rounded)]
    few = len(apart) < FEW
    return Added(statistics.fmean(apart), None if few else 1.96 * statistics.stdev(apart) / math.sqrt(len(apart)))


def refuse_without_effect(config: Config) -> None:
    """Raises InputError for an option that the others leave nothing to do, and for a block size the scheme cannot have."""
    if config.method != "rtn" and config.to != "int4":
        found = f"--method {config.method} chooses whole numbers on int4's grids, and --to is {config.to}"
        raise InputError(f"{found}: pass --to int4, or leave the method out")
    if config.full_scales and config.to not in ("nf4", "fp4"):
        raise InputError(f"--full-scales keeps the scales of nf4 and fp4 in float32; {config.to} has other scales: leave it out")
    if config.calibration is not None and config.method == "rtn":
        raise InputError("--calibration counts the texts that gptq and awq look at; rounding to nearest looks at none: leave it out")
    if config.overwrite and config.out is None:
        raise InputError("--overwrite replaces the folder of --out, and none is given")
    for name in ("windows", "calibration"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise InputError(f"--{name} is {getattr(config, name)}: wanted 1 or more")
    quantize(torch.zeros(1, 1), config.to, config.block_size, not config.full_scales)


def texts(config: Config) -> tuple[Sequence[str], Sequence[str]]:
    """(to calibrate on, held out to measure)."""
    if config.data:
        return split_rows(read_texts(config.data), fraction=0.5, seed=0, key=lambda text: text)
    return ([] if config.method == "rtn" else pydocs.documents("train")), pydocs.documents("test")


def round_model(model: Transformer, config: Config, calibration: Sequence[Example]) -> dict[str, Error]:
    """Quantize in place; path -> error. To be compared, full weights stay until all are rounded."""
    if config.method == "rtn":
        full = {path: linear.weight.detach() for path, linear in to_quantize(model).items()}
        quantize_model(model, config.to, config.block_size, not config.full_scales)
        return {path: error(weight, model.get_submodule(path).q) for path, weight in full.items()}
    ids = torch.tensor([example.ids for example in calibration], device=config.device)               # (windows, T)
    rounding = {"gptq": gptq, "awq": awq}[config.method].quantize_model
    return rounding(model, ids.split(CALIBRATION_BATCH), config.block_size or 128)


def size_of(model: Transformer) -> int:
    """Bytes of all parameters and quantized weights; tied ones once."""
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    return plain + sum(nbytes(m.q) for m in model.modules() if isinstance(m, QuantizedLinear))
