"""Learning from rewards by comparing answers: GRPO, RLOO and REINFORCE. No value model: other answers to the same prompt say what to expect.

    G answers to each prompt, rewards R_1 ... R_G
    grpo        A_i = (R_i - mean R) / std R                        Shao et al. 2024, arXiv:2402.03300, eq. 3 and section 4.1.2
    rloo        A_i = R_i - mean of the others' R                   Ahmadian et al. 2024, arXiv:2402.14740, section 2
    reinforce   A_i = R_i - running mean of all rewards so far      Williams 1992

and every token of answer i is made likelier in proportion to A_i, as long as the ratio to the policy that drew it is not clipped away
(rl/update.py). What is called by other names is a setting:
    Dr. GRPO    --std none --aggregation constant          no division by the spread or by the answer's length (arXiv:2503.20783)
    DAPO        --aggregation token --clip-high 0.28       every token counts the same; likelier tokens may grow more (arXiv:2503.14476)
(clips meet ratios other than 1 from the second step on the same answers: --passes or --minibatches above 1).
The distance to the reference is a term of the loss (--kl-in loss, estimator k3, as GRPO) or is taken off the reward (as RLOO).
A prompt whose answers all have one reward teaches nothing: if that is so for all, there is no step, not even towards the reference, and it
is counted (idle).
All answers of a prompt are one row that holds the prompt once (data/branches.py). Dropout is off: it would make another policy.
Proved in tests/recipes/test_grpo.py and test_on_policy.py, against trl in tests/parity/test_trl_grpo.py. Left out: DAPO's resampling until rewards differ, rewards per step."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minift.errors import InputError
from minift.losses.advantages import RunningMean, group_advantages, reinforce_advantages, rloo_advantages
from minift.losses.logprobs import per_answer
from minift.losses.policy import token_weights
from minift.models.transformer import Transformer
from minift.recipes.on_policy import Loop, OnPolicyConfig, Outcome, optimizers_of
from minift.recipes.on_policy_start import finish, open_folder, refuse_without_effect, start
from minift.recipes.tuning import with_rate
from minift.rl.reference import logprobs_of
from minift.rl.rollout import Rollout
from minift.rl.update import Experience, Objective, gradients, take_step


@dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
    """Fine-tune a model on rewards of its own answers, compared with each other."""

    algorithm: Literal["grpo", "rloo", "reinforce"] = "grpo"
    """What an answer's reward is compared with: the group's mean, in units of its spread; the others' mean; a running mean."""
    group: int = 8
    """Answers to each prompt (1 is enough for reinforce alone)."""
    std: Literal["unbiased", "biased", "none"] = "unbiased"
    """grpo: the spread that advantages are divided by, over G - 1 or G; none: not divided (Dr. GRPO)."""
    aggregation: Literal["answer", "token", "constant", "sum"] | None = None
    """How tokens are averaged: within each answer first (grpo's own), over all tokens (DAPO), by --new-tokens (Dr. GRPO), or summed over an
    answer (rloo's and reinforce's own)."""
    kl_coef: float | None = None
    """Weight of the distance to the reference; none: 0.04 for grpo, 0.05 for the others. 0: no reference is needed."""
    kl_in: Literal["loss", "reward"] | None = None
    """Where that distance goes; none: into the loss for grpo, off the reward for the others."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated where it is a term of the loss; off the reward it is always k1."""
    skip_kl: bool = False
    """With --kl-coef 0: do not even measure the distance, and save a pass of the reference in every step."""


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    written: Path
    """The adapter or the model folder."""

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    config = settled(with_rate(config))
    refuse_without_effect(config)
    begun = start(config, needs_reference=config.kl_coef > 0 or not config.skip_kl)
    learner, folder = GroupLearner(begun.model, config), open_folder(begun, config, "grpo", quiet)
    loop = Loop(begun.model, begun.tokenizer, begun.source, begun.reference, config, folder)
    outcome = loop.run(begun.train, begun.judged, learner, config.max_steps, quiet)
    if learner.idle and not quiet:
        print(f"{learner.idle} of {outcome.steps} rounds taught nothing: all answers to each of their prompts had one reward. A larger --group or "
              "--temperature, or a reward that tells answers apart, would help")
    return Result(outcome, finish(begun, config, outcome, learner.ratios, quiet))


def settled(config: Config) -> Config:
    """With the algorithm's own choices where none was made; refuses what cannot be."""
    own = config.algorithm == "grpo"
    if config.group < 2 and config.algorithm != "reinforce":
        raise InputError(f"--group {config.group}: {config.algorithm} compares answers to one prompt, so it needs at least 2; or take --algorithm reinforce")
    if config.group < 1:
        raise InputError(f"--group {config.group}: wanted 1 or more")
    if config.std != Config.std and not own:
        raise InputError(f"--std is an option of grpo, not of {config.algorithm}: leave it out")
    config = replace(
        config, aggregation=config.aggregation or ("answer" if own else "sum"), kl_in=config.kl_in or ("loss" if own else "reward"),
        kl_coef=(0.04 if own else 0.05) if config.kl_coef is None else config.kl_coef,
    )  # fmt: skip
    if config.kl_coef < 0:
        raise InputError(f"--kl-coef is {config.kl_coef}: wanted 0 or more")
    if config.skip_kl and (config.kl_coef or config.kl_limit is not None):
        raise InputError("--skip-kl is for runs in which nothing depends on the distance: leave it out, or --kl-limit, and pass --kl-coef 0")
    if config.kl_estimator != Config.kl_estimator and config.kl_in == "reward":
        raise InputError("--kl-estimator is for a distance in the loss (--kl-in loss); off the reward it is k1: leave it out")
    return config


