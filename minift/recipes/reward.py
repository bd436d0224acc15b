"""A reward model: one number for an answer, learned from which of two answers people preferred (Bradley and Terry 1952; arXiv:2203.02155).

    r = W h(prompt, answer)                   h: the stream at the answer's last token      W: (1, C), new (models/scorer.py)
    loss = - log sigmoid(r_chosen - r_rejected - margin)  [ + center (r_chosen + r_rejected)^2 ]               one pair

The body is any language model, or a reward model to go on with. Which of its numbers train is chosen with --method as in sft; the head
always trains, and is stored with the adapter (peft/head.py). Results are transformers' ...ForSequenceClassification.
Each pair is one row: the prompt once, then both answers, which do not see each other (data/branches.py).
The loss knows differences only: adding 5 to every reward changes nothing. --center holds their mean near 0 (arXiv:2312.09244), which is
what a KL penalty or a mixture with other rewards is easier balanced against; the report says where the mean came to lie.
Margins of the file, if it has them, say by how much a pair differs (Llama 2, arXiv:2307.09288, eq. 2).
Proved in tests/recipes/test_reward.py. Left out: rankings of more than two answers, ensembles."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from minift import folder as folders
from minift.data.branches import TreeBatch, batches_of_trees, rows_of
from minift.errors import InputError
from minift.evaluate.scoring import rewards
from minift.losses.reward import bradley_terry
from minift.models.scorer import Scorer
from minift.peft.training import after_step, penalty, settled
from minift.recipes.dpo import refuse_too_long
from minift.recipes.loading import use_template
from minift.recipes.methods import METHODS
from minift.recipes.preference_rows import Rows, read_rows
from minift.recipes.profile_report import write_profile
from minift.recipes.report import draw_loss
from minift.recipes.reward_report import draw_rewards, write_disagreements
from minift.recipes.tuning import RunConfig, choose_parameters, loaded_in, refuse_too_few_steps, with_rate, write_result
from minift.tokenizer import Tokenizer
from minift.train.loop import Outcome, fit
from minift.train.precision import autocast
from minift.train.run import open_run


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Train a reward model on pairs of a better and a worse answer."""

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON or CSV with chosen and rejected answers (with a prompt, an instruction, or the whole conversations)."""
    center: float = 0.0
    """Weight of (r_chosen + r_rejected)^2 in the loss, which holds the mean reward near 0; 0.01 is usual, 0 turns it off."""
    samples: int = 5
    """Held-out pairs of each kind in samples.md: those that the model got most clearly right, and most clearly wrong."""

    def __post_init__(self):
        super().__post_init__()
        if not self.center >= 0:
            raise InputError(f"--center is {self.center}: wanted 0 or more")


@dataclass(frozen=True)
class Result:
    before: dict[str, float]
    after: dict[str, float]
    """Held-out loss, accuracy (how often the chosen answer has the higher reward), margin, mean and std of all rewards, and of both sides."""
    outcome: Outcome
    written: Path
    """The adapter or the model folder."""

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    if METHODS[config.method].whole and config.dtype != "float32":
        cannot = f"{config.dtype} cannot resolve its small steps"
        raise InputError(f"--method {config.method} trains the weights themselves: pass --dtype float32, {cannot}")
    if config.compile:
        raise InputError("--compile has nothing to gain here, where every batch has another shape: leave it out")
    train_rows, valid_rows = read_rows(config.data, config.eval_data, config.held_out, config.columns)
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config), scores=1, seed=config.seed)
    pad_apart_from_end(model, tokenizer)
    use_template(tokenizer, [*train_rows.questions, *valid_rows.questions], config.template)
    train_set, valid_set = (rows.examples(tokenizer, config.max_length) for rows in (train_rows, valid_rows))
    choose_parameters(model, config, tokenizer)
    refuse_too_long([*train_set.trees, *valid_set.trees], model)
    train, valid, loss = Pairs(train_set, model.can_branch()), Pairs(valid_set, model.can_branch()), RewardLoss(config.center)
    epoch = lambda number: train.batches(config.batch_tokens, config.seed + number, config.batching == "bucketed")
    refuse_too_few_steps(model, config, epoch)
    folder = open_run(config.out, "reward", config, config.overwrite, config.resume)
    say = (lambda text: None) if quiet else print
    say("\n".join([*train_set.lines("to train on"), *valid_set.lines("held out")]))

    before, scores_before = evaluate(model, valid, config)
    tell, counts, measure = partial(after_step, model), partial(settled, model), lambda: evaluate(model, valid, config)[0]
    outcome = fit(model, epoch, loss, config, folder, measure, config.resume, quiet, tell, counts, loss.taken, unit="pairs")
    after, scores = evaluate(model, valid, config)

    written = write_result(model, tokenizer, config, folder, base=config.model)
    draw_loss(folder, f"Held-out loss {before['loss']:.3f} → {after['loss']:.3f}", before["loss"], ylabel="Bradley-Terry loss, each pair")
    write_profile(folder, quiet)
    draw_rewards(folder, scores_before, scores, (before["accuracy"], after["accuracy"]))
    write_disagreements(folder, valid.trees, scores, tokenizer, config.samples)
    say(f"held-out loss {before['loss']:.3f} -> {after['loss']:.3f}, pairs ranked right {before['accuracy']:.1%} -> "
        f"{after['accuracy']:.1%} of {len(scores)}, mean margin {after['margin']:.2f}; {centring(after, config.center)}; written: {written}")
    return Result(before, after, outcome, written)


class Pairs:
    """Trees of two answers, the chosen one first, and their margins."""

    def __init__(self, examples: Rows, share: bool):
        self.trees, self.margins, self.share = examples.trees, examples.margins, share

    def batch(self, indices: Sequence[int]) -> TreeBatch:
        rows = rows_of([self.trees[i] for i in indices], self.share)
        if self.margins is not None:
            rows.values["margin"] = self.margins[torch.tensor(indices)]                                 # (pairs,)
        return rows

    def batches(self, tokens: int, seed: int, bucketed: bool = False) -> list[TreeBatch]:
        return [self.batch(some) for some in batches_of_trees([tree.size for tree in self.trees], tokens, seed, bucketed)]


class RewardLoss:
    """(model, batch) -> (sum of the pairs' losses, pairs), as the loop wants it; and the rewards it saw on the way."""

    def __init__(self, center: float):
        self.center, self.seen = center, []

    def __call__(self, model: nn.Module, batch: TreeBatch) -> tuple[Tensor, Tensor | int]:
        scores = model.rewards(batch).view(-1, 2)                                                       # (pairs, 2): chosen, rejected
        self.seen.append(scores.detach())
        total, pairs = bradley_terry(scores[:, 0], scores[:, 1], margin=batch.values.get("margin"), center=self.center)
        asked = penalty(model)
        return (total if asked is None else total + asked * pairs), pairs

    def taken(self) -> dict[str, float]:
        """What the pairs since the last call say."""
        scores, self.seen = torch.cat(self.seen), []
        return summary(scores)


def summary(scores: Tensor) -> dict[str, float]:
    """scores (pairs, 2): accuracy, mean margin, mean and std of all rewards, mean of each side. Equal rewards are no right ranking."""
    chosen, rejected = scores.float().T
    found = {"accuracy": chosen > rejected, "margin": chosen - rejected, "reward_chosen": chosen, "reward_rejected": rejected, "reward": scores}
    return {name: values.float().mean().item() for name, values in found.items()} | {"reward_std": scores.float().std().item()}


@torch.no_grad()
def evaluate(model: Scorer, pairs: Pairs, config: Config) -> tuple[dict[str, float], Tensor]:
    """The held-out loss in training's own arithmetic, per pair, with the summary of its rewards; and those, (pairs, 2)."""
    with autocast(config.precision, model.norm.weight.device.type):
        scores = rewards(model, pairs.trees, config.batch_tokens).view(-1, 2)
    total, count = bradley_terry(scores[:, 0], scores[:, 1], margin=pairs.margins, center=config.center)
    return {"loss": (total / count).item(), **summary(scores)}, scores


def centring(found: dict[str, float], center: float) -> str:
    """Where the mean of the rewards lies, in words."""
    mean, std = found["reward"], found["reward_std"]
    centred = abs(mean) <= 0.5 * std
    hint = "" if centred else "; --center 0.01 would hold it near 0" if not center else "; a larger --center would hold it nearer to 0"
    return f"rewards {mean:.2f} ± {std:.2f}, {'centred' if centred else 'not centred'}{hint}"


def pad_apart_from_end(model: Scorer, tokenizer: Tokenizer) -> None:
    """transformers finds the end of a text by its pad id: with a pad that is the end token it would read the reward one token too early
    (trap 11). We count, but what we write should work there too: the pad becomes the unknown or the first token of a text instead."""
    if tokenizer.pad_id not in (None, *tokenizer.end_ids):
        model.config = dataclasses.replace(model.config, pad_token_id=tokenizer.pad_id)
        return
    for role, number in (("unk", tokenizer.unk_id), ("bos", tokenizer.bos_id)):
        if number is not None and number not in tokenizer.end_ids:
            tokenizer.config["pad_token"] = tokenizer.tokens[role]
            model.config = dataclasses.replace(model.config, pad_token_id=number)
            return
