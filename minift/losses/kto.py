"""KTO: answers that are simply good or bad, without a partner (Ethayarajh et al. 2024, arXiv:2402.01306).

    g = log p(answer) - log p_ref(answer)          z = max(0, mean over mismatched answers of log p - log p_ref)          (detached)
    loss = w_d (1 - sigmoid(beta (g - z)))  of a desirable answer,      w_u (1 - sigmoid(beta (z - g)))  of an undesirable one

z estimates how far the policy has moved in general: an answer counts as better only if it moved further. It is measured on prompts with
other prompts' answers, `mismatched`, which must never be their own: reversing a batch leaves the middle of an odd one in place (trap 21).
Log-probabilities are SUMS over an answer's tokens. Returns (sum of the losses, their number).
Proved in tests/losses/test_kto.py, against trl in tests/parity/test_trl_preference.py."""

import torch
from torch import Tensor


def kto(
    policy: Tensor, ref: Tensor, desirable: Tensor, kl: Tensor, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> tuple[Tensor, int]:
    """policy, ref (B,), desirable (B,) bool, kl: the scalar z. The paper's L_KTO, without the constant lambda_y that it adds."""
    gain = policy - ref                                                                          # (B,)
    better = torch.where(desirable, gain - kl, kl - gain)
    losses = 1 - torch.sigmoid(beta * better)
    return torch.where(desirable, desirable_weight * losses, undesirable_weight * losses).sum(), gain.numel()


def kto_kl(policy_mismatched: Tensor, ref_mismatched: Tensor) -> Tensor:
    """(B,) of mismatched answers -> z: a number, at least 0, that nothing learns from."""
    return (policy_mismatched - ref_mismatched).mean().clamp(min=0).detach()


def mismatched(n: int) -> list[int]:
    """For each of n prompts another prompt's answer: the next one's. Raises ValueError for n = 1, where there is no other."""
    if n < 2:
        raise ValueError(f"KTO's KL term needs answers of other prompts, and there is {n} row: give at least 2")
    return [*range(1, n), 0]