class GroupLearner:
    """GRPO, RLOO and REINFORCE: what the loop calls with each rollout."""

    def __init__(self, model: Transformer, config: Config):
        self.model, self.modules, self.config, self.group = model, model, config, config.group
        self.optimizers = optimizers_of(model, config)
        self.baseline = RunningMean()
        self.idle = 0
        self.ratios: Tensor | None = None

    def learn(self, rollout: Rollout, scores: Tensor, reference: Tensor | None, step: int) -> dict[str, float]:
        config, lengths = self.config, rollout.lengths
        self.model.eval()                                                               # dropout would be another policy (trap 13)
        rewards, old = scores, None
        if config.minibatches > 1 or (reference is not None and config.kl_in == "reward"):
            old = logprobs_of(self.model, rollout, config.temperature, config.batch_tokens, config.precision)
        if reference is not None and config.kl_in == "reward" and config.kl_coef:
            scores = scores - config.kl_coef * per_answer(old - reference, lengths)     # k1 of each answer
        advantages = self.advantages(scores)                                            # (A,)
        found: dict[str, float] = {}
        if self.teaches(rewards, advantages):
            in_loss = reference if config.kl_in == "loss" else None
            experience = Experience(
                rollout.trees, advantages.repeat_interleave(lengths), torch.empty(int(lengths.sum())), old, in_loss, rollout.support
            )
            found = self.update(experience, step)
        else:
            self.idle += 1
            found = {"loss": 0.0, "grad_norm": 0.0}
            if reference is not None and old is None:
                old = logprobs_of(self.model, rollout, config.temperature, config.batch_tokens, config.precision)
        if config.algorithm == "reinforce":
            self.baseline.update(scores.double())                                       # from the next step on
        policy = found.pop("logprobs", old)
        if reference is not None:
            found["kl"] = per_answer(policy - reference, lengths).mean().item()
        return found | {"idle": self.idle, "advantage_std": advantages.std(correction=0).item()}

    def advantages(self, scores: Tensor) -> Tensor:
        """(A,) rewards, prompt by prompt -> (A,)."""
        config = self.config
        if config.algorithm == "reinforce":
            baseline = self.baseline.value if self.baseline.count else scores.double().mean().item()    # the first step has only itself
            return reinforce_advantages(scores, baseline)
        groups = scores.view(-1, config.group)                                          # (P, G)
        if config.algorithm == "rloo":
            return rloo_advantages(groups).flatten()
        return group_advantages(groups, std=None if config.std == "none" else config.std).flatten()

    def teaches(self, rewards: Tensor, advantages: Tensor) -> bool:
        """Is there anything to learn? Of rewards that are the same within each prompt, what a distance takes off them is all that differs."""
        if self.config.algorithm == "reinforce":
            return bool(advantages.any())
        groups = rewards.view(-1, self.group)
        return bool((groups != groups[:, :1]).any())

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """--passes over the experience, an optimizer step for each of --minibatches."""
        config = self.config
        objective = Objective(
            config.clip_low, config.clip_high, config.kl_coef if config.kl_in == "loss" else 0.0, config.kl_estimator, config.entropy_coef,
            config.temperature,
        )  # fmt: skip
        first = None
        for number, chosen in enumerate(minibatches(len(experience.trees), config.passes, config.minibatches, config.seed * 1_000_003 + step)):
            part = experience if config.minibatches == 1 else experience.of_trees(chosen)
            part = replace(part, weights=token_weights(part.lengths, config.aggregation, max_length=config.new_tokens), old=part.old if number else None)
            seen = gradients(self.model, part, objective, config.batch_tokens, config.precision, entropy=number == 0)
            norm = take_step(self.optimizers, config.clip)
            if number == 0:
                first = seen
                experience = experience if experience.old is not None else replace(experience, old=seen.logprobs)
        self.ratios = seen.ratio
        found = {"loss": first.loss, "grad_norm": norm, "entropy": first.entropy.mean().item(), "clipped": seen.clipped}
        found |= {"ratio_max": seen.ratio.max().item(), "ratio_min": seen.ratio.min().item()}
        return found | ({"logprobs": first.logprobs} if config.minibatches == 1 else {})

    def state(self) -> dict[str, Any]:
        return {"baseline": [self.baseline.total, self.baseline.count], "idle": self.idle}

    def restore(self, state: dict[str, Any]) -> None:
        self.baseline.total, self.baseline.count = state["baseline"]
        self.idle = state["idle"]


def minibatches(trees: int, passes: int, parts: int, seed: int) -> list[Sequence[int]]:
    """Which trees each optimizer step learns from: --passes times all of them, cut into `parts`, each pass in another order."""
    found = []
    for number in range(passes):
        order = list(range(trees)) if parts == 1 else random.Random(seed + number).sample(range(trees), trees)
        bounds = [round(i * trees / parts) for i in range(parts + 1)]
        found += [order[a:b] for a, b in zip(bounds, bounds[1:])]
    return found
