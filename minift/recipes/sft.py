"""Supervised fine-tuning: show the model questions with their answers, and train it to say the answers.

    loss = - (1 / targets) sum over answer tokens t of log p(token_t | question, answer so far)

Which numbers train is chosen with --method (recipes/methods.py; `minift methods` lists them): small matrices beside every linear
(lora, the default), virtual tokens, biases, adapters ..., whose result is an adapter of a few per cent of the model's size; or the
model's own weights (full, last, head), whose result is a new checkpoint.
With --quantize nf4 the frozen linears are in 4 bits (QLoRA, arXiv:2305.14314); whoever uses the adapter gives --quantize
too: base.json in its folder says which base it is for (base_record.py).
Rows come from files of any known format (minift/data/sources.py). Some are held out by a hash of their question, to measure the loss on.
An encoder-decoder (T5) reads the question and learns the answer, two texts; its examples are never packed.
Batches hold examples of similar length (--batching bucketed) or several examples to a row (packed); docs/batching.md has the
measurement behind the default. Proved in tests/recipes/test_sft.py and test_qlora.py. Left out: preferences and rewards (other recipes)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from minift import folder as folders
from minift import peft
from minift.data.batches import Batch, Example, by_length, micro_batches, pack, pad
from minift.data.examples import Learn, build, prompt_ids
from minift.data.sources import Row, read
from minift.data.split import split_rows
from minift.errors import InputError
from minift.evaluate.perplexity import Perplexity, perplexity
from minift.generate import generate, position_limit
from minift.losses.fused import next_token_from_hidden
from minift.losses.sft import next_token
from minift.models.linear import fast_products
from minift.models.transformer import Transformer
from minift.peft.attach import state_of
from minift.peft.training import after_step, penalty, settled
from minift.peft.wrapper import plain_weight
from minift.recipes.loading import read_by
from minift.recipes.methods import METHODS
from minift.recipes.profile_report import write_profile
from minift.recipes.report import describe, draw_loss, write_samples
from minift.recipes.tuning import MethodConfig, RunConfig, as_base, choose_parameters, loaded_in, refuse_too_few_steps, with_rate, write_result
from minift.tokenizer import Tokenizer
from minift.train.loop import Outcome, fit
from minift.train.neftune import noisy
from minift.train.precision import autocast
from minift.train.run import open_run


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Fine-tune a model on your own questions and answers."""

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON, CSV, TSV or text, in Alpaca, ShareGPT, messages, prompt/completion or text format."""
    learn: Learn = "completion"
    """completion: the last answer; assistant: every assistant turn; all: every token."""
    neftune: float = 0.0
    """Noise on the embeddings while training (NEFTune's alpha, 5 to 15 in its paper); 0: none."""
    samples: int = 5
    """Held-out questions answered before and after, for samples.md."""
    new_tokens: int = 64
    """Longest answer in samples.md."""


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


@dataclass(frozen=True)
class Ready:
    """All that a training begins with; nothing is written yet."""

    model: Transformer
    tokenizer: Tokenizer
    start: int | None
    """An encoder-decoder's start token."""
    valid_rows: Sequence[Row]
    train_set: Sequence[Example]
    valid_set: Sequence[Example]
    said: str
    """What became of the rows."""


def prepare(config: Config) -> Ready:
    """Read the rows and the model and attach the method."""
    if config.neftune < 0:
        raise InputError(f"--neftune is {config.neftune}: wanted 0 or more; 5 is a good start")
    if config.neftune and config.compile:
        raise InputError("--neftune cannot go with --compile: the noise comes from a hook, around which nothing is compiled. Leave one of them out")
    if METHODS[config.method].whole and config.dtype != "float32":
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {config.dtype} cannot resolve its small steps")
    rows = read(config.data, columns=config.columns)
    if config.eval_data:
        if config.held_out != Config.held_out:
            raise InputError("--eval-data says what is measured, so --held-out has nothing to hold out: give one of them")
        train_rows, valid_rows = rows, read(config.eval_data, columns=config.columns)
    else:
        train_rows, valid_rows = split_rows(rows, fraction=config.held_out, seed=0)
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config), pairs=True)
    start = read_by(model.config, tokenizer, [*train_rows, *valid_rows], config.template)
    making = dict(learn=config.learn, max_length=config.max_length, start=start)
    train_set, report = build(train_rows, tokenizer, **making)
    valid_set, valid_report = build(valid_rows, tokenizer, **making)
    if config.neftune and train_set[0].prompt:
        raise InputError("--neftune is for models that read prompt and answer as one text, and this is an encoder-decoder: leave it out")
    choose_parameters(model, config, tokenizer)
    refuse_too_long([*train_set, *valid_set], model)
    return Ready(model, tokenizer, start, valid_rows, train_set, valid_set, describe(report, valid_report))


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    ready = prepare(config)
    model, tokenizer, start, valid_rows, train_set, valid_set = ready.model, ready.tokenizer, ready.start, ready.valid_rows, ready.train_set, ready.valid_set
    refuse_too_few_steps(model, config, batches(train_set, config))
    folder = open_run(config.out, "sft", config, config.overwrite, config.resume)
    say = (lambda text: None) if quiet else print
    say(ready.said)
    if config.method == "loftq":
        scheme = state_of(model).sets["default"].scheme
        say(f"loftq rounded the base to {scheme}: what is measured before is that rounded base, without the adapter, not the full model")

    askable = ((row, prompt_ids(row, tokenizer, start=start)) for row in valid_rows if row.format != "text")
    asked = list(islice(((row, ids) for row, ids in askable if len(ids) < position_limit(model)), config.samples))
    answer = lambda: generate(model, tokenizer, [ids for _, ids in asked], max_new_tokens=config.new_tokens) if asked else []
    with as_base(model, config):
        before, said_before = perplexity(model, valid_set), answer()
    outcome = tune(model, train_set, valid_set, config, folder, quiet, config.resume, config.neftune)
    after, said_after = perplexity(model, valid_set), answer()

    written = write_result(model, tokenizer, config, folder, base=config.model)
    draw_loss(folder, f"Held-out loss {before.nats_per_token:.2f} → {after.nats_per_token:.2f}", before.nats_per_token)
    write_samples(folder, [row for row, _ in asked], said_before, said_after)
    say(f"held-out loss {before.nats_per_token:.3f} -> {after.nats_per_token:.3f} nats/token over {after.tokens} tokens, computed in {config.dtype}"
        f" (the steps' own are in training's precision); written: {written}")
    return Result(before, after, outcome, written)


