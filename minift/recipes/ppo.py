"""Proximal policy optimization: a second network learns what reward to expect, token by token, and the policy learns from the surprise.

    reward of token t     -beta (log p(t) - log p_ref(t)), and at the last token also the answer's reward R        (Ziegler et al. 2019)
    A_t                   generalized advantage estimates of these rewards and the values V_t, whitened             (arXiv:1506.02438)
    loss                  - min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) + c max((V - G)^2, (V_clipped - G)^2) / 2  (arXiv:1707.06347)

Four roles: the policy; its reference, which is the policy with the adapter off unless weights are trained; the reward, a model or any
function (rl/rewards.py); the values, a head on the policy's own stream (--value shared) or a model of their own (--value own, which may
start from the reward model). Each step's answers are learned from --passes times.
beta stays, or follows a target distance (--kl-target; Ziegler et al. 2019, section 2.2). An answer that is cut off gets --unfinished.
The third stage of InstructGPT (arXiv:2203.02155). Details of implementations that matter: Huang et al. 2024, arXiv:2403.17031.
Proved in tests/recipes/test_ppo.py. Left out: InstructGPT's mixing in of pre-training text, rewards whitened before they are used."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minift import folder as folders
from minift import peft
from minift.data.branches import TreeBatch, rows_of
from minift.errors import InputError
from minift.evaluate.scoring import load_scorer
from minift.losses.advantages import explained_variance, gae, to_flat, to_rows, token_rewards, whiten
from minift.losses.kl import AdaptiveKL, FixedKL
from minift.losses.logprobs import per_answer
from minift.losses.policy import token_weights, value_loss
from minift.models.scorer import Scorer
from minift.models.transformer import Transformer
from minift.recipes.grpo import Result, minibatches
from minift.recipes.methods import METHODS
from minift.recipes.on_policy import Loop, OnPolicyConfig, optimizers_of
from minift.recipes.on_policy_start import Start, finish, open_folder, refuse_without_effect, same_tokens, start
from minift.recipes.tuning import choose_parameters, loaded_in, with_rate
from minift.rl.rollout import Rollout
from minift.rl.update import Experience, Objective, gradients, take_step
from minift.tokenizer import Tokenizer
from minift.train.answers import loss_of_stream
from minift.train.precision import autocast


@dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
    """Fine-tune a model on rewards, with a second network that learns what reward to expect (PPO)."""

    value: Literal["shared", "own"] = "shared"
    """What expects rewards: a head on the policy's own stream, or a model of its own."""
    value_model: str | None = None
    """own: what it starts from, a reward model's folder or run; none: the policy's own base, with a new head."""
    value_coef: float = 0.1
    """Weight of the values' loss."""
    value_clip: float = 0.2
    """Values may move this far from those at rollout before their loss stops falling."""
    gamma: float = 1.0
    """Discount of later rewards, by token."""
    lam: float = 0.95
    """GAE's lambda: 0 trusts the values, 1 the rewards."""
    kl_coef: float = 0.05
    """beta: what a nat of distance to the reference costs."""
    kl_target: float | None = None
    """Let beta follow this distance, nats per answer, instead of staying."""
    kl_horizon: int = 1000
    """How slowly it follows: answers until a distance that is off by a fifth or more has changed beta by a fifth."""
    passes: int = 4
    """Times each step's answers are learned from."""
    prompts: int = 32
    """Prompts of a step, one answer to each."""


def run(config: Config, quiet: bool = False) -> Result:
    config = with_rate(config)
    refuse_without_effect(config)
    if config.value_model is not None and config.value == "shared":
        raise InputError("--value-model is for --value own; a shared value is a head on the policy: leave it out")
    if config.kl_coef < 0 or (config.kl_target is not None and config.kl_target <= 0):
        raise InputError("--kl-coef wants 0 or more, --kl-target more than 0")
    if config.kl_horizon < 1 or (config.kl_target is None and config.kl_horizon != Config.kl_horizon):
        raise InputError(f"--kl-horizon is {config.kl_horizon}: wanted 1 or more, and only with --kl-target")
    if not (0 <= config.gamma <= 1 and 0 <= config.lam <= 1 and config.value_coef >= 0 and config.value_clip > 0):
        raise InputError("--gamma and --lam want 0 to 1, --value-coef 0 or more, --value-clip more than 0")
    begun = start(config, needs_reference=True)
    learner, folder = Actor(begun.model, value_of(config, begun), config), open_folder(begun, config, "ppo", quiet)
    loop = Loop(begun.model, begun.tokenizer, begun.source, begun.reference, config, folder)
    outcome = loop.run(begun.train, begun.judged, learner, config.max_steps, quiet)
    return Result(outcome, finish(begun, config, outcome, learner.ratios, quiet))


class SharedValue(nn.Module):
    """V_t = w . h_t, read from the policy's stream where token t is predicted; 0 everywhere at first."""

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, stream: Tensor, batch: TreeBatch) -> Tensor:
        """stream (B T, C) -> (n,) float32."""
        with torch.autocast(stream.device.type, enabled=False):
            return self.head(stream.index_select(0, batch.places).float())[:, 0]


