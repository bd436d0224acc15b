"""Embeddings: put texts that belong together close to each other (Reimers and Gurevych 2019, arXiv:1908.10084; Gao et al. 2021, arXiv:2104.08821).

    texts of a batch -> one vector each (models/pooling.py) -> a loss of all of them together

    rows of the file          losses (--loss), the first is the default
    anchor, positive, ...     infonce: which of the batch's texts belongs to this anchor; symmetric: and the other way round; triplet
    sentence1 & 2, score      cosent: more alike pairs get the larger cosine; angle; cosine: the cosine is the score; contrastive, online (scores of 0 and 1)
    sentence1 & 2, label      nli: a classifier of u, v and |u - v|, which learns beside the model and is not kept, says how the two relate
    text, label               batch-hard: the furthest of one's own label against the nearest other; batch-hard-soft, batch-semi-hard, batch-all
    text                      simcse: a text against itself under other dropout
    any of these              distill: every text lies where a --teacher puts it (embed_teacher.py)

Any model can be the body; its folder says how vectors are made, or --pooling does. A decoder may look both ways (--bidirectional; LLM2Vec,
arXiv:2404.05961, whose training on masked tokens before this is left out). All texts of a batch lie end to end in rows without pads
(models/ragged.py). In-batch losses learn more from larger batches: --rows says how many, --mini-batch keeps the memory of a small one at the
gradient of the large one (train/grad_cache.py). No text of a pair stands in a batch twice; a negative that is another row's partner is not counted as one (trap 41).
Proved in tests/recipes/test_embed.py. Left out: several kinds of data at once, a cross-encoder's scores as targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift import folder as folders
from minift.embed import pooled, pooling_of, rows, token_ids
from minift.errors import InputError
from minift.losses.contrastive import LearnedTemperature
from minift.models.pooling import Mode, Pooling
from minift.models.sentence_folder import write_pooling
from minift.models.transformer import Transformer
from minift.peft.training import after_step, penalty, settled
from minift.recipes.embed_losses import LOSSES, ROW_BY_ROW, objective, related
from minift.recipes.embed_report import measured, write_report
from minift.recipes.embed_rows import EmbedBatch, Rows, mined, read_rows
from minift.recipes.embed_teacher import encoder_of, prompt_of, refuse_teacher, teach
from minift.recipes.methods import METHODS
from minift.recipes.profile_report import write_profile
from minift.recipes.report import draw_loss
from minift.recipes.tuning import RunConfig, choose_parameters, loaded_in, refuse_too_few_steps, with_rate, write_result
from minift.train.grad_cache import grad_cache
from minift.train.loop import Outcome, fit
from minift.train.precision import autocast
from minift.train.run import open_run, recall_arithmetic


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Fine-tune a model's embeddings: retrieval, similarity, clusters."""

    data: tuple[str, ...]
    """Files or globs (JSONL, JSON, CSV, TSV): anchor and positive (and negatives); sentence1, sentence2 and score, or label; text and label;
    or text alone. Or pydocs: this machine's Python docstrings and their code."""
    loss: Literal[*LOSSES] | None = None
    """What is learned from them; none: infonce, cosent, nli, batch-hard or simcse, by the data. nli trains a classifier of both texts beside the
    model, which is not kept; distill takes rows of any kind, and a --teacher."""
    teacher: str | None = None
    """distill: a folder of the model whose vectors are to be learned; they may be wider or narrower."""
    temperature: float = 0.05
    """infonce, symmetric, simcse, cosent, angle: cosines are divided by it. Small: only the hardest negatives count."""
    learn_temperature: bool = False
    """infonce, symmetric, simcse: let it be learned, from --temperature on."""
    margin: float = 0.5
    """contrastive, online, triplet and the batch losses: how far apart is far enough."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """What the scores of the file reach from and to, as in --score-range 1 5."""
    dims: tuple[int, ...] = ()
    """Matryoshka: the first so many numbers are to be an embedding too: --dims 64 128 384."""
    rows: int = 64
    """Rows of a batch."""
    mini_batch: int = 0
    """GradCache: texts of a column that are in memory at once; 0: all. Costs a second forward pass."""
    negatives: int = 0
    """Hard negatives to look for before training, for each anchor: the nearest texts that are not its positive, by the untrained model."""
    negative_margin: float = 0.05
    """A hard negative's cosine lies at least this much below the positive's: what lies nearer may well be right too."""
    anchor_prompt: str = ""
    """Put before each anchor, or each text that has no other side: "query: ", say; none: the model's own prompt called query, if it has one."""
    positive_prompt: str = ""
    """Put before each positive and negative: "passage: ", say; none: the model's own prompt called document."""
    pooling: Mode | None = None
    """How a text's hidden states become one vector; none: as the folder says, else the mean of an encoder's and a decoder's last token
    (--bidirectional: the mean)."""
    bidirectional: bool = False
    """Decoders: each token sees the whole text, not only what is before it. What is written says so, and is read so."""
    max_length: int = 256
    """Longest text in tokens; longer ones are cut."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("rows", 2), ("mini_batch", 0), ("negatives", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: wanted {least} or more")
        if not self.temperature > 0 or not self.margin > 0 or self.negative_margin < 0:
            raise InputError("--temperature and --margin want more than 0, --negative-margin 0 or more")


@dataclass(frozen=True)
class Result:
    before: dict[str, float]
    after: dict[str, float]
    """On held-out rows: the loss, and what the data can be judged by (embed_report.py)."""
    outcome: Outcome
    written: Path
    """The adapter or the model folder."""

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    if config.compile:
        raise InputError("--compile has nothing to gain here, where every batch has another shape: leave it out")
    if config.resume:
        recall_arithmetic(config.out, config.device)                          # negatives and a teacher's vectors are made before the run is opened
    train_rows, valid_rows, found = read_rows(config.data, config.eval_data, config.held_out, config.columns)
    config = chosen(config, train_rows)
    if config.positive_prompt and train_rows[0].shape != "pairs":
        raise InputError(f"--positive-prompt is for pairs, and these rows are {train_rows[0].shape}: leave it out")
    model, tokenizer = folders.embedder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    own = both_ways(model, config) if config.bidirectional else pooling_of(model)
    pooling = replace(own, mode=config.pooling or own.mode, max_length=min(config.max_length, own.max_length or config.max_length))
    if config.anchor_prompt or config.positive_prompt:
        pooling = replace(pooling, prompts={"query": config.anchor_prompt, "document": config.positive_prompt}, default_prompt=None)
    model.pooling = pooling
    tell = partial(encoder_of, model, tokenizer, pooling, config)
    say = (lambda text: None) if quiet else print
    if config.negatives:
        train_rows, said = mined(train_rows, tell(), config.negatives, config.negative_margin)
        found.append(said)
    encode = lambda texts, side: token_ids(model, tokenizer, texts, pooling, prompt_of(pooling, side))
    classes = sorted({row.label for row in train_rows}) if config.loss == "nli" else []
    train, valid = (Rows(some, encode, config, classes) for some in (train_rows, valid_rows))
    refuse_what_cannot_learn(model, config, train, valid)
    if config.loss == "distill":
        found.append(teach(config, pooling, model.config.hidden_size, train, valid))
    choose_parameters(model, config, tokenizer)
    trained_beside(model, config, classes)
    epoch = lambda number: train.epoch(number, config.rows, config.seed)
    refuse_too_few_steps(model, config, epoch)
    folder = open_run(config.out, "embed", config, config.overwrite, config.resume)
    say("\n".join([*found, *train.lines("to train on"), *valid.lines("held out")]))

    loss = EmbedLoss(config, pooling)
    relation = getattr(model, "relation", None)
    judge = None if relation is None else lambda u, v: [classes[i] for i in related(relation, u, v)]
    measure = lambda dim=None: measured(valid_rows, tell(), dim, judge)
    evaluate = lambda: {"loss": held_out_loss(model, valid, loss, config), **measure()}
    before = evaluate()
    outcome = fit(model, epoch, loss, config, folder, evaluate, config.resume, quiet, partial(after_step, model), partial(settled, model), unit="rows")
    after = evaluate()
    if config.learn_temperature:
        say(f"temperature {config.temperature:g} -> {model.temperature().item():.4f}")
    for name in BESIDE:
        model._modules.pop(name, None)
    written = write_result(model, tokenizer, config, folder, base=config.model)
    if not METHODS[config.method].whole:
        write_pooling(pooling, model.config.hidden_size, written)
    draw_loss(folder, f"Held-out loss {before['loss']:.3f} → {after['loss']:.3f}", before["loss"], ylabel=f"{config.loss} loss, mean over rows")
    write_profile(folder, quiet)
    write_report(folder, before, after, valid_rows, measure, config)
    names = [name for name in before if name not in ("loss", "rows")]
    say("; ".join([f"held-out loss {before['loss']:.3f} -> {after['loss']:.3f}", *(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in names), f"written: {written}"]))
    return Result(before, after, outcome, written)


def both_ways(model: Transformer, config: Config) -> Pooling:
    """The folder's pooling, else the mean, of a decoder that sees the whole text. Raises InputError for a model that does anyway, or cannot."""
    if not model.config.causal:
        raise InputError(f"--bidirectional takes a decoder's causal mask off, and {config.model} is an encoder, which has none: leave it out")
    if not model.can_look_ahead():
        raise InputError(f"--bidirectional: {config.model} has ALiBi or a sliding window, which look backwards: leave it out, or take a model without")
    return replace(model.pooling or Pooling("mean"), bidirectional=True)


