"""The distance of a policy p from its reference q: three estimates from samples, the exact value, and what sets its price.

    KL(p || q) = sum_x p(x) log(p(x) / q(x))        of x drawn from p:        k1 = log p - log q        k2 = k1^2 / 2        k3 = q/p - 1 - log(q/p)

    value       k1 unbiased, but signed: a mean below zero is noise, or a sign that x was not drawn from p (trap 13). k3 unbiased and
                never negative. k2 never negative, off by third order of log p/q.
    gradient    as a term of a loss, with samples held fixed: k1 has none on average (E[grad log p] = 0); k2 has KL's own (E[k1 grad log p]);
                k3 has that of KL(q || p), the other direction, equal near p = q only. r k3 has KL's own, r = p / p_old with its gradient.
So k1 belongs into the reward, where the policy gradient makes KL's gradient of it (PPO, RLOO). In the loss GRPO has k3 (arXiv:2402.03300,
eq. 4), DeepSeek-V3.2 and trl's GRPO by default r k3 (arXiv:2512.02556); k2 is as good as that as long as p_old = p.
(Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html.)

p and q are of the distributions that were drawn from: same temperature, same support. Log-probabilities are flat, (n,), or any one shape.
Proved in tests/losses/test_kl.py by enumerating a vocabulary."""

from typing import Literal

import torch
from torch import Tensor

KL = Literal["k1", "k2", "k3"]


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log p - log q of each token that was drawn."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Half the square of k1."""
    return 0.5 * (logprobs - reference) ** 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """q/p - 1 - log(q/p), at least 0 since log x <= x - 1."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


def reweighted_k3(logprobs: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """r k3 of tokens drawn from p_old: of KL(p || q) it has on average both the value and the gradient, wherever p has gone since."""
    return (logprobs - old).exp() * k3(logprobs, reference)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """(n, V), (n, V) -> KL(p || q) of each row, (n,) nats. A token that p cannot draw (logit -inf) adds nothing."""
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == float("-inf"), 0.0)).sum(-1)


class FixedKL:
    """A price that stays."""

    def __init__(self, value: float):
        self.value = value

    def update(self, kl: float, n: int) -> None:
        """Nothing changes."""


class AdaptiveKL:
    """A price that goes up while the distance is above `target` and down while it is below (Ziegler et al. 2019, arXiv:1909.08593, section 2.2):

        value <- value (1 + e n / horizon)        e = kl / target - 1, within [-0.2, 0.2]

    kl: the mean distance of n answers, in the target's unit (nats per answer). The paper's K_beta = 0.1 is n / horizon. All its state is `value`."""

    def __init__(self, value: float, target: float, horizon: int):
        if target <= 0 or horizon <= 0:
            raise ValueError(f"target {target} and horizon {horizon}: wanted both above 0; to keep the price as it is, use FixedKL")
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, n: int) -> None:
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.value *= 1 + error * n / self.horizon
