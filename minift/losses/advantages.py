"""Advantages: how much better a token, or an answer, was than expected.

    GAE          delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        return_t = A_t + V_t
    GRPO         A_i = (R_i - mean R) / (std R + eps)        over the G answers to one prompt
    RLOO         A_i = R_i - mean of the other G - 1
    REINFORCE    A_i = R_i - a baseline that does not depend on answer i

GAE (Schulman et al. 2015, arXiv:1506.02438, eq. 16) gives one number per token: r_t is what the distance to the reference costs at token
t, and the last token also gets the answer's score (InstructGPT, arXiv:2203.02155, eq. 2). After the last token there is nothing: its V is
0, so is what follows. The others (DeepSeekMath, arXiv:2402.03300; Ahmadian et al. 2024, arXiv:2402.14740; Williams 1992) give one
number per answer, the same for all its tokens, and need no V. Dr. GRPO (arXiv:2503.20783) is GRPO without the division.

GAE and rewards are on rows (A, T), answers padded at the right, with a mask (A, T) that is made from the lengths, never from token ids
(traps 3, 11). Whatever a pad holds, not-a-number included, reaches nothing (trap 15).
Proved in tests/losses/test_advantages.py and tests/parity/test_trl_policy.py, which also shows where trl's PPO differs: it gives an answer
shorter than the longest one step more, on the pad after its end, and puts the score there (trap 12).
Left out: rewards for parts of an answer, spreads over the whole batch (trl's scale_rewards="batch"), discounts between prompts."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def to_rows(flat: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) -> rows (A, T) with zeros after each answer, and which places are real, (A, T) bool; T is the longest answer's length."""
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask


def to_flat(rows: Tensor, lengths: Tensor) -> Tensor:
    """What to_rows laid out: (A, T) -> (n,)."""
    return rows[torch.arange(rows.shape[1], device=lengths.device) < lengths[:, None]]


def token_rewards(
    scores: Tensor, kl: Tensor, lengths: Tensor, *, kl_coef: float, ended: Tensor | None = None, missing_eos_penalty: float | None = None
) -> Tensor:
    """scores (A,), kl (A, T) an estimate for each token (losses/kl.py), lengths (A,) int64 -> r (A, T): -kl_coef kl, plus the score at the LAST
    REAL token, found by length. ended (A,) bool: answers that were not cut off; the others' scores lose missing_eos_penalty."""
    if (ended is None) != (missing_eos_penalty is None):
        raise ValueError("missing_eos_penalty is taken from answers that have not ended: give both, `ended` and the penalty, or neither")
    if (lengths < 1).any():
        raise ValueError("an answer without tokens has no last token to put its score on: leave such answers out")
    if ended is not None:
        scores = torch.where(ended, scores, scores - missing_eos_penalty)
    place = torch.arange(kl.shape[1], device=kl.device)                                    # (T,)
    cost = (-kl_coef * kl).masked_fill(place >= lengths[:, None], 0.0)
    return cost + torch.where(place == lengths[:, None] - 1, scores[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """rewards, values, mask (A, T) -> advantages and returns, (A, T), zero at pads."""
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)      # so V is 0 after the last token
    deltas = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values                       # (A, T)
    later, found = torch.zeros_like(deltas[:, 0]), []
    for delta in reversed(deltas.unbind(1)):
        later = delta + gamma * lam * later                                                # (A,)
        found.append(later)
    advantages = torch.stack(found[::-1], dim=1)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """x, mask (A, T) -> x with mean 0 and variance 1 (over n - 1) over the real tokens, zero at pads. shift_mean False: the mean stays, for
    rewards, whose level matters."""
    real = x[mask]
    mean, variance = real.mean(), real.var(correction=min(1, max(0, len(real) - 1)))
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean).masked_fill(~mask, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var R over the real tokens, a scalar: 1 is perfect, 0 no better than a constant, below that worse. 0 for constant returns."""
    error, spread = (returns - values)[mask].var(correction=0), returns[mask].var(correction=0)
    return torch.where(spread > 0, 1 - error / spread, 0.0)


def group_advantages(rewards: Tensor, *, std: Literal["unbiased", "biased"] | None = "unbiased", eps: float = 1e-4) -> Tensor:
    """GRPO. rewards (P, G), a row for each prompt -> (P, G). std: over G - 1 (trl's choice), over G, or None: not divided (Dr. GRPO)."""
    beyond = _beyond_the_first(rewards, "GRPO")
    centred = beyond - beyond.mean(1, keepdim=True)
    return centred if std is None else centred / (beyond.std(1, correction={"unbiased": 1, "biased": 0}[std], keepdim=True) + eps)


def rloo_advantages(rewards: Tensor) -> Tensor:
    """RLOO. rewards (P, G), a row for each prompt -> (P, G): each against the mean of the others."""
    beyond = _beyond_the_first(rewards, "RLOO")
    others = (beyond.sum(1, keepdim=True) - beyond) / (beyond.shape[1] - 1)
    return beyond - others


def _beyond_the_first(rewards: Tensor, method: str) -> Tensor:
    """Rewards as differences from the group's first, so that equal ones are exactly 0 (trap 16): the mean of three times 0.1 need not be 0.1."""
    if rewards.shape[1] < 2:
        raise ValueError(f"{method} compares answers to the same prompt and was given {rewards.shape[1]} of each: draw a group of 2 or more, or use "
                         "REINFORCE with a baseline")
    return rewards - rewards[:, :1]


def reinforce_advantages(rewards: Tensor, baseline: float | Tensor) -> Tensor:
    """REINFORCE. rewards (A,), a baseline that was known before these answers, such as RunningMean's value -> (A,)."""
    return rewards - baseline


class RunningMean:
    """The mean of all rewards so far, 0 before the first. Ask for the value before the update: an answer must not be its own baseline."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    @property
    def value(self) -> float:
        return self.total / max(1, self.count)

    def update(self, rewards: Tensor) -> None:
        self.total += rewards.sum().item()
        self.count += rewards.numel()
