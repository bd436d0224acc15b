"""Losses of preference pairs against a reference: DPO and what came of it.

    g_c = log p(chosen) - log p_ref(chosen)      g_r = log p(rejected) - log p_ref(rejected)      m = beta (g_c - g_r)

    dpo       - log sigmoid(m)
    cdpo      - (1 - e) log sigmoid(m) - e log sigmoid(-m)                   a share e of the labels is wrong: m has an optimum
    robust    (- (1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e)     the same, unbiased: DPO's loss on clean labels, on average
    ipo       (g_c / |chosen| - g_r / |rejected| - 1 / (2 beta))^2           a margin to reach, not to pass
    hinge     max(0, 1 - m)                                                  nothing to learn from pairs that are apart
    apo_zero  1 - sigmoid(beta g_c) + sigmoid(beta g_r)                      chosen up, rejected down, each by itself
    apo_down  sigmoid(beta g_c) + 1 - sigmoid(m)                             both down, rejected more

Log-probabilities are SUMS over an answer's tokens, (B,) each; a mean is another method, and only IPO takes it (trap 20). Every function
returns (sum of the B losses, B). beta g is the reward that the policy itself implies (DPO, eq. 5): beta small lets it move far.
Losses without a reference are in reference_free.py, KTO's single answers in kto.py. A table of all of them: docs/preference_losses.md.
Proved in tests/losses/test_preference.py, against trl in tests/parity/test_trl_preference.py. Left out: EXO, NCA, SPPO, AOT, BCO."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> tuple[Tensor, int]:
    """Eq. 7 of Rafailov et al. 2023, arXiv:2305.18290. ln 2 a pair where the policy is the reference (trap 18)."""
    gain = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)                       # (B,)
    return -F.logsigmoid(beta * gain).sum(), gain.numel()


def cdpo(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float
) -> tuple[Tensor, int]:
    """Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"): least at m = log((1 - e) / e)."""
    _share(label_smoothing)
    m = beta * ((policy_chosen - policy_rejected) - (ref_chosen - ref_rejected))
    return -((1 - label_smoothing) * F.logsigmoid(m) + label_smoothing * F.logsigmoid(-m)).sum(), m.numel()


def robust(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1, label_smoothing: float
) -> tuple[Tensor, int]:
    """Chowdhury et al. 2024, arXiv:2403.00409: its mean over labels flipped with probability e is DPO's loss on true ones."""
    _share(label_smoothing)
    m = beta * ((policy_chosen - policy_rejected) - (ref_chosen - ref_rejected))
    losses = ((1 - label_smoothing) * F.logsigmoid(m) - label_smoothing * F.logsigmoid(-m)) / (1 - 2 * label_smoothing)
    return -losses.sum(), m.numel()


def ipo(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor,
    *, beta: float = 0.1,
) -> tuple[Tensor, int]:
    """Eq. 17 of Azar et al. 2023, arXiv:2310.12036, on means over the answers' tokens (counts: (B,)), as its authors run it: on sums the target
    1 / (2 beta) would mean less the longer the answers are."""
    gap = (policy_chosen - ref_chosen) / chosen_tokens - (policy_rejected - ref_rejected) / rejected_tokens
    return (gap - 1 / (2 * beta)).square().sum(), gap.numel()


def hinge(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> tuple[Tensor, int]:
    """Zhao et al. 2023 (SLiC-HF, arXiv:2305.10425), with the reference's log-probabilities taken off as in DPO."""
    gain = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)
    return torch.relu(1 - beta * gain).sum(), gain.numel()


def apo_zero(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> tuple[Tensor, int]:
    """Eq. 7 of D'Oosterlinck et al. 2024, arXiv:2408.06266: for chosen answers better than the model's own."""
    up, down = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return (1 - torch.sigmoid(up) + torch.sigmoid(down)).sum(), up.numel()


def apo_down(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> tuple[Tensor, int]:
    """Eq. 8 of the same paper: for chosen answers worse than the model's own."""
    chosen, rejected = beta * (policy_chosen - ref_chosen), beta * (policy_rejected - ref_rejected)
    return (torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)).sum(), chosen.numel()


def _share(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}: the share of wrong labels must be at least 0 and below 0.5, or labels would say nothing")
