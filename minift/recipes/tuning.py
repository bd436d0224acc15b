"""What every recipe that trains has in common: which numbers of the model train, from which base, and what is written in the end.

    MethodConfig          --method and its options, beside the loop's
    choose_parameters     freeze what is not to train and attach the method
    refuse_too_few_steps  a schedule that does not fit into the run
    as_base               the model as it was before
    write_result          an adapter folder, or a whole checkpoint

Proved in tests/recipes/test_sft.py, test_qlora.py and test_methods.py."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch

from minift import folder as folders
from minift import peft
from minift.errors import InputError
from minift.files import new_folder, write_text
from minift.models.transformer import Transformer
from minift.peft.attach import state_of
from minift.peft.training import settled
from minift.quant import Scheme
from minift.recipes import base_record
from minift.recipes.loading import MIXED, load_sets
from minift.recipes.methods import FLAGS, METHODS, method_config
from minift.tokenizer import Tokenizer
from minift.train.loop import LoopConfig, planned
from minift.train.optim import optimizers_of


@dataclass(frozen=True, kw_only=True)
class MethodConfig(LoopConfig):
    """What of the model trains, and in what batches."""

    method: Literal[*METHODS] = "lora"
    """How it is fine-tuned; `minift methods` says what each is and takes."""
    lr: float | None = None
    """Peak learning rate; none: the method's own (`minift methods`). Large models want a smaller one, full fine-tuning a tenth of LoRA's."""
    rank: int | None = None
    """r of the low-rank methods; none: the method's own."""
    alpha: float | None = None
    """A low-rank change is scaled by alpha / r; none: the method's own."""
    lora_dropout: float = 0.0
    """On the input of the method's branch, while training."""
    targets: tuple[str, ...] = ()
    """Where the method goes: "all-linear", names or ends of names such as q_proj, or one regular expression that contains a * or a |;
    none: the method's own choice."""
    last_n: int = 1
    """Blocks that --method last trains."""
    options: dict[str, str] = field(default_factory=dict)
    """Any other option of the method, as FIELD VALUE pairs: --options length 20 projection true."""
    batching: Literal["bucketed", "packed"] = "packed"
    """bucketed: similar lengths together, padded; packed: several examples per row, kept apart by the attention mask."""
    batch_tokens: int = 4096
    """Tokens of a micro-batch, pads included."""
    quantize: Scheme | None = None
    """Keep the frozen linears in 4 or 8 bits while an adapter trains (QLoRA): nf4, fp4, int8 or int4."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(MethodConfig):
    """A model, data to train and measure it on, and a folder for what comes of it."""

    data: tuple[str, ...]
    """Files or globs."""
    out: Path
    """The run folder."""
    model: str = "base"
    """A Hugging Face checkpoint folder, or the bundled "base"."""
    held_out: float = 0.1
    """Share of the questions that are not trained on but measured."""
    eval_data: tuple[str, ...] = ()
    """Files to measure on, instead of holding out a share."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns prompt question completion answer."""
    template: str | None = None
    """How messages become text: chatml, llama-2, llama-3, alpaca, plain; none: the tokenizer's own, else plain."""
    max_length: int = 1024
    """Longest example in tokens; longer ones are cut, and counted."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights; trained ones need float32, a frozen base may be smaller."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""


def choose_parameters(model: Transformer, config: MethodConfig, tokenizer: Tokenizer | None = None) -> None:
    """Freeze what is not to train and attach the method under the name "default".

    Raises InputError if an option of another method was given: it would be without effect."""
    entry, defaults = METHODS[config.method], {field.name: field.default for field in fields(config)}
    matrices = {"muon": ("full",), "galore": ("full", "last")}.get(config.optimizer)
    if matrices and config.method not in matrices:
        raise InputError(f"--optimizer {config.optimizer} is for whole weight matrices (--method {' or '.join(matrices)}), and --method {config.method} "
                         "trains others: take adamw")  # fmt: skip
    if config.ema and config.method == "adalora":
        raise InputError("--ema cannot go with --method adalora, which sets directions to zero that an average would bring back: leave it out")
    given = {name: getattr(config, name) for name in FLAGS}
    if given["targets"]:
        one = given["targets"][0] if len(given["targets"]) == 1 else ""
        given["targets"] = one if one.startswith("all-") or set(one) & set("*|") else given["targets"]
    known = entry.fields()
    chosen = {name: v for name, v in given.items() if v not in (None, ()) and (FLAGS[name] in known or v != defaults[name])}
    torch.manual_seed(config.seed)
    options = dict(config.options)
    if config.method == "loftq" and config.quantize:
        if "scheme" in options:
            raise InputError("--options scheme and --quantize both say what LoftQ rounds to: leave one out")
        options["scheme"] = config.quantize
    if config.method == "fusion":
        if "adapters" not in options:
            raise InputError("--method fusion needs --options adapters DIR,DIR: the folders of the bottleneck adapters to mix")
        mixed = [Path(folder.strip()) for folder in options.pop("adapters").split(",")]
        for folder in mixed:
            base_record.compare(folder, model, config.quantize, can_say_none=False)
        options["names"] = ",".join(load_sets(model, mixed))
    peft.attach(model, method_config(config.method, chosen, options, tokenizer))
    optimizers_of(config.optimizer, model, config.lr or 0.0, config.weight_decay, config.betas, config.projection)    # what it refuses, it refuses now


def refuse_too_few_steps(model: Transformer, config: MethodConfig, epoch: Callable[[int], Sequence]) -> None:
    """AdaLoRA's schedule may not fit into the run: say so before there is one. epoch(n) gives the micro-batches of epoch n."""
    if config.method == "adalora":
        settled(model, 0, planned(config, len(epoch(0)))[1])


def loaded_in(config: MethodConfig) -> Scheme | None:
    """What the base is loaded in; LoftQ needs the full weights and rounds them itself."""
    return None if config.method == "loftq" else config.quantize


def with_rate(config: MethodConfig) -> MethodConfig:
    """The same settings, with the method's own learning rate if none was given."""
    return replace(config, lr=METHODS[config.method].lr) if config.lr is None else config


@contextlib.contextmanager
def as_base(model: Transformer, config: MethodConfig) -> Iterator[None]:
    """The model as it was before anything was attached. Methods that train its own weights start there."""
    with contextlib.nullcontext() if METHODS[config.method].whole else peft.disabled(model):
        yield


def write_result(model: Transformer, tokenizer: Tokenizer, config: MethodConfig, folder: Path, base: str) -> Path:
    """The adapter, or the whole model, in Hugging Face's layout. LoftQ's base, where it is not the plainly rounded one, goes with its adapter."""
    if not METHODS[config.method].whole:
        with_base = config.method == "loftq" and state_of(model).sets["default"].iterations > 1
        base = str(folder / "base") if with_base else base
        with new_folder(folder / "adapter", overwrite=True) as aside:
            peft.save(model, aside, base_model=base)
            base_record.write(aside, model, state_of(model).sets["default"])
            for name in peft.names(model):
                if name != "default":                           # what a fusion mixes goes with it
                    peft.save(model, aside / MIXED / name, name, base_model=base)
            if tokenizer.chat_template:                         # an adapter works with the template it was trained with only
                write_text(aside / "chat_template.jinja", tokenizer.chat_template)
        if with_base:
            peft.remove(model, "default")
            folders.save(model, tokenizer, folder / "base", overwrite=True)
            peft.load(model, folder / "adapter")
        return folder / "adapter"
    peft.merge(model)
    peft.remove(model, "default")
    folders.save(model, tokenizer, folder / "model", overwrite=True)
    return folder / "model"
