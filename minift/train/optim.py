"""AdamW and the learning-rate schedule.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) shrinks each weight by lr * weight_decay beside the Adam step, not inside it.
Norm gains and biases are not decayed: shrinking a gain towards zero is a change of function, not a regulariser.

Muon (torch.optim.Muon, Jordan et al. 2024) may take the matrices inside the blocks when training from scratch: it replaces each
momentum matrix by the nearest orthogonal one, so all directions learn at one speed. Embeddings, norms and the head stay with AdamW.
AdamW with averages in 8 bits, for a quarter of their memory, is in minift/train/adamw8bit.py.
Proved in tests/train/test_optim.py."""

import math
from typing import Literal

import torch
from torch import nn

from minift.errors import InputError
from minift.train.adamw8bit import AdamW8bit

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: Schedule, floor: float = 0.0) -> float:
    """The share of the peak rate that optimizer step `step` (counted from 0) of `steps` takes.

    Linear warm-up over `warmup` steps (the first one takes 1/warmup), then down to `floor` at the last step, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - 1 - warmup)                        # 0 at the peak, 1 at the last step
    done = min(1.0, done)
    fall = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return floor + (1 - floor) * fall


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Trainable parameters in groups: matrices (decayed) and everything with fewer than two axes (not decayed); a parameter with an
    attribute `lr_scale` learns that many times as fast as `lr` says (LoRA+)."""
    groups: dict[tuple[float, float], list] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((getattr(p, "lr_scale", 1.0), weight_decay if p.ndim >= 2 else 0.0), []).append(p)
    order = sorted(groups, key=lambda key: (key[0], -key[1]))
    return [
        {"params": groups[scale, decay], "weight_decay": decay, "lr": lr * scale, "peak_lr": lr * scale} for scale, decay in order
    ]


def adamw(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(parameter_groups(model, lr, weight_decay), betas=betas, eps=1e-8, fused=True)]


def adamw8bit(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], paged: bool = False
) -> list[torch.optim.Optimizer]:
    return [AdamW8bit(parameter_groups(model, lr, weight_decay), betas=betas, eps=1e-8, paged=paged)]


def muon(model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the weights of the linears inside the blocks, AdamW for the rest; `lr` means the same size of step in both."""
    inner = {id(m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "head" and m.weight.requires_grad}
    outer = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if id(p) in inner - outer]
    rest = parameter_groups(model, lr, weight_decay)
    if not matrices:
        raise InputError("--optimizer muon is for the weights of linears, and none of them is trained: take --optimizer adamw")
    chosen = {id(p) for p in matrices}
    for group in rest:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    orthogonal = torch.optim.Muon(
        [{"params": matrices, "peak_lr": lr}], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [orthogonal, torch.optim.AdamW([g for g in rest if g["params"]], betas=betas, eps=1e-8, fused=True)]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
