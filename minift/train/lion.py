"""Lion: every number moves by the same amount, in the direction most of its gradients agree on (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    w <- w - lr sign(beta1 m + (1 - beta1) g)         the sign is taken of an average in which this gradient weighs more
    m <- beta2 m + (1 - beta2) g                      ... than in the one that is remembered: beta1 < beta2

One average a weight where AdamW keeps two. A sign has size 1 however small the gradient is, so a step is about 3 to 10 times as long as Adam's
late in training: take a rate 3 to 10 times smaller, and a weight decay as much larger (section 5 of the paper).
Proved in tests/train/test_optimizers.py and tests/parity/test_optimizers.py. Left out: averages in bfloat16 and in 8 bits."""

import torch
from torch import Tensor

from minift.train.per_weight import PerWeight


class Lion(PerWeight):
    def __init__(self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def begin(self, w: Tensor, group: dict) -> dict:
        return {"m": torch.zeros_like(w)}

    def change(self, w: Tensor, g: Tensor, state: dict, group: dict) -> None:
        (beta1, beta2), m = group["betas"], state["m"]
        w.add_(torch.sign(beta1 * m + (1 - beta1) * g), alpha=-group["lr"])
        m.mul_(beta2).add_(g, alpha=1 - beta2)
