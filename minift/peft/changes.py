"""What an adapter file does to each weight, without the model: the size and the directions of ΔW = s B A.

With B = Q R (a QR decomposition, Q's columns orthonormal), Q R A and R A have the same singular values, and R A is only (r, K):
the (N, K) change is never built. The Frobenius norm is the root of the sum of their squares.
Proved in tests/peft/test_changes.py."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minift.peft.lora import LoRA, at

SIDES = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))


class Change(NamedTuple):
    """The change an adapter makes to one module's weight."""

    module: str
    rank: int
    parameters: int
    singular_values: Tensor
    """(r,), the largest first."""

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW."""
        return self.singular_values.norm().item()


def changes(method: LoRA, tensors: dict[str, Tensor]) -> list[Change]:
    """`method` and `tensors` as files.read returns them."""
    found = []
    for key in tensors:
        for a, b in SIDES:
            if key.endswith(a):
                module = key.removesuffix("." + a).removeprefix("base_model.model.")
                A, B = tensors[key].float(), tensors[key.removesuffix(a) + b].float()               # (r, K), (N, r)
                rank, alpha = A.shape[0], at(method.alpha_pattern, module, method.alpha)
                scale = alpha / math.sqrt(rank) if method.rslora else alpha / rank
                core = torch.linalg.qr(B).R @ A                                                     # (min(N, r), K)
                found.append(Change(module, rank, A.numel() + B.numel(), scale * torch.linalg.svdvals(core)))
    return found