def chosen(config: Config, train_rows: Sequence) -> Config:
    """With the data's own loss if none was named. Raises InputError for one that wants other data, or an option that would be without effect."""
    shape = train_rows[0].shape
    fitting = [name for name, (wanted, _) in LOSSES.items() if wanted in (shape, "any")]
    name = config.loss or fitting[0]
    if name not in fitting:
        raise InputError(f"--loss {name} learns from {LOSSES[name][0]} rows, and these are {shape}: take {', '.join(fitting)}")
    uses = LOSSES[name][1]
    options = {"temperature": config.temperature != Config.temperature, "learn_temperature": config.learn_temperature, "margin": config.margin != Config.margin}
    for option, given in options.items():
        if given and option not in uses:
            raise InputError(f"--{option.replace('_', '-')} is no option of --loss {name}: leave it out")
    if config.negatives and shape != "pairs":
        raise InputError(f"--negatives are looked for where rows are pairs, and these are {shape}: leave it out")
    if config.mini_batch and name in ROW_BY_ROW:
        raise InputError(f"--mini-batch is for losses that look at a whole batch; with --loss {name}, take smaller --rows and --accumulate")
    config = replace(config, loss=name)
    refuse_teacher(config)
    return config


def refuse_what_cannot_learn(model: Transformer, config: Config, train: Rows, valid: Rows) -> None:
    if config.loss == "simcse" and not model.config.dropout:
        raise InputError("--loss simcse sets a text against itself under other dropout, and this model has none: take an encoder, or pairs of texts")
    if config.loss == "triplet" and any(len(row.texts) != 3 for part in (train, valid) for row in part.rows):
        raise InputError("--loss triplet wants one negative in every row, held-out ones too: give them, or take infonce, which needs none")
    if len(train.rows) < config.rows:
        raise InputError(f"--rows {config.rows} of {len(train.rows)} rows to train on: a batch cannot be larger than the data")
    if not valid.batches(config.rows, config.seed):
        raise InputError(f"{len(valid.rows)} held-out rows make no batch to compare: give more, a larger --held-out, or --eval-data")
    if max(config.dims, default=1) > model.config.hidden_size or min(config.dims, default=1) < 1:
        raise InputError(f"--dims {' '.join(map(str, config.dims))}: wanted 1 to {model.config.hidden_size}, the numbers that these embeddings have")


