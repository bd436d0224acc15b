"""The policy's loss, token by token, and how tokens are averaged (PPO: Schulman et al. 2017, arXiv:1707.06347; GRPO and what came after it).

    loss = sum_t w_t L_t        L_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)        r_t = p(token_t) / p_old(token_t)

All are flat, (n,): the tokens of A answers, one answer after another, with `lengths` (A,) tokens each. At r = 1 the gradient of L_t is
-A_t times that of log p_t: the policy gradient. The clip takes it away once a token has moved far enough in the direction its advantage
asks for, and never in the other: that is what the min is for. Clip-higher (DAPO, arXiv:2503.14476) is high = 0.28 with low = 0.2.

What differs between the named losses is w_t:
    "answer"    1 / (A |o_i|)       the mean over an answer's tokens, then over answers: a long answer's tokens count less (GRPO, arXiv:2402.03300, eq. 3)
    "token"     1 / n               every token of the step alike (DAPO, eq. 8; PPO)
    "constant"  1 / (A max_length)  as before, without the lengths the policy itself chooses (Dr. GRPO, arXiv:2503.20783)
    "sum"       1 / A               log p of the whole answer: the plain policy gradient (REINFORCE, RLOO, arXiv:2402.14740)
The weights are made once of ALL the answers of an optimizer step and cut with its tokens, so micro-batches cannot change the gradient
(traps 1, 16). trl's dapo does so too; its grpo, bnpo and dr_grpo average over micro-batches, which for bnpo ("token") gives short ones
too much weight, and is the same for the others if all micro-batches hold equally many answers.

A ratio of whole answers is the same function of fewer numbers: with per_answer(log p) (losses/logprobs.py) it is trl's RLOO, with
per_answer(log p) / lengths it is GSPO (arXiv:2507.18071), both a mean over answers.
The entropy is losses/logprobs.py's entropy_of, the distance to a reference losses/kl.py.
Proved in tests/losses/test_policy.py and tests/parity/test_trl_policy.py. Left out: two-sided clips (trl's delta), CISPO, SAPO, VESPO."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["answer", "token", "constant", "sum"]


def clipped_surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """arXiv:1707.06347, eq. 7, with a minus: all (n,) -> (n,). Gradients go to logprobs alone if `old` has none."""
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def clip_share(logprobs: Tensor, old: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """Share of the tokens whose gradient the clip cuts off, a scalar: outside the range AND on the side where the advantage pushed."""
    ratio = (logprobs - old).exp()
    cut = ((ratio > 1 + clip_high) & (advantages > 0)) | ((ratio < 1 - clip_low) & (advantages < 0))
    return cut.float().mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2) -> Tensor:
    """0.5 max((V - R)^2, (V_clipped - R)^2), V_clipped within `clip` of the value when the answers were drawn: all (n,) -> (n,). A value that has
    moved further towards the return gets no gradient; one that moved away does. clip inf: the plain squared error."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def token_weights(lengths: Tensor, how: Aggregation, *, max_length: int | None = None) -> Tensor:
    """lengths (A,) int64 of all the answers of an optimizer step -> w (n,) float32, see above. max_length: for "constant", a number that does not
    depend on the answers, such as the longest answer allowed. Raises ValueError for another `how`."""
    A, n = len(lengths), max(1, int(lengths.sum()))
    if how == "answer":
        each = 1.0 / (A * lengths)                                                         # (A,)
    elif how == "token":
        each = torch.full((A,), 1.0 / n)
    elif how == "constant":
        if max_length is None:
            raise ValueError("aggregation 'constant' divides by a constant length: give max_length, such as the longest answer allowed")
        each = torch.full((A,), 1.0 / (A * max_length))
    elif how == "sum":
        each = torch.full((A,), 1.0 / A)
    else:
        raise ValueError(f"aggregation {how!r} is not known: wanted 'answer', 'token', 'constant' or 'sum'")
    return each.to(lengths.device).float().repeat_interleave(lengths)