class OwnValue(nn.Module):
    """V_t from a scorer's own body."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, stream: Tensor, batch: TreeBatch) -> Tensor:
        return self.scorer.at(batch.places, batch.token_ids, segments=batch.segments, branches=batch.branches)[:, 0]


def value_of(config: Config, begun: Start) -> SharedValue | OwnValue:
    device = begun.model.norm.weight.device
    if config.value == "shared":
        torch.manual_seed(config.seed)
        return SharedValue(begun.model.config.hidden_size).to(device)
    scorer, tokenizer = value_body(config, device)
    same_tokens(begun.tokenizer, tokenizer, f"the value model {config.value_model}")
    choose_parameters(scorer, config, tokenizer)
    scorer.checkpointing = config.checkpointing
    return OwnValue(scorer)


def value_body(config: Config, device: torch.device) -> tuple[Scorer, Tokenizer]:
    """What an own value model starts from: the policy's checkpoint with a new head, or a reward model: a run's, a folder, an adapter's, which is
    merged, as the values get an adapter of their own."""
    dtype = getattr(torch, config.dtype)
    if config.value_model is None or (Path(config.value_model) / "model.safetensors").exists():
        return folders.decoder(config.value_model or config.model, dtype, device, loaded_in(config), scores=1)
    scorer, tokenizer = load_scorer(config.value_model, dtype, device, None if METHODS[config.method].whole else loaded_in(config))
    for name in list(peft.names(scorer)):
        peft.merge(scorer)
        peft.remove(scorer, name)
    return scorer.requires_grad_(True), tokenizer


class Actor:
    """PPO: what the loop calls with each rollout."""

    group = 1

    def __init__(self, model: Transformer, value: SharedValue | OwnValue, config: Config):
        self.model, self.value, self.config = model, value, config
        self.modules = nn.ModuleDict({"policy": model, "value": value})
        self.optimizers = optimizers_of(self.modules, config)
        self.kl = FixedKL(config.kl_coef) if config.kl_target is None else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        self.ratios: Tensor | None = None

    def learn(self, rollout: Rollout, scores: Tensor, reference: Tensor, step: int) -> dict[str, float]:
        config, lengths = self.config, rollout.lengths
        self.modules.eval()                                                             # dropout would be another policy (trap 13)
        old, old_values = self.look(rollout)                                            # (n,), (n,)
        distance = per_answer(old - reference, lengths).mean().item()
        (kl, mask), (values, _) = to_rows(old - reference, lengths), to_rows(old_values, lengths)       # (A, T)
        rewards = token_rewards(scores, kl, lengths, kl_coef=self.kl.value)
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        spread = explained_variance(values, returns, mask).item()
        experience = Experience(
            rollout.trees, to_flat(whiten(advantages, mask), lengths), torch.empty(len(old)), old, None, rollout.support, old_values,
            to_flat(returns, lengths),
        )  # fmt: skip
        found = self.update(experience, step)
        self.kl.update(distance, len(lengths))
        return found | {"kl": distance, "kl_coef": self.kl.value, "explained_variance": spread, "value": old_values.mean().item()}

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """--passes over the experience, an optimizer step for each of --minibatches."""
        config = self.config
        objective = Objective(config.clip_low, config.clip_high, entropy_coef=config.entropy_coef, temperature=config.temperature)
        first = None
        for number, chosen in enumerate(minibatches(len(experience.trees), config.passes, config.minibatches, config.seed * 1_000_003 + step)):
            part = experience if config.minibatches == 1 else experience.of_trees(chosen)
            part = replace(part, weights=token_weights(part.lengths, "token"), old=part.old if number else None)
            seen = gradients(self.model, part, objective, config.batch_tokens, config.precision, self.critic, entropy=number == 0)
            norm = take_step(self.optimizers, config.clip)
            first = first or seen
        self.ratios = seen.ratio
        found = {"loss": first.loss, "grad_norm": norm, "entropy": first.entropy.mean().item(), "clipped": seen.clipped}
        return found | {"ratio_max": seen.ratio.max().item(), "ratio_min": seen.ratio.min().item()}

    def critic(self, stream: Tensor, batch: TreeBatch, part: Experience) -> Tensor:
        each = value_loss(self.value(stream, batch), part.old_values, part.returns, clip=self.config.value_clip)
        return self.config.value_coef * (part.weights * each).sum()

    @torch.no_grad()
    def look(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """log p and V of a rollout's tokens, (n,) each, on the CPU."""
        config, device, found = self.config, self.model.norm.weight.device, []
        nothing = torch.zeros(int(rollout.lengths.sum()))
        zero = lambda logprobs, entropy, part: logprobs.new_zeros(())
        for part in Experience(rollout.trees, nothing, nothing, support=rollout.support).micro_batches(config.batch_tokens):
            batch = rows_of(part.trees, self.model.can_branch()).to(device)
            support = None if part.support is None else part.support.to(device)
            with autocast(config.precision, device.type):
                stream = self.model.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches).flatten(0, 1)
                scored = loss_of_stream(self.model.head, stream, batch, batch.lengths, zero, config.temperature, support)
                found.append((scored.logprobs.cpu(), self.value(stream, batch).float().cpu()))
        logprobs, values = (torch.cat(parts) for parts in zip(*found))
        return logprobs, values

    def state(self) -> dict[str, Any]:
        return {"kl": self.kl.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.kl.value = state["kl"]