BESIDE = ("temperature", "relation")
"""What learns beside the model, as parts of it until it is written."""


def trained_beside(model: Transformer, config: Config, classes: Sequence[str]) -> None:
    """A temperature, or a classifier of (u, v, |u - v|), with random weights drawn from the seed."""
    if config.learn_temperature:
        model.temperature = LearnedTemperature(config.temperature)
    if config.loss == "nli":
        torch.manual_seed(config.seed)
        model.relation = nn.Linear(3 * model.config.hidden_size, len(classes)).to(model.embed.weight.device)


class EmbedLoss:
    """(model, batch) -> (loss times rows, rows), as the loop wants it."""

    def __init__(self, config: Config, pooling: Pooling):
        self.config, self.pooling = config, pooling

    def __call__(self, model: nn.Module, batch: EmbedBatch) -> tuple[Tensor, int]:
        config = self.config
        temperature = model.temperature() if config.learn_temperature else config.temperature
        loss = objective(config, batch, temperature, getattr(model, "relation", None))
        if config.mini_batch and torch.is_grad_enabled():
            total, count = grad_cache(batch.columns, lambda texts: self.vectors(model, texts), loss, size=config.mini_batch)
        else:
            sizes = [len(column) for column in batch.columns]
            total, count = loss(*self.vectors(model, [text for column in batch.columns for text in column]).split(sizes))
        mean = total / max(count, 1)
        asked = penalty(model)
        return (mean if asked is None else mean + asked) * batch.targets, batch.targets

    def vectors(self, model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of B texts -> (B, C), with the graph."""
        parts, places = [], []
        for row, ragged, own in rows(texts, self.config.batch_tokens):
            parts.append(pooled(model, row, ragged, self.pooling))
            places.append(own)
        found = torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]
        return F.normalize(found, dim=-1) if self.pooling.normalize else found


@torch.no_grad()
def held_out_loss(model: Transformer, valid: Rows, loss: EmbedLoss, config: Config) -> float:
    """The mean over batches of training's size, always the same ones."""
    was_training, found, count = model.training, 0.0, 0
    model.train(config.loss == "simcse")                                      # which is nothing without dropout
    with torch.random.fork_rng(), autocast(config.precision, model.embed.weight.device.type):
        torch.manual_seed(config.seed)
        for batch in valid.batches(config.rows, config.seed):
            total, rows_there = loss(model, batch.to(model.embed.weight.device))
            found, count = found + total.item(), count + rows_there
    model.train(was_training)
    return found / count
