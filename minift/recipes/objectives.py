"""The preference losses by name, on the answers of a batch: which log-probabilities each one takes (losses/preference.py has the formulas).

A batch holds pairs, their answers one after another: chosen, rejected, chosen, rejected ... For KTO, which has no pairs, a row's second
answer is another row's: what the KL term is estimated on. Each micro-batch has a KL term of its own, so for KTO, and for it alone, the
step depends on how it is split (--batch-tokens, --accumulate). Proved in tests/recipes/test_dpo.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minift.errors import InputError
from minift.losses import kto as kto_losses
from minift.losses import preference, reference_free


class Answers(NamedTuple):
    """What a model and its reference say of A answers."""

    policy: Tensor
    """(A,): log-probabilities, summed over each answer's tokens."""
    reference: Tensor
    """(A,): the same under the reference; empty for a loss that has none."""
    tokens: Tensor
    """(A,): tokens of each answer."""
    desirable: Tensor
    """(A / 2,) bool, of KTO's rows; else empty."""

    def paired(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(policy chosen, policy rejected, reference chosen, reference rejected)."""
        return self.policy[0::2], self.policy[1::2], self.reference[0::2], self.reference[1::2]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which preference loss, and its numbers."""

    loss: Literal["dpo", "cdpo", "robust", "ipo", "hinge", "apo-zero", "apo-down", "kto", "orpo", "simpo", "cpo"] = "dpo"
    """What is made of the log-probabilities; docs/preference_losses.md compares them."""
    beta: float | None = None
    """How far the answers' log-probabilities may move from the reference's, the smaller the farther; none: the loss's own (0.1; simpo 2.0)."""
    label_smoothing: float = 0.0
    """cdpo, robust: the share of pairs whose label is taken to be wrong."""
    gamma: float | None = None
    """simpo: the margin by which the chosen answer's mean log-probability times beta should lead; none: 1.0."""
    sft_weight: float | None = None
    """orpo, cpo: weight of the chosen answer's own loss (negative log-likelihood) beside the preference; none: 1.0."""
    desirable_weight: float = 1.0
    """kto: weight of desirable rows."""
    undesirable_weight: float = 1.0
    """kto: weight of undesirable rows."""


BETAS = {"simpo": 2.0}
OWN = {
    "label_smoothing": ("cdpo", "robust"), "gamma": ("simpo",), "sft_weight": ("orpo", "cpo"),
    "desirable_weight": ("kto",), "undesirable_weight": ("kto",),
}  # fmt: skip
"""Options that only some losses have; given to another, they would be without effect (trap 22)."""

REFERENCE_FREE = ("orpo", "simpo", "cpo")


def check(config: ObjectiveConfig) -> None:
    """Refuse options that the loss does not use, and numbers that no loss could mean."""
    for name, losses in OWN.items():
        if config.loss not in losses and getattr(config, name) != getattr(ObjectiveConfig, name):
            raise InputError(f"--{name.replace('_', '-')} is an option of --loss {', '.join(losses)}, not of {config.loss}: leave it out")
    if config.loss in ("cdpo", "robust") and not 0 < config.label_smoothing < 0.5:
        raise InputError(f"--label-smoothing is {config.label_smoothing}: --loss {config.loss} wants more than 0 and less than 0.5 (none of it is plain dpo)")
    for name in ("beta", "desirable_weight", "undesirable_weight", "sft_weight", "gamma"):
        value, may_be_0 = getattr(config, name), name in ("sft_weight", "gamma")
        if value is not None and not (0 < value < math.inf or may_be_0 and value == 0):
            raise InputError(f"--{name.replace('_', '-')} is {value}: wanted {'0 or more' if may_be_0 else 'more than 0'}")


def beta_of(config: ObjectiveConfig) -> float:
    return BETAS.get(config.loss, 0.1) if config.beta is None else config.beta


def objective(config: ObjectiveConfig) -> Callable[[Answers], Tensor]:
    """Answers -> the sum of the pairs' (KTO: rows') losses."""
    beta, smoothing = beta_of(config), config.label_smoothing
    paired = {"dpo": preference.dpo, "hinge": preference.hinge, "apo-zero": preference.apo_zero, "apo-down": preference.apo_down}
    if config.loss in paired:
        return lambda a: paired[config.loss](*a.paired(), beta=beta)[0]
    if config.loss in ("cdpo", "robust"):
        smoothed = {"cdpo": preference.cdpo, "robust": preference.robust}[config.loss]
        return lambda a: smoothed(*a.paired(), beta=beta, label_smoothing=smoothing)[0]
    if config.loss == "ipo":
        return lambda a: preference.ipo(*a.paired(), a.tokens[0::2], a.tokens[1::2], beta=beta)[0]
    if config.loss == "kto":
        return lambda a: kto(a, config, beta)
    weight = 1.0 if config.sft_weight is None else config.sft_weight
    chosen_rejected = lambda a: (a.policy[0::2], a.policy[1::2], a.tokens[0::2], a.tokens[1::2])
    if config.loss == "simpo":
        return lambda a: reference_free.simpo(*chosen_rejected(a), beta=beta, gamma=1.0 if config.gamma is None else config.gamma)[0]
    return lambda a: {"orpo": reference_free.orpo, "cpo": reference_free.cpo}[config.loss](*chosen_rejected(a), beta=beta, sft_weight=weight)[0]


def kto(a: Answers, config: ObjectiveConfig, beta: float) -> Tensor:
    """KTO's own answers are the even ones; the odd ones are other rows' answers, for the KL term alone."""
    kl = kto_losses.kto_kl(a.policy[1::2], a.reference[1::2])
    weights = dict(desirable_weight=config.desirable_weight, undesirable_weight=config.undesirable_weight)
    return kto_losses.kto(a.policy[0::2], a.reference[0::2], a.desirable, kl, beta=beta, **weights)[0]


def rewards(a: Answers, config: ObjectiveConfig) -> Tensor:
    """(A,): beta (policy - reference), the reward that DPO's model implies (eq. 5 of arXiv:2305.18290); without a reference, beta policy, per
    token for simpo."""
    policy = a.policy / a.tokens if config.loss == "simpo" else a.policy
    return beta_of(config) * (policy - (0.0 if config.loss in REFERENCE_FREE else a.reference)).detach()
