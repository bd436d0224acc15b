"""minift's side of benchmarks/preference_step.py: the recipes' own losses in the training loop, the recipes' own learners in the loop of on_policy.py.

Nothing is rewritten here: `fit` and `Loop.step` are what `minift dpo`, `reward`, `grpo` and `ppo` run, with full weights, their defaults for
micro-batches, and the same optimizer settings as the other side. A step's numbers for the log are made as always."""

from pathlib import Path

import torch

from benchmarks.preference_step_case import BETA, END, GROUPS, KL, PASSES, RATE, SPECIAL, Sizes, preferences, prompts, reward, text
from benchmarks.turns import Gate
from minift.data.branches import Tree, TreeBatch, rows_of
from minift.data.sources import Row
from minift.losses.logprobs import per_answer
from minift.models.folder import read_model
from minift.models.transformer import Transformer
from minift.recipes import dpo, grpo, on_policy, ppo
from minift.recipes import reward as reward_recipe
from minift.rl.model_rewards import ModelReward
from minift.rl.reference import Reference
from minift.train.answers import logprobs_of_answers
from minift.train.loop import fit
from minift.train.precision import autocast

ENDLESS = 10**9


def learn_dpo(gate: Gate, folder: Path, sizes: Sizes, precision: str, once: bool = False) -> None:
    """The reference in every step, as trl does without being asked; once: its log-probabilities computed before training."""
    policy, frozen = trained(folder, "base"), read_model(folder / "base").requires_grad_(False)
    config = dpo.Config(data=("rows",), model="base", beta=BETA, **settings(folder, precision))
    batches, loss = pairs(sizes), dpo.PairLoss(config)

    def with_reference(model, batch: TreeBatch):
        with torch.no_grad():
            batch.values["reference"] = per_answer(logprobs_of_answers(frozen, batch), batch.lengths)
        return loss(model, batch)

    if once:
        with autocast(precision):
            for batch in batches:
                batch.values["reference"] = per_answer(logprobs_of_answers(frozen, batch), batch.lengths)
        del frozen
    train(gate, policy, batches, loss if once else with_reference, loss, config, folder)


def learn_dpo_once(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn_dpo(gate, folder, sizes, precision, once=True)


def learn_reward(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    config = reward_recipe.Config(data=("rows",), model="scorer", **settings(folder, precision))
    loss = reward_recipe.RewardLoss(config.center)
    train(gate, trained(folder, "scorer"), pairs(sizes), loss, loss, config, folder)


def learn_grpo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    groups(gate, folder, sizes, precision, "grpo", kl_coef=0.0, skip_kl=True)


def learn_rloo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    groups(gate, folder, sizes, precision, "rloo", kl_coef=KL)


def groups(gate: Gate, folder: Path, sizes: Sizes, precision: str, task: str, **own) -> None:
    policy = trained(folder, "base")
    config = grpo.settled(grpo.Config(algorithm=task, group=GROUPS[task][1], **on_policy_settings(folder, sizes, precision, task), **own))
    reference = Reference(read_model(folder / "base").requires_grad_(False) if config.kl_coef else None)
    outer(gate, policy, Rule(), reference, grpo.GroupLearner(policy, config), config, sizes, task)


def learn_ppo(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    """Policy, values, reference and reward model: four models."""
    policy = trained(folder, "base")
    config = ppo.Config(value="own", kl_coef=KL, passes=PASSES["ppo"], **on_policy_settings(folder, sizes, precision, "ppo"))
    learner = ppo.Actor(policy, ppo.OwnValue(trained(folder, "value")), config)
    source = ModelReward("scorer", read_model(folder / "scorer").requires_grad_(False), Words())
    outer(gate, policy, source, Reference(read_model(folder / "base").requires_grad_(False)), learner, config, sizes, "ppo")


def trained(folder: Path, name: str) -> Transformer:
    return read_model(folder / name).train()


def settings(folder: Path, precision: str) -> dict:
    return dict(
        out=folder / "run", method="full", lr=RATE, schedule="constant", warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0,
        precision=precision, epochs=ENDLESS, eval_every=ENDLESS,
    )  # fmt: skip


def on_policy_settings(folder: Path, sizes: Sizes, precision: str, task: str) -> dict:
    return dict(data=("rows",), rewards={"rule": 1.0}, prompts=GROUPS[task][0], new_tokens=sizes.drawn, max_steps=ENDLESS, **settings(folder, precision))


def pairs(sizes: Sizes) -> list[TreeBatch]:
    """A batch of trees for each step; a pair is a prompt and its two answers."""
    trees = [Tree(prompt, [chosen, rejected]) for prompt, chosen, rejected in preferences(sizes)]
    return [rows_of(trees[i : i + sizes.pairs], True) for i in range(0, len(trees), sizes.pairs)]


def train(gate: Gate, model: Transformer, batches: list[TreeBatch], loss, kept, config, folder: Path) -> None:
    """minift.train.loop.fit; kept: the recipe's loss, which remembers what it saw."""
    (folder / "run").mkdir(exist_ok=True)
    last = {}

    def each(model, batch):
        total, count = loss(model, batch)
        last["loss"] = total.item() / count
        return total, count

    gate.open()
    fit(model, lambda epoch: batches, each, config, folder / "run", quiet=True, after_step=lambda step, steps: gate.tick(last["loss"]), metrics=kept.taken)


def outer(gate: Gate, policy: Transformer, source, reference: Reference, learner, config, sizes: Sizes, task: str) -> None:
    """Step after step of minift.recipes.on_policy.Loop."""
    train = [on_policy.Ask(Asked(Row("prompt", f"row {i}", prompt=text(ids))), ids, text(ids)) for i, ids in enumerate(prompts(sizes, task))]
    loop = on_policy.Loop(policy, Words(), source, reference, config, config.out)
    torch.manual_seed(0)
    gate.open()
    for step in range(ENDLESS):
        numbers, _ = loop.step(train, learner, step)
        gate.tick(numbers["loss"])


class Rule:
    """The rule that costs nothing."""

    name = "rule"

    def __call__(self, answers) -> list[float]:
        return reward([answer.text for answer in answers])


class Words:
    """A tokenizer for which each word is one token, as the other side's; only what the loop and ModelReward ask for."""

    eos_id, end_ids, chat_template = END, frozenset({END}), None

    def decode(self, ids, **_) -> str:
        return text(list(ids))

    def encode(self, said: str, **_) -> list[int]:
        return [int(word[1:]) if word not in SPECIAL else SPECIAL.index(word) for word in said.split()]

    def encode_segments(self, segments):
        ids = [token for said, _ in segments for token in self.encode(said)]
        return ids, [False] * len(ids)


class Asked:
    """A prompt that has no other fields."""

    fields: dict = {}

    def __init__(self, row: Row):
        self.row = row
