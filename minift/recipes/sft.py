"""Supervised fine-tuning: show the model questions with their answers, and train it to say the answers.

    loss = - (1 / targets) sum over answer tokens t of log p(token_t | question, answer so far)

Which numbers train is chosen with --method (recipes/methods.py; `minift methods` lists them): small matrices beside every linear
(lora, the default), virtual tokens, biases, adapters ..., whose result is an adapter of a few per cent of the model's size; or the
model's own weights (full, last, head), whose result is a new checkpoint.
With --quantize nf4 the frozen linears are in 4 bits (QLoRA, arXiv:2305.14314); whoever uses the adapter gives --quantize
too: base.json in its folder says which base it is for (base_record.py).
Rows come from files of any known format (minift/data/sources.py). Some are held out by a hash of their question, to measure the loss on.
Batches hold examples of similar length (--batching bucketed) or several examples to a row (packed); docs/batching.md has the
measurement behind the default. Proved in tests/recipes/test_sft.py and test_qlora.py. Left out: preferences and rewards (other recipes)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from minift import folder as folders
from minift import peft
from minift.data.batches import Batch, Example, by_length, micro_batches, pack, pad
from minift.data.examples import Learn, build, prompt_ids
from minift.data.sources import read
from minift.data.split import split_rows
from minift.errors import InputError
from minift.evaluate.perplexity import Perplexity, perplexity
from minift.files import new_folder, write_text
from minift.generate import generate, position_limit
from minift.losses.fused import next_token_from_hidden
from minift.losses.sft import next_token
from minift.models.linear import fast_products
from minift.models.transformer import Transformer
from minift.peft.attach import state_of
from minift.peft.training import after_step, penalty, settled
from minift.peft.wrapper import plain_weight
from minift.quant import Scheme
from minift.recipes import base_record
from minift.recipes.loading import MIXED, load_sets, use_template
from minift.recipes.methods import FLAGS, METHODS, method_config
from minift.recipes.report import describe, draw_loss, write_samples
from minift.tokenizer import Tokenizer
from minift.train.loop import LoopConfig, Outcome, fit, planned
from minift.train.precision import autocast
from minift.train.run import open_run


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
class Config(MethodConfig):
    """Fine-tune a model on your own questions and answers."""

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON, CSV, TSV or text, in Alpaca, ShareGPT, messages, prompt/completion or text format."""
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
    learn: Learn = "completion"
    """completion: the last answer; assistant: every assistant turn; all: every token."""
    max_length: int = 1024
    """Longest example in tokens; longer ones are cut, and counted."""
    samples: int = 5
    """Held-out questions answered before and after, for samples.md."""
    new_tokens: int = 64
    """Longest answer in samples.md."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights; trained ones need float32, a frozen base may be smaller."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""


@dataclass(frozen=True)
class Result:
    before: Perplexity
    after: Perplexity
    outcome: Outcome
    written: Path
    """The adapter or the model folder."""

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    if METHODS[config.method].whole and config.dtype != "float32":
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {config.dtype} cannot resolve its small steps")
    rows = read(config.data, columns=config.columns)
    if config.eval_data:
        if config.held_out != Config.held_out:
            raise InputError("--eval-data says what is measured, so --held-out has nothing to hold out: give one of them")
        train_rows, valid_rows = rows, read(config.eval_data, columns=config.columns)
    else:
        train_rows, valid_rows = split_rows(rows, fraction=config.held_out, seed=0)
    model, tokenizer = folders.load(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    use_template(tokenizer, [*train_rows, *valid_rows], config.template)
    making = dict(learn=config.learn, max_length=config.max_length)
    train_set, report = build(train_rows, tokenizer, **making)
    valid_set, valid_report = build(valid_rows, tokenizer, **making)
    choose_parameters(model, config, tokenizer)
    refuse_too_long([*train_set, *valid_set], model)
    if config.method == "adalora":                                          # its schedule may not fit into the run: say so before there is one
        settled(model, 0, planned(config, len(batches(train_set, config)(0)))[1])
    folder = open_run(config.out, "sft", config, config.overwrite, config.resume)
    say = (lambda text: None) if quiet else print
    say(describe(report, valid_report))
    if config.method == "loftq":
        scheme = state_of(model).sets["default"].scheme
        say(f"loftq rounded the base to {scheme}: what is measured before is that rounded base, without the adapter, not the full model")

    askable = ((row, prompt_ids(row, tokenizer)) for row in valid_rows if row.format != "text")
    asked = list(islice(((row, ids) for row, ids in askable if len(ids) < position_limit(model)), config.samples))
    answer = lambda: generate(model, tokenizer, [ids for _, ids in asked], max_new_tokens=config.new_tokens) if asked else []
    with as_base(model, config):
        before, said_before = perplexity(model, valid_set), answer()
    outcome = tune(model, train_set, valid_set, config, folder, quiet, config.resume)
    after, said_after = perplexity(model, valid_set), answer()

    written = write_result(model, tokenizer, config, folder, base=config.model)
    draw_loss(folder, f"Held-out loss {before.nats_per_token:.2f} → {after.nats_per_token:.2f}", before.nats_per_token)
    write_samples(folder, [row for row, _ in asked], said_before, said_after)
    say(f"held-out loss {before.nats_per_token:.3f} -> {after.nats_per_token:.3f} nats/token over {after.tokens} tokens, computed in {config.dtype}"
        f" (the steps' own are in training's precision); written: {written}")
    return Result(before, after, outcome, written)


def tune(
    model: Transformer, train_set: Sequence[Example], valid_set: Sequence[Example], config: MethodConfig, folder: Path,
    quiet: bool = False, resume: bool = False,
) -> Outcome:
    """Make the batches and run the loop on what choose_parameters chose. `model` is changed in place."""
    if not quiet:
        print(f"{config.method}: {peft.trainable(model)}")
    measure = lambda: {"loss": evaluate(model, valid_set, config)}
    tell, counts = partial(after_step, model), partial(settled, model)
    return fit(model, batches(train_set, config), loss, config, folder, measure, resume, quiet, tell, counts)


def choose_parameters(model: Transformer, config: MethodConfig, tokenizer: Tokenizer | None = None) -> None:
    """Freeze what is not to train and attach the method under the name "default".

    Raises InputError if an option of another method was given: it would be without effect."""
    entry, defaults = METHODS[config.method], {field.name: field.default for field in fields(config)}
    if config.optimizer == "muon" and config.method != "full":
        raise InputError(f"--optimizer muon is for whole weight matrices, and --method {config.method} trains others: take adamw")
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


def refuse_too_long(examples: Sequence[Example], model: Transformer) -> None:
    """A model with learned positions has no position for the tokens behind its last one."""
    longest, limit = max(len(example.ids) for example in examples), position_limit(model)
    if longest > limit:
        virtual = model.virtual_count()
        taken = f", {virtual} of them taken by virtual tokens" if virtual else ""
        way_out = f"pass --max-length {limit}" + (", or take fewer virtual tokens" if virtual else "")
        raise InputError(f"the longest example has {longest} tokens, this model has {limit + virtual} learned positions{taken}: {way_out}")


def loss(model: nn.Module, batch: Batch):
    head = plain_weight(model.head)
    if head is not None and not torch.compiler.is_compiling():
        hidden = model.hidden(batch.token_ids, segments=batch.segments)
        with fast_products():
            total, targets = next_token_from_hidden(hidden, head, batch.token_ids, batch.loss_mask)
    else:                                                                   # a head with an adapter, or in 4 bits, has to be called
        total, targets = next_token(model(batch.token_ids, segments=batch.segments), batch.token_ids, batch.loss_mask)
    asked = penalty(model)
    return (total if asked is None else total + asked * targets), targets


def batches(examples: Sequence[Example], config: MethodConfig) -> Callable[[int], Sequence[Batch]]:
    """epoch -> its micro-batches; every epoch has another order and the same number of them."""

    def bucketed(epoch: int) -> Sequence[Batch]:
        return [pad([examples[i] for i in batch]) for batch in by_length(examples, config.batch_tokens, config.seed + epoch)]

    def packed(epoch: int) -> Sequence[Batch]:
        length = max(len(example.ids) for example in examples)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        rows = pack([examples[i] for i in order], length)
        return micro_batches(rows, max(1, config.batch_tokens // length), config.seed + epoch)

    return bucketed if config.batching == "bucketed" else packed


@torch.no_grad()
def evaluate(model: Transformer, examples: Sequence[Example], config: MethodConfig) -> float:
    """The held-out loss in training's own arithmetic, nats per target token."""
    device = next(model.parameters()).device.type
    with autocast(config.precision, device):
        return perplexity(model, examples).nats_per_token


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
