"""Losses of reward models: scores that put the better answer first.

    pairs     - log sigmoid(r_c - r_r - margin) + center (r_c + r_r)^2          r_c, r_r: scores of the chosen and the rejected answer
    K answers - mean over the K (K - 1) / 2 pairs i < j of log sigmoid(r_i - r_j)          best first (InstructGPT, eq. 1)

Only differences count, so all scores may drift together: `center` holds a pair's mean near 0 (Eisenstein et al. 2023, arXiv:2312.09244).
The margin says by how much the chosen answer should lead (Touvron et al. 2023, arXiv:2307.09288, section 3.2.2).
K answers of one question are one example, not K (K - 1) / 2 of them: as separate examples each answer would count K - 1 times, and the
model would overfit in one pass (arXiv:2203.02155, section 3.5). Returns (sum over pairs or questions, their number).
Proved in tests/losses/test_reward.py, against trl in tests/parity/test_trl_reward.py."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, center: float = 0.0) -> tuple[Tensor, int]:
    """chosen, rejected (B,), margin (B,) -> (sum over pairs, B)."""
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -F.logsigmoid(lead)
    if center:
        losses = losses + center * (chosen + rejected).square()
    return losses.sum(), losses.numel()


def k_wise(scores: Tensor) -> tuple[Tensor, int]:
    """scores (B, K) of K answers to each of B questions, best first -> (sum over questions, B)."""
    B, K = scores.shape
    if K < 2:
        raise ValueError(f"a ranking of {K} answer has nothing to compare: give at least 2")
    better, worse = torch.triu_indices(K, K, offset=1, device=scores.device)
    return -F.logsigmoid(scores[:, better] - scores[:, worse]).mean(1).sum(), B
