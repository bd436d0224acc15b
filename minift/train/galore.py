"""GaLore: Adam's averages of the gradient's leading directions only (Zhao et al. 2024, arXiv:2403.03507, algorithm 2).

    every T steps:  P = the first r left singular vectors of g          g: (N, K), N <= K      P: (N, r)
    R = Pᵀ g                                                            (r, K): Adam's two averages are of R
    w <- w - lr scale P adam(R)                                         all of w moves, r directions at a time

All weights train, in full rank over time, but for an (N, K) weight N r + 2 r K numbers are remembered where AdamW remembers 2 N K. A matrix
with N > K is projected from the right: transposed, it is the same. The averages are kept when P changes, as the authors' code does, though they
were taken along the old directions.
`scale` makes up for nothing: it is a second rate for the projected matrices (0.25, with a rate of 0.01, in the paper).
Not projected are vectors and matrices whose smaller side is at most r: P would be a rotation, Adam in a rotated basis is another optimizer, and
it would remember more than Adam does. They get plain AdamW, without the scale.
Proved in tests/train/test_optimizers.py. Left out: 8-bit averages, updating each layer in the backward pass, Q-GaLore's P in 4 bits."""

import torch
from torch import Tensor

from minift.train.per_weight import PerWeight


def projected(w: Tensor, rank: int) -> bool:
    """Whether a weight of this shape is stepped in `rank` directions."""
    return w.ndim == 2 and min(w.shape) > rank


class GaLore(PerWeight):
    """rank: r. every: T, steps between two singular value decompositions. scale: of the step of projected matrices."""

    def __init__(
        self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        rank: int = 128, every: int = 200, scale: float = 0.25,
    ):  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rank=rank, every=every, scale=scale))

    def begin(self, w: Tensor, group: dict) -> dict:
        if not projected(w, group["rank"]):
            return {"step": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)}
        smaller, larger = sorted(w.shape)
        averages = {name: w.new_zeros(group["rank"], larger) for name in ("m", "v")}
        return {"step": 0, "P": w.new_zeros(smaller, group["rank"]), **averages}

    def change(self, w: Tensor, g: Tensor, state: dict, group: dict) -> None:
        state["step"] += 1
        if not projected(w, group["rank"]):
            w.add_(adam(g, state, group), alpha=-group["lr"])
            return
        if g.shape[0] > g.shape[1]:
            w, g = w.T, g.T                                                   # (N, K) with N <= K; a view, so w itself changes
        if (state["step"] - 1) % group["every"] == 0:
            state["P"] = torch.linalg.svd(g, full_matrices=False).U[:, : group["rank"]].contiguous()
        P = state["P"]
        w.addmm_(P, adam(P.T @ g, state, group), alpha=-group["lr"] * group["scale"])


def adam(g: Tensor, state: dict, group: dict) -> Tensor:
    """Take g into the averages m and v of a state, whose step is counted already; Adam's step for a rate of 1, of g's shape."""
    (beta1, beta2), step = group["betas"], state["step"]
    state["m"].lerp_(g, 1 - beta1)
    state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
    return state["m"] / (1 - beta1**step) / ((state["v"] / (1 - beta2**step)).sqrt() + group["eps"])
