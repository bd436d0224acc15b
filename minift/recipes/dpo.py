"""Learning from preferences without a reward model: make the chosen answers likelier, the rejected ones less likely (DPO and its family).

    loss = - log sigmoid(beta [(log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))])         DPO, one pair

Log-probabilities are sums over an answer's tokens given the prompt. Eleven losses differ in what they make of these numbers (--loss,
recipes/objectives.py, docs/preference_losses.md). p_ref is the model before training, computed once (recipes/reference.py).
Each pair is one row: the prompt, then both answers, which do not see each other (data/branches.py): the prompt is run once. Only places
that predict an answer meet the output head, and loss and gradient go through it together (losses/logprobs.py).
Watch the two log-probabilities apart (preferences.png): the loss only sees their difference, and both may fall.
Rows come from files of any known preference format (data/preferences.py); some are held out by a hash of their question.
Papers: DPO arXiv:2305.18290, others beside their losses. Proved in tests/recipes/test_dpo.py, against trl in tests/parity/test_trl_dpo.py.
Left out: answers that share more than the prompt, several rejected answers to one chosen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from minift import folder as folders
from minift import peft
from minift.data.branches import Tree, TreeBatch, answers_in, batches_of_trees, rows_of
from minift.data.examples import prompt_ids
from minift.data.split import split_rows
from minift.errors import InputError
from minift.generate import generate, position_limit
from minift.losses.logprobs import per_answer
from minift.models.folder import config_json, config_of
from minift.models.transformer import Transformer
from minift.peft.training import after_step, penalty, settled
from minift.recipes.loading import use_template
from minift.recipes.objectives import REFERENCE_FREE, Answers, ObjectiveConfig, beta_of, check, objective, rewards
from minift.recipes.preference_rows import Rows, read_rows
from minift.recipes.preference_plots import draw_preferences
from minift.recipes.reference import base_of, keeps_base, named_file, reference_sums, set_dropout
from minift.recipes.profile_report import write_profile
from minift.recipes.report import draw_loss, write_samples
from minift.recipes.tuning import RunConfig, choose_parameters, loaded_in, refuse_too_few_steps, with_rate, write_result
from minift.train.answers import logprobs_of_answers, loss_of_answers
from minift.train.loop import Outcome, fit
from minift.train.precision import autocast
from minift.train.run import open_run


@dataclass(frozen=True, kw_only=True)
class Config(ObjectiveConfig, RunConfig):
    """Fine-tune a model on pairs of a better and a worse answer (DPO and ten losses of its kind); with --loss kto on single answers called
    good or bad.

    A row of a file: {"prompt": "The capital of Peru is", "chosen": " Lima.", "rejected": " a city."}
    Or, for kto: {"prompt": "The capital of Peru is", "completion": " Lima.", "label": true}
    In --out come the adapter, samples.md, loss.png, and preferences.png, which shows both answers' log-probabilities apart."""

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON or CSV with chosen and rejected answers (with a prompt, an instruction, or the whole conversations);
    for kto, also rows with one answer and a label."""
    reference: str = "base"
    """Whose log-probabilities the policy is held to: base, the model before training; a checkpoint folder; or another run's
    reference.safetensors."""
    live_reference: bool = False
    """Run the reference in every step (the model with its adapters off) instead of once: slower, the same numbers."""
    samples: int = 5
    """Held-out questions answered before and after, for samples.md."""
    new_tokens: int = 64
    """Longest answer in samples.md."""


@dataclass(frozen=True)
class Result:
    before: dict[str, float]
    after: dict[str, float]
    """Held-out loss, accuracy (how often the chosen answer's reward is higher), margin, rewards and log-probabilities of both."""
    outcome: Outcome
    written: Path
    """The adapter or the model folder."""

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    check(config)
    refuse_without_effect(config)
    train_rows, valid_rows = read_rows(config.data, config.eval_data, config.held_out, config.columns, one_answer=config.loss == "kto")
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    use_template(tokenizer, [*train_rows.questions, *valid_rows.questions], config.template)
    train_set, valid_set = (rows.examples(tokenizer, config.max_length) for rows in (train_rows, valid_rows))
    choose_parameters(model, config, tokenizer)
    dropout = model.config.dropout
    set_dropout(model, 0.0)
    every, referred = [*train_set.trees, *valid_set.trees], config.loss not in REFERENCE_FREE and not config.live_reference
    refuse_too_long(every, model)
    refuse_lost_reference(model, config)
    named = named_file(config.reference, every) if referred else None
    if named is None and config.reference != Config.reference:
        refuse_other_vocabulary(model, config)
    train, valid = (Pairs(part, None, model.can_branch()) for part in (train_set, valid_set))
    epoch = lambda number: train.batches(config.batch_tokens, config.seed + number, config.batching == "bucketed")
    refuse_too_few_steps(model, config, epoch)
    folder = open_run(config.out, "dpo", config, config.overwrite, config.resume)
    say = (lambda text: None) if quiet else print
    say("\n".join([*train_set.lines("to train on"), *valid_set.lines("held out")]))
    if config.loss == "kto" and len(kinds := {row.desirable for row in train_rows.pairs}) == 1:
        kind = "desirable" if kinds.pop() else "undesirable"
        say(f"every answer to train on is {kind}: nothing says how those of the other kind differ, so what is learned is to move all answers one way")

    if referred:
        found = reference_sums(model, every, config.reference, folder, config.batch_tokens, config.precision) if named is None else named
        train.reference, valid.reference = found.split([sum(len(tree.answers) for tree in part.trees) for part in (train, valid)])
    loss = PairLoss(config)

    asked = [(row, ids) for row in valid_rows.samples(config.samples) if len(ids := prompt_ids(row, tokenizer)) < position_limit(model)]
    answer = lambda: generate(model, tokenizer, [ids for _, ids in asked], max_new_tokens=config.new_tokens) if asked else []
    with base_of(model):
        said_before = answer()
    before = evaluate(model, valid, loss, config)
    tell, counts, measure = partial(after_step, model), partial(settled, model), lambda: evaluate(model, valid, loss, config)
    outcome = fit(model, epoch, loss, config, folder, measure, config.resume, quiet, tell, counts, loss.taken, unit=loss.unit)
    after, said_after = evaluate(model, valid, loss, config), answer()

    set_dropout(model, dropout)                                                                         # what is written has its own again
    written = write_result(model, tokenizer, config, folder, base=config.model)
    draw_loss(folder, f"Held-out loss {before['loss']:.3f} → {after['loss']:.3f}", before["loss"], ylabel=f"{config.loss} loss, mean over {loss.unit}")
    write_profile(folder, quiet)
    draw_preferences(folder, before, None if config.loss in REFERENCE_FREE else beta_of(config), labelled=config.loss == "kto")
    write_samples(folder, [row for row, _ in asked], said_before, said_after)
    say(f"held-out loss {before['loss']:.3f} -> {after['loss']:.3f}, {after['accuracy']:.0%} of the {loss.unit} ranked right; "
        f"log p of chosen {before['chosen']:.1f} -> {after['chosen']:.1f}, of rejected {before['rejected']:.1f} -> {after['rejected']:.1f}; written: {written}")
    return Result(before, after, outcome, written)


class Pairs:
    """Trees with the reference's log-probabilities of their answers."""

    def __init__(self, examples: Rows, reference: Tensor | None, share: bool):
        self.trees, self.desirable, self.reference, self.share = examples.trees, examples.desirable, reference, share

    def batch(self, indices: Sequence[int]) -> TreeBatch:
        rows = rows_of([self.trees[i] for i in indices], self.share)
        some = torch.tensor(indices)
        if self.reference is not None:
            rows.values["reference"] = self.reference.view(-1, 2)[some].flatten()                       # (A,)
        if self.desirable is not None:
            rows.values["desirable"] = self.desirable[some]                                             # (rows,)
        return rows

    def batches(self, tokens: int, seed: int, bucketed: bool = False) -> list[TreeBatch]:
        return [self.batch(some) for some in batches_of_trees([tree.size for tree in self.trees], tokens, seed, bucketed)]


class PairLoss:
    """(model, batch) -> (sum of the pairs' losses, pairs), as the loop wants it; and what it saw of them on the way."""

    def __init__(self, config: Config):
        self.config, self.objective = config, objective(config)
        self.unit = "answers" if config.loss == "kto" else "pairs"
        self.seen: list[dict[str, float]] = []

    def __call__(self, model: nn.Module, batch: TreeBatch) -> tuple[Tensor, int]:
        reference = batch.values.get("reference", batch.tokens.new_empty(0))
        if self.config.live_reference:
            with torch.no_grad(), peft.disabled(model):
                reference = per_answer(logprobs_of_answers(model, batch), batch.lengths)                # (A,)

        def loss(logprobs: Tensor, entropy: Tensor, part: slice) -> Tensor:
            return self.objective(self._answers(logprobs, reference, batch, answers_in(part, batch.lengths)))

        pairs = batch.lengths.view(-1, 2).sum(1)                                                        # tokens of each
        together = pairs.sum()[None] if self.config.loss == "kto" else pairs                            # KTO's KL term is one for all
        scored = loss_of_answers(model, batch, together, loss)
        self._remember(self._answers(scored.logprobs, reference, batch, slice(0, len(batch.lengths))), scored.loss.item())
        asked = penalty(model)
        return (scored.loss if asked is None else scored.loss + asked * batch.trees), batch.trees

    def _answers(self, logprobs: Tensor, reference: Tensor, batch: TreeBatch, some: slice) -> Answers:
        lengths = batch.lengths[some]
        desirable = batch.values.get("desirable", lengths.new_empty(0))
        return Answers(per_answer(logprobs, lengths), reference[some], lengths, desirable[some.start // 2 : some.stop // 2])

    def _remember(self, a: Answers, loss: float) -> None:
        reward, policy = rewards(a, self.config), a.policy
        if self.config.loss == "kto":                                                                   # rows of one kind and of the other
            chosen, rejected = ([values[0::2][mask] for values in (reward, policy)] for mask in (a.desirable, ~a.desirable))
        else:
            chosen, rejected = ([values[i::2] for values in (reward, policy)] for i in (0, 1))
        lead = torch.where(a.desirable, reward[0::2], -reward[0::2]) if self.config.loss == "kto" else chosen[0] - rejected[0]
        right = (lead.sign() + 1) / 2                                                                   # a tie, as before the first step, is half right
        self.seen.append({
            "loss": loss, "right": right.sum().item(), "pairs": len(lead), "chosens": len(chosen[0]), "rejecteds": len(rejected[0]),
            "reward_chosen": chosen[0].sum().item(), "reward_rejected": rejected[0].sum().item(),
            "chosen": chosen[1].sum().item(), "rejected": rejected[1].sum().item(),
        })  # fmt: skip

    def taken(self) -> dict[str, float]:
        """Means over the pairs seen since the last call: accuracy, margin, and of each side reward and log-probability."""
        sums = {name: sum(seen[name] for seen in self.seen) for name in self.seen[0]}
        self.seen = []
        mean = lambda name, side: sums[name] / max(1, sums[side])
        found = {"reward_chosen": mean("reward_chosen", "chosens"), "reward_rejected": mean("reward_rejected", "rejecteds")}
        found |= {"margin": found["reward_chosen"] - found["reward_rejected"], "accuracy": mean("right", "pairs")}
        return found | {"chosen": mean("chosen", "chosens"), "rejected": mean("rejected", "rejecteds")}


@torch.no_grad()
def evaluate(model: Transformer, pairs: Pairs, loss: PairLoss, config: Config) -> dict[str, float]:
    """The held-out loss in training's own arithmetic, per pair, with accuracy, margin, rewards and log-probabilities."""
    device, was_training, total, count = model.norm.weight.device, model.training, 0.0, 0
    model.eval()
    held, loss.seen = loss.seen, []
    try:
        for batch in pairs.batches(config.batch_tokens, seed=0):
            with autocast(config.precision, device.type):
                loss(model, batch.to(device))
            total, count = total + loss.seen[-1]["loss"], count + batch.trees
        return {"loss": total / count, **loss.taken()}
    finally:
        model.train(was_training)
        loss.seen = held


def refuse_without_effect(config: Config) -> None:
    """Options that would do nothing are errors (trap 22)."""
    if config.compile:
        raise InputError("--compile has nothing to gain here, where every batch has another shape: leave it out")
    if config.loss in REFERENCE_FREE and (config.live_reference or config.reference != Config.reference):
        raise InputError(f"--loss {config.loss} has no reference: leave --reference and --live-reference out")
    if config.live_reference and config.reference != Config.reference:
        raise InputError("--live-reference is the model with its adapters off; a reference named with --reference is computed once: leave one out")
    if Path(config.reference).resolve().is_relative_to(config.out.resolve()) and config.reference != Config.reference:
        raise InputError(f"--reference {config.reference} lies in {config.out}, the folder of this run: name another folder with --out")


def refuse_lost_reference(model: Transformer, config: Config) -> None:
    """A live reference needs the model's own weights as they were."""
    if config.live_reference and not keeps_base(model):
        raise InputError(f"--method {config.method} trains the model's own weights, so there is no reference left to run live: leave --live-reference out")


def refuse_other_vocabulary(model: Transformer, config: Config) -> None:
    """A named model reads the policy's own tokens."""
    folder = folders.locate(config.reference)
    theirs = config_of({**config_json(folder), "quantization_config": None}, folder).vocab_size
    if theirs != model.config.vocab_size:
        raise InputError(f"the reference {config.reference} knows {theirs} tokens, the model {model.config.vocab_size}: they need one tokenizer")


def refuse_too_long(trees: Sequence[Tree], model: Transformer) -> None:
    """A model with learned positions has no position for the tokens behind its last one."""
    longest, limit = max(len(tree.prompt) + max(map(len, tree.answers)) for tree in trees), position_limit(model)
    if longest > limit:
        raise InputError(f"the longest prompt with its answer has {longest} tokens, this model has positions for {limit}: pass --max-length {limit}")
