"""A classifier whose head is part of the model, trained with as much of the model as --method says.

    rows of tokens -> model -> the first (encoder) or last (decoder) token's stream -> K scores -> loss             (classify/scores.py)

The head is new, drawn from --seed, unless the folder is a classifier for the same labels already. Of a regression it starts as the mean of the
training rows, with steps in units of their deviation. Proved in tests/recipes/test_classify.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor, nn

from minift import folder as folders
from minift.classify.classifier import Classifier, write_names
from minift.classify.scores import Read, all_scores, head_scores, read
from minift.data.classified import targets
from minift.errors import InputError
from minift.models.encoder import Encoder
from minift.models.folder import config_json, config_of
from minift.models.transformer import Transformer
from minift.peft.head import SAVED
from minift.peft.training import after_step, penalty, settled
from minift.recipes.classify_report import MAIN, measured, summary, write_report
from minift.recipes.classify_task import Config, Data, Result, lasting, objective
from minift.recipes.methods import METHODS
from minift.recipes.profile_report import write_profile
from minift.recipes.report import draw_loss
from minift.recipes.tuning import choose_parameters, loaded_in, refuse_too_few_steps, with_rate, write_result
from minift.tokenizer import Tokenizer
from minift.train.loop import fit
from minift.train.precision import autocast
from minift.train.run import open_run


@dataclass
class ClassBatch:
    rows: list[Read]
    answers: Tensor
    """(B,) or (B, K), as data/classified.py's targets."""

    @property
    def targets(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "ClassBatch":
        return ClassBatch(self.rows, self.answers.to(device))


@dataclass(frozen=True)
class Ready:
    """All that a training begins with; nothing is written yet."""

    model: Transformer
    tokenizer: Tokenizer
    data: Data
    """Its labels in the order of the model's scores."""
    valid: list[Read]
    answers: Tensor
    held_out: Tensor
    """Targets of the rows to train on, and of the others."""
    epoch: Callable[[int], list[ClassBatch]]


def prepare(config: Config, data: Data) -> Ready:
    """Read the model, attach the method, and refuse whatever cannot be."""
    if METHODS[config.method].whole and config.dtype != "float32":
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {config.dtype} cannot resolve its small steps")
    if config.compile:
        raise InputError("--compile has nothing to gain here, where every batch has another shape: leave it out")
    model, tokenizer, labels = scorer(config, data)
    data = replace(data, labels=labels)
    answers, held_out = targets(data.train, labels), targets(data.valid, labels)
    if data.problem == "regression":
        start_at(model, answers)
    choose_parameters(model, config, tokenizer)
    train, valid = (read(model, tokenizer, [row.texts for row in rows], config.max_length) for rows in (data.train, data.valid))

    def epoch(number: int) -> list[ClassBatch]:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed + number))
        return [ClassBatch([train[i] for i in some.tolist()], answers[some]) for some in order.split(config.rows)]

    refuse_too_few_steps(model, config, epoch)
    return Ready(model, tokenizer, data, valid, answers, held_out, epoch)


def run(config: Config, data: Data, quiet: bool = False) -> Result:
    config = with_rate(config)
    ready = prepare(config, data)
    model, tokenizer, data, valid, held_out, labels = ready.model, ready.tokenizer, ready.data, ready.valid, ready.held_out, ready.data.labels
    folder = open_run(config.out, "classify", config, config.overwrite, config.resume)
    say = (lambda text: None) if quiet else print
    say("\n".join(data.lines()))

    loss = objective(config, data.problem, ready.answers, len(labels))
    device = model.embed.weight.device.type

    def evaluate() -> tuple[dict[str, float], Tensor]:
        with autocast(config.precision, device):
            scores = all_scores(model, valid, config.batch_tokens)
        mean = (loss(scores, held_out)[0] / len(held_out)).item()
        return {"loss": mean, **measured(data.problem, scores, held_out, labels)}, scores

    def told() -> dict[str, float]:
        found = evaluate()[0]
        return {"loss": found["loss"], MAIN[data.problem]: found[MAIN[data.problem]]}

    def step_loss(model: nn.Module, batch: ClassBatch) -> tuple[Tensor, int]:
        total, rows = loss(head_scores(model, batch.rows), batch.answers)
        asked = penalty(model)
        return (total if asked is None else total + asked * rows), rows

    cost = itemgetter("loss") if config.best == "loss" else lambda values: -values[MAIN[data.problem]]
    before = evaluate()[0]
    outcome = fit(model, ready.epoch, step_loss, config, folder, told, config.resume, quiet, partial(after_step, model), partial(settled, model), unit="rows", cost=cost)
    found, scores = evaluate()

    if METHODS[config.method].whole:
        tokenizer.config["model_max_length"] = config.max_length                # where other libraries are to cut
    written = write_result(model, tokenizer, config, folder, base=lasting(config.model))
    write_names(written, Classifier(data.problem, labels, data.found.sides, model, tokenizer, config.max_length, precision=config.precision))
    draw_loss(folder, f"Held-out loss {before['loss']:.3f} → {found['loss']:.3f}", before["loss"], ylabel="loss, mean over rows")
    write_profile(folder, quiet)
    write_report(folder, data, scores, held_out, found, config.mistakes)
    say(f"held-out loss {before['loss']:.3f} -> {found['loss']:.3f}, {summary(data.problem, found)}; written: {written}")
    return Result(found, written, outcome.stopped == "interrupted")


def scorer(config: Config, data: Data) -> tuple[Transformer, Tokenizer, list[str]]:
    """The model with K scores, and the labels in the order of its scores. Raises InputError for a family without a classifier, and for a classifier of
    other labels."""
    folder = folders.locate(config.model)
    own = config_of({**config_json(folder), "quantization_config": None}, folder)
    if not own.causal and own.family not in SAVED:
        raise InputError(f"{folder} is a {own.family} encoder, which has no classifier of its own: take --method features, or setfit")
    labels = data.labels
    if own.labels and data.problem != "regression":
        numbered = [[f"{word}{k}" for k in range(own.labels)] for word in ("", "LABEL_")]             # what a checkpoint without names can mean
        order = next((names for names in ([own.label_names] if own.label_names else numbered) if set(names) == set(labels)), None)
        if order is None:
            named = ", ".join(own.label_names[:5]) or f"{own.labels} without names, which only the labels 0 to {own.labels - 1} fit"
            raise InputError(f"{folder} is a classifier for other labels ({named}): start from an encoder or a language model without a head")
        labels = list(order)
    model, tokenizer = folders.load(folder, getattr(torch, config.dtype), config.device, loaded_in(config), scores=len(labels), seed=config.seed)
    model.config = replace(model.config, label_names=tuple(labels), problem=data.problem)
    return model, tokenizer, labels


@torch.no_grad()
def start_at(model: Transformer, values: Tensor) -> None:
    """A regression's head begins at the mean of its values, in units of their deviation."""
    model.score.weight.mul_(values.std(correction=0).clamp(min=1e-6))
    if isinstance(model, Encoder):
        model.score.bias.fill_(values.mean())