def tune(
    model: Transformer, train_set: Sequence[Example], valid_set: Sequence[Example], config: MethodConfig, folder: Path,
    quiet: bool = False, resume: bool = False, neftune: float = 0.0,
) -> Outcome:
    """Make the batches and run the loop on what choose_parameters chose. `model` is changed in place."""
    if not quiet:
        print(f"{config.method}: {peft.trainable(model)}")
    measure = lambda: {"loss": evaluate(model, valid_set, config)}
    tell, counts = partial(after_step, model), partial(settled, model)
    learned = noisy(loss, neftune) if neftune else loss
    outcome = fit(model, batches(train_set, config), learned, config, folder, measure, resume, quiet, tell, counts)
    write_profile(folder, quiet)
    return outcome


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
        with fast_products():
            total, targets = next_token_from_hidden(_stream(model, batch), head, batch.token_ids, batch.loss_mask)
    else:                                                                   # a head with an adapter, or in 4 bits, has to be called
        total, targets = next_token(model.head(_stream(model, batch)), batch.token_ids, batch.loss_mask)
    asked = penalty(model)
    return (total if asked is None else total + asked * targets), targets


def _stream(model: nn.Module, batch: Batch):
    """What the head reads, (B, T, C)."""
    if batch.prompts is None:
        return model.hidden(batch.token_ids, segments=batch.segments)
    return model.hidden(batch.token_ids, memory=model.memory(batch.prompts, batch.there))


def batches(examples: Sequence[Example], config: MethodConfig) -> Callable[[int], Sequence[Batch]]:
    """epoch -> its micro-batches; every epoch has another order and the same number of them."""

    def bucketed(epoch: int) -> Sequence[Batch]:
        return [pad([examples[i] for i in batch]) for batch in by_length(examples, config.batch_tokens, config.seed + epoch)]

    def packed(epoch: int) -> Sequence[Batch]:
        length = max(len(example.ids) for example in examples)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        rows = pack([examples[i] for i in order], length)
        return micro_batches(rows, max(1, config.batch_tokens // length), config.seed + epoch)

    return bucketed if config.batching == "bucketed" or examples[0].prompt else packed


@torch.no_grad()
def evaluate(model: Transformer, examples: Sequence[Example], config: MethodConfig) -> float:
    """The held-out loss in training's own arithmetic, nats per target token."""
    device = next(model.parameters()).device.type
    with autocast(config.precision, device):
        return perplexity(model, examples).nats_per_token
