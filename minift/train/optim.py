"""The optimizers by name, and the learning-rate schedule.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) shrinks each weight by lr * weight_decay beside the Adam step, not inside it.
Norm gains and biases are not decayed: shrinking a gain towards zero is a change of function, not a regulariser.

Muon (torch.optim.Muon, Jordan et al. 2024) may take the matrices inside the blocks when training from scratch: it replaces each
momentum matrix by the nearest orthogonal one, so all directions learn at one speed. Embeddings, norms and the head stay with AdamW.
SGD is torch's, its momentum the first of the two betas, with AdamW's kind of decay. The others have a file each (numbers remembered for
an N x K matrix, beside it):

    adamw 2 N K     adamw8bit 2 N K in bytes     lion N K     adafactor N + K     galore N r + 2 r K (N <= K)     sgd N K     muon N K

The rate warms up linearly over w of n steps and falls as a line or half a cosine that would reach zero at step n, the first that is not
taken: no step is wasted (as transformers counts). "wsd" warms up, stays, and falls only at the end (MiniCPM, arXiv:2404.06395; Granite Code,
arXiv:2405.04324), so a run can be stopped or made longer before it decays; ours falls linearly.
Proved in tests/train/test_optim.py and tests/parity/test_optimizers.py."""

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import nn

from minift.errors import InputError
from minift.train.adafactor import Adafactor
from minift.train.adamw import AdamW
from minift.train.adamw8bit import AdamW8bit
from minift.train.galore import GaLore, projected
from minift.train.lion import Lion

Schedule = Literal["cosine", "linear", "constant", "wsd"]
Name = Literal["adamw", "adamw8bit", "paged-adamw8bit", "muon", "adafactor", "lion", "galore", "sgd"]


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: Schedule, cooldown: int = 0) -> float:
    """The share of the peak rate that optimizer step `step` (counted from 0) of `steps` takes.

    Linear warm-up over `warmup` steps (the first one takes 1/warmup), then down to 0 at step `steps`, one after the last; wsd falls in the
    last `cooldown` steps only, constant never."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = max(warmup, steps - cooldown) if schedule == "wsd" else warmup
    done = min(1.0, max(0, step - start) / max(1, steps - start))              # 0 at the peak, 1 at the first step not taken
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """The trainable parameters of a model, in groups."""
    return grouped([p for p in model.parameters() if p.requires_grad], lr, weight_decay)


def grouped(params: list[nn.Parameter], lr: float, weight_decay: float) -> list[dict]:
    """Matrices (decayed) and everything with fewer than two axes (not decayed) apart; a parameter with an attribute `lr_scale` learns that
    many times as fast as `lr` says (LoRA+)."""
    groups: dict[tuple[float, float], list] = {}
    for p in params:
        groups.setdefault((getattr(p, "lr_scale", 1.0), weight_decay if p.ndim >= 2 else 0.0), []).append(p)
    order = sorted(groups, key=lambda key: (key[0], -key[1]))
    return [
        {"params": groups[scale, decay], "weight_decay": decay, "lr": lr * scale, "peak_lr": lr * scale} for scale, decay in order
    ]


def adamw(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    return [AdamW(parameter_groups(model, lr, weight_decay), betas=betas, eps=1e-8)]


def adamw8bit(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], paged: bool = False
) -> list[torch.optim.Optimizer]:
    return [AdamW8bit(parameter_groups(model, lr, weight_decay), betas=betas, eps=1e-8, paged=paged)]


def adafactor(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """betas are not for it: it has no first average, and a rate of its own for the second."""
    return [Adafactor(parameter_groups(model, lr, weight_decay))]


def lion(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    return [Lion(parameter_groups(model, lr, weight_decay), betas=betas)]


class SGD(torch.optim.SGD):
    """torch's SGD with momentum. A group's `decay` shrinks its weights by lr * decay beside the step (SGDW, arXiv:1711.05101, algorithm 1);
    torch's own weight_decay is a part of the gradient, and so of the momentum."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["decay"])
        super().step()


def sgd(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    groups = parameter_groups(model, lr, weight_decay)
    for group in groups:
        group["decay"] = group.pop("weight_decay")
    return [SGD(groups, lr=lr, momentum=betas[0])]


def inner_and_outer(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Of what trains, the weights of the linears inside the blocks (not the head's, a scorer's or a pooler's), and the rest."""
    inner = {id(m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks" in name.split(".")}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if id(p) in inner], [p for p in trained if id(p) not in inner]


def muon(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the weights of the linears inside the blocks, AdamW for the rest; `lr` means the same size of step in both."""
    matrices, rest = inner_and_outer(model)
    if not matrices:
        raise InputError("--optimizer muon is for the weights of linears, and none of them is trained: take --optimizer adamw")
    orthogonal = torch.optim.Muon(grouped(matrices, lr, weight_decay), adjust_lr_fn="match_rms_adamw")
    return [orthogonal, *_beside(rest, lr, weight_decay, betas)]


def _beside(rest: list[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """AdamW for what another optimizer leaves, if it leaves anything."""
    return [AdamW(grouped(rest, lr, weight_decay), betas=betas, eps=1e-8)] if rest else []


class Projection(NamedTuple):
    """GaLore's three numbers."""

    rank: int = 128
    every: int = 200
    scale: float = 0.25


def galore(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], projection: Projection = Projection()
) -> list[torch.optim.Optimizer]:
    """GaLore for the weights of the linears inside the blocks, AdamW for the rest."""
    matrices, rest = inner_and_outer(model)
    if not any(projected(p, projection.rank) for p in matrices):
        widest = max((min(p.shape) for p in matrices), default=0)
        found = f"the smaller side of the widest of them is {widest}: pass a smaller --galore-rank" if matrices else "none of them is trained: take --optimizer adamw"
        raise InputError(f"--optimizer galore is for weights of linears that are wider than --galore-rank {projection.rank}, and {found}")
    low = GaLore(grouped(matrices, lr, weight_decay), betas=betas, **projection._asdict())
    return [low, *_beside(rest, lr, weight_decay, betas)]


def optimizers_of(
    name: Name, model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], projection: Projection = Projection()
) -> list[torch.optim.Optimizer]:
    """One for all that trains, or one for the matrices and one for the rest."""
    make = {"adamw": adamw, "adamw8bit": adamw8bit, "paged-adamw8bit": partial(adamw8bit, paged=True), "muon": muon, "adafactor": adafactor,
            "lion": lion, "galore": partial(galore, projection=projection), "sgd": sgd}[name]    # fmt: skip
    return make(model, lr, weight_decay, betas)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
