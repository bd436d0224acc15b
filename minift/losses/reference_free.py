"""Losses of preference pairs without a reference: the policy is held by its own log-probabilities.

    simpo   - log sigmoid(beta (log p(c) / |c| - log p(r) / |r|) - gamma)                  per token, a margin ahead
    cpo     - log sigmoid(beta (log p(c) - log p(r))) - w log p(c) / |c|                   with the chosen answer's own loss
    orpo    - w log p(c) / |c| - beta log sigmoid(log odds(c) - log odds(r))               odds = q / (1 - q), q = exp(log p / |answer|)

    c: chosen, r: rejected, |c|: its tokens, w: sft_weight

Log-probabilities are SUMS over an answer's tokens, (B,), with the numbers of tokens (B,). Every function returns (sum of the B losses, B).
The chosen answer's own loss is a mean over its tokens, then over pairs, so that a pair's loss knows no other pair; trl takes one mean
over all tokens of a batch, and for ORPO over the prompt's too (equal where answers are equally long and prompts are not counted).
Proved in tests/losses/test_reference_free.py, against trl in tests/parity/test_trl_preference.py."""

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo(
    policy_chosen: Tensor, policy_rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, beta: float = 2.0, gamma: float = 1.0
) -> tuple[Tensor, int]:
    """Eq. 6 of Meng et al. 2024, arXiv:2405.14734."""
    lead = policy_chosen / chosen_tokens - policy_rejected / rejected_tokens                     # (B,)
    return -F.logsigmoid(beta * lead - gamma).sum(), lead.numel()


def cpo(
    policy_chosen: Tensor, policy_rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, beta: float = 0.1, sft_weight: float = 1.0
) -> tuple[Tensor, int]:
    """Xu et al. 2024, arXiv:2401.08417 (their L_prefer + L_NLL): DPO with a uniform reference, and the chosen answer's own loss. Takes no account of the
    rejected answer's length (`rejected_tokens` is there so that the three are called alike)."""
    losses = -F.logsigmoid(beta * (policy_chosen - policy_rejected)) - sft_weight * policy_chosen / chosen_tokens
    return losses.sum(), losses.numel()


def orpo(
    policy_chosen: Tensor, policy_rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, beta: float = 0.1, sft_weight: float = 1.0
) -> tuple[Tensor, int]:
    """Eqs. 4, 6 and 7 of Hong et al. 2024, arXiv:2403.07691; beta is the paper's lambda."""
    chosen, rejected = policy_chosen / chosen_tokens, policy_rejected / rejected_tokens          # (B,): mean log-probabilities
    log_odds = (chosen - _log_one_minus_exp(chosen)) - (rejected - _log_one_minus_exp(rejected))
    losses = -sft_weight * chosen - beta * F.logsigmoid(log_odds)
    return losses.sum(), losses.numel()


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact near 0 (where e^x rounds to 1) and far from it. At 0 the odds would be infinite: an answer that is certain
    is taken to have q = 1 - 2^-24."""
    x = x.clamp(max=-(2.0**-24))
    near = x > -0.6931472                                                                        # ln 2
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
