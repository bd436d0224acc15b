"""A head on frozen features: x (C,), a text's vector, -> scores (K,). Each trains in seconds, since the model does not run again.

    linear   s = W x + b, the minimum of  mean loss + l2/2 |W|^2                      (multinomial) logistic or ridge regression, by L-BFGS
    mlp      s = W2 relu(W1 x + b1) + b2, by AdamW in batches, stopped when held-out rows stop to gain
    knn      of the k training texts with the largest cosines: s_k = log of their share that has label k, or the mean of their numbers

Before linear and mlp every feature is shifted and scaled to mean 0 and variance 1 over the training rows, so one l2 and one learning rate fit any
model. l2 is given, or chosen on a fifth of the training rows (chosen_l2). The linear problem is convex: its answer does not depend on a seed, nor on the order of the rows. At the minimum it equals
scikit-learn's; float32's L-BFGS comes to within 1e-3 of it.
Proved in tests/classify/test_heads.py and tests/parity/test_classifiers.py. Left out: SVMs, trees, a head for each layer."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError

CHOICES, FEW = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001), 0.1
Kind = Literal["linear", "mlp", "knn"]
Loss = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""(scores (N, K), answers) -> (sum, N), as losses/classification.py has them."""


class Standardized(nn.Module):
    """(x - mean) / deviation, of the training rows; a feature that never changes there becomes 0."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def learn(self, features: Tensor) -> Tensor:
        """features (N, C) -> themselves, standardized."""
        deviation, self.mean = features.std(0, correction=0), features.mean(0)
        self.scale = torch.where(deviation > 1e-8 * deviation.max().clamp(min=1e-30), 1 / deviation.clamp(min=1e-30), 0.0)
        return self(features)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


class LinearHead(nn.Module):
    """s = W x + b."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.standardized = Standardized(width)
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(self.standardized(features))

    def fit(self, features: Tensor, answers: Tensor, loss: Loss, l2: float, steps: int = 200) -> int:
        """To the minimum; returns the steps of L-BFGS that it took. features (N, C)."""
        x = self.standardized.learn(features)
        optimizer = torch.optim.LBFGS(self.out.parameters(), max_iter=steps, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

        def closure() -> Tensor:
            optimizer.zero_grad()
            total, rows = loss(self.out(x), answers)
            mean = total / rows + l2 / 2 * self.out.weight.square().sum()
            mean.backward()
            return mean

        optimizer.step(closure)
        return optimizer.state[self.out.weight]["n_iter"]


def chosen_l2(features: Tensor, answers: Tensor, loss: Loss, shape: dict) -> float:
    """The l2 of CHOICES with which a linear head, trained on four fifths of the rows, has the lowest loss on every fifth. Where rows are too few for
    that (less than 5 for each output), FEW."""
    if len(features) < 5 * max(2, shape["outputs"]):
        return FEW
    held_out = torch.arange(len(features)) % 5 == 4
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))                    # files are often sorted by label
    features, answers = features[order], answers[order]
    head, found = make(**shape), {}
    for l2 in CHOICES:                                                      # from the largest, each fit going on from the one before
        head.fit(features[~held_out], answers[~held_out], loss, l2, steps=40)
        with torch.no_grad():
            found[l2] = loss(head(features[held_out]), answers[held_out])[0].item()
        if found[l2] > 1.02 * min(found.values()):
            break
    return min(found, key=found.get)


class MLPHead(nn.Module):
    """s = W2 relu(W1 x + b1) + b2, with dropout on the hidden numbers while training."""

    def __init__(self, width: int, outputs: int, hidden: int = 256):
        super().__init__()
        self.standardized = Standardized(width)
        self.inner, self.out = nn.Linear(width, hidden), nn.Linear(hidden, outputs)

    def forward(self, features: Tensor) -> Tensor:
        inside = F.relu(self.inner(self.standardized(features)))
        return self.out(F.dropout(inside, 0.1, self.training))

    def fit(
        self, features: Tensor, answers: Tensor, loss: Loss, l2: float, seed: int = 0, epochs: int = 100, rows: int = 64, lr: float = 1e-3,
        patience: int = 5, held_out: tuple[Tensor, Tensor] | None = None,
    ) -> int:
        """AdamW in batches, until `patience` epochs in a row gain nothing on held_out (features, answers), if it is given; the best epoch's numbers
        stay. Returns the epochs run."""
        dice = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner.reset_parameters()
            self.out.reset_parameters()
            self.standardized.learn(features)
            optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=l2, fused=features.device.type == "cuda" or None)
            best, kept, bad = float("inf"), {name: value.clone() for name, value in self.state_dict().items()}, 0
            for epoch in range(1, epochs + 1):
                self.train()
                for some in torch.randperm(len(features), generator=dice).split(rows):
                    total, count = loss(self(features[some]), answers[some])
                    optimizer.zero_grad()
                    (total / count).backward()
                    optimizer.step()
                self.eval()
                if held_out is None:
                    continue
                with torch.no_grad():
                    total, count = loss(self(held_out[0]), held_out[1])
                if (total / count).item() < best:
                    best, bad, kept = (total / count).item(), 0, {name: value.clone() for name, value in self.state_dict().items()}
                else:
                    bad += 1
                if bad == patience:
                    break
        if held_out is not None:
            self.load_state_dict(kept)
        return epoch


class NearestHead(nn.Module):
    """The training rows themselves; a cosine decides who is near, ties go to the earlier row."""

    def __init__(self, width: int, outputs: int, problem: str, rows: int = 0, k: int = 5):
        super().__init__()
        self.problem, self.k = problem, k
        self.register_buffer("features", torch.zeros(rows, width))
        self.register_buffer("answers", torch.zeros(rows, outputs))

    def fit(self, features: Tensor, answers: Tensor) -> int:
        """Remembers. features (N, C); answers (N,) labels, (N, K) zeros and ones, or (N,) numbers."""
        if self.k > len(features):
            raise InputError(f"{self.k} neighbours of {len(features)} training rows: take fewer")
        self.features = F.normalize(features, dim=-1)
        self.answers = F.one_hot(answers, self.answers.shape[1]).float() if self.problem == "single" else answers.float().reshape(len(answers), -1)
        return 0

    def forward(self, features: Tensor) -> Tensor:
        """Scores whose softmax (single) or sigmoid (multi) are the neighbours' shares, 0 taken as 1e-6."""
        found = []
        for some in F.normalize(features, dim=-1).split(1024):
            near = torch.sort(some @ self.features.T, dim=1, descending=True, stable=True).indices[:, : self.k]             # (n, k)
            found.append(self.answers[near].mean(1))
        shares = torch.cat(found)                                                                        # (N, K)
        if self.problem == "regression":
            return shares
        return shares.clamp(min=1e-6).log() if self.problem == "single" else torch.logit(shares, eps=1e-6)


def make(kind: Kind, width: int, outputs: int, problem: str, hidden: int = 256, k: int = 5, rows: int = 0) -> nn.Module:
    """An untrained head for features of `width` numbers; rows: of a nearest-neighbour head that is to be filled from a file."""
    if kind == "knn":
        return NearestHead(width, outputs, problem, rows, k)
    return LinearHead(width, outputs) if kind == "linear" else MLPHead(width, outputs, hidden)
