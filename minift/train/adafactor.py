"""Adafactor: Adam without the first average, and with the second kept as one row and one column (Shazeer and Stern 2018, arXiv:1804.04235).

    R <- b R + (1 - b) mean over columns of g²        (N,)       b = 1 - t^-0.8: the first step's average is g² itself
    C <- b C + (1 - b) mean over rows of g²           (K,)
    V = R Cᵀ / mean(R)                                (N, K), never stored: the rank-1 matrix with those means (algorithm 4)
    u = g / sqrt(V);   u <- u / max(1, rms(u) / clip);   w <- w - lr u

For an (N, K) weight it remembers N + K numbers where AdamW remembers 2 N K; vectors keep their whole V. Without a first average a step
follows one noisy gradient, which is why its length is clipped.
The rate is the schedule's. Left out are the paper's own rates, relative to the size of the weights (section 8: a LoRA matrix that starts at
zero would hardly leave it) and to the step's number (section 9), and its optional first average: what `transformers` calls
scale_parameter=False, relative_step=False, beta1=None, and its Trainer's choice.
Proved in tests/train/test_optimizers.py and tests/parity/test_optimizers.py."""

import torch
from torch import Tensor

from minift.train.per_weight import PerWeight

TINY = 1e-30
"""Added to g², so that a row that had no gradient is not divided by zero (epsilon 1 of the paper)."""


class Adafactor(PerWeight):
    """decay: b = 1 - t^-decay at step t. clip: the largest root mean square of a weight's step, in units of lr."""

    def __init__(self, params, lr: float = 1e-3, decay: float = 0.8, clip: float = 1.0, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, decay=decay, clip=clip, weight_decay=weight_decay))

    def begin(self, w: Tensor, group: dict) -> dict:
        if w.ndim < 2:
            return {"step": 0, "v": torch.zeros_like(w)}
        return {"step": 0, "row": w.new_zeros(w.shape[:-1]), "column": w.new_zeros(w.shape[:-2] + w.shape[-1:])}

    def change(self, w: Tensor, g: Tensor, state: dict, group: dict) -> None:
        state["step"] += 1
        fresh = state["step"] ** -group["decay"]                              # 1 - b
        squares = g.square() + TINY
        if w.ndim < 2:
            u = g * state["v"].lerp_(squares, fresh).rsqrt()
        else:
            row, column = state["row"].lerp_(squares.mean(-1), fresh), state["column"].lerp_(squares.mean(-2), fresh)
            share = row / row.mean(-1, keepdim=True)                          # (N,): how large each row is beside the mean one
            u = g * share.rsqrt()[..., :, None] * column.rsqrt()[..., None, :]
        rms = u.square().mean().sqrt()
        w.sub_(u * (group["lr"] / (rms / group["clip"]).clamp(min=1.0)))
