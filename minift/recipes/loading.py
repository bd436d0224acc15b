"""What every verb that uses a model asks for: which one, with which adapter, how it samples. Their fields become the verb's options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from minift import folder as folders
from minift import peft
from minift.data.chat import end_of_turn, template_source
from minift.data.sources import Row
from minift.errors import InputError
from minift.files import recover
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.quant import QuantizedLinear
from minift.recipes import base_record
from minift.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    model: str = "base"
    """A Hugging Face checkpoint folder, or the bundled "base"."""
    adapter: Path | None = None
    """An adapter folder (Hugging Face peft) to put on the model."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights."""
    quantize: base_record.Asked | None = None
    """Keep the linears in 4 or 8 bits: nf4, fp4, int8 or int4; what a QLoRA adapter was trained on. none: full weights, though it was."""

    def load(self, encoders: bool = False, pairs: bool = False) -> tuple[Transformer, Tokenizer]:
        """encoders: whether they will do as well; else one is refused. pairs: the same of encoder-decoders."""
        model, tokenizer = load_base(self.model, self.quantize, self.dtype, self.device, encoders, pairs)
        if self.adapter is not None:
            put_on(model, recover(self.adapter), self.quantize)
            template = self.adapter / "chat_template.jinja"
            if template.exists():                                # the one it was trained with
                tokenizer.chat_template = template.read_text(encoding="utf-8")
        return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    temperature: float = 0.0
    """0 is greedy: the likeliest token each time. Above: logits are divided by it before a token is drawn."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together hold probability p."""
    min_p: float | None = None
    """Draw from tokens at least min_p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens already in the text become less likely."""
    stop: tuple[str, ...] = ()
    """End before any of these strings."""
    seed: int = 0
    """Of the draws; at temperature 0 there are none."""

    def options(self) -> dict:
        """As keyword arguments of generate and stream."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
        return {name: getattr(self, name) for name in names}


MIXED = "mixed"
"""Inside the adapter folder of a fusion: the folders of the sets it mixes, each named as its set."""


def load_base(
    name: str, quantize: base_record.Asked | None, dtype: str = "float32", device: str = "cpu", encoders: bool = False, pairs: bool = False
) -> tuple[Transformer, Tokenizer]:
    """What --model and --quantize name. Raises InputError if full weights are asked for and the folder has none."""
    chosen = (name, getattr(torch, dtype), device, None if quantize == "none" else quantize)
    model, tokenizer = folders.load(*chosen) if encoders else folders.decoder(*chosen, pairs=pairs)
    if quantize == "none" and any(isinstance(module, QuantizedLinear) for module in model.modules()):
        found = base_record.name(base_record.describe(model))
        raise InputError(f"--quantize none asks for full weights, and {name} has {found}: name a folder with the full ones, or leave it out")
    return model, tokenizer


def put_on(model: Transformer, folder: Path, asked: base_record.Asked | None) -> None:
    """Load the adapter in `folder`, after the sets it mixes if it is a fusion; it is the active one. asked: --quantize, if it was given.

    Raises InputError if it was trained on another kind of base (base_record.py)."""
    base_record.compare(folder, model, asked)
    if (folder / MIXED).is_dir():
        load_sets(model, sorted((folder / MIXED).iterdir()))
    peft.load(model, folder)


def load_sets(model: Transformer, folders: Sequence[Path]) -> tuple[str, ...]:
    """Load several adapters, each as a set named after its folder (or the run it lies in); returns the names."""
    names = [re.sub(r"[^\w-]", "_", folder.parent.name if folder.name == "adapter" else folder.name) for folder in folders]
    names = tuple(f"{name}-{place}" if name == "default" or names.count(name) > 1 else name for place, name in enumerate(names))
    for name, folder in zip(names, folders):
        peft.load(model, folder, name)
    return names


def use_template(tokenizer: Tokenizer, rows: Sequence[Row], template: str | None) -> None:
    """Give the tokenizer the template that `rows` are written with: the one named, else its own, else plain. From then on answers end
    where this template ends them, and whatever is saved is saved with it. Raises InputError if a template is named for nothing."""
    if any(row.messages for row in rows):
        tokenizer.chat_template = template_source(tokenizer, template or (None if tokenizer.chat_template else "plain"))
        tokenizer.end_ids.add(end_of_turn(tokenizer))
    elif template is not None:
        found = ", ".join(sorted({row.format for row in rows}))
        raise InputError(f"--template {template} would change nothing: these rows are {found}, and templates are for messages; leave it out")


def read_by(config: ModelConfig | None, tokenizer: Tokenizer, rows: Sequence[Row], template: str | None) -> int | None:
    """use_template for a decoder, and None. An encoder-decoder, which reads a question as it is, gets no template: its start token, for data/examples.py."""
    start = None if config is None else config.start_token_id
    if start is None:
        use_template(tokenizer, rows, template)
    elif template is not None:
        raise InputError(f"--template {template} would change nothing: templates are for decoders, an encoder-decoder reads the question as it is; leave it out")
    return start
