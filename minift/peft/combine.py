"""Several LoRA sets made into one: a weighted sum of what they do, or a vote over it.

    ΔW = sum_i w_i s_i B_i A_i        the sum is one matrix product of the stacked factors:
       = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]          (N, R) (R, K)      R = r_1 + r_2 + ...

Always on the CHANGE, never on A and B by themselves: (B_1 + B_2)(A_1 + A_2) has the cross terms B_1 A_2 + B_2 A_1, which nobody trained
(trap 28). Scales, rsLoRA, rank and alpha patterns and different targets are in the change already, and the new set has scale 1.

    concat    the stacked factors as they are: exact, rank R
    linear    exact too, at the smallest rank that holds it: QR of both factors, then an SVD of the R x R core
    svd       the same, cut to `rank`: no matrix of that rank is closer to the sum
    ties      TIES (Yadav et al. 2023, arXiv:2306.01708): trim small entries, elect a sign, mean of those who agree; then cut to `rank`
    dare      DARE (Yu et al. 2023, arXiv:2311.03099): drop entries at random, rescale the rest, add up; then cut to `rank`

The first three never build an (N, K) matrix; the last two need one module's at a time, and its SVD, which for wide models takes minutes.
A set's weight is part of its change, so -1 negates and 1.0 alone reproduces.
Hugging Face peft's `cat` and `svd` are these; its `linear` adds factors; its TIES elects the sign before the weights count; and its
result of rsLoRA sets is sqrt(r) times too large.
PiSSA, AdaLoRA and VeRA sets are products B A too, and may be among them.
Left out: TIES' trimming over all modules at once (here and in peft: over each), DARE followed by TIES, methods whose change is no low-rank
product (DoRA, IA3, adapters, prompts): refused by name.
Proved in tests/peft/test_combine.py; equal to peft where peft is right in tests/parity/test_peft_combine.py."""

import math
import re
from collections import Counter
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.attach import put_in, state_of
from minift.peft.head import NewHead
from minift.peft.lora import LoRA
from minift.peft.targets import published_names


class Kept(NamedTuple):
    """What became of one module's change."""

    rank: int
    share: float
    """Of ‖ΔW‖²; 1 but for the cut to a rank."""


HOW = ("linear", "concat", "svd", "ties", "dare")


@torch.no_grad()
def combine(
    model: nn.Module, weights: dict[str, float], name: str = "combined", how: Literal["linear", "concat", "svd", "ties", "dare"] = "linear",
    rank: int | None = None, density: float = 0.5, seed: int = 0,
) -> dict[str, Kept]:    # fmt: skip
    """Make the LoRA set `name` of the sets in `weights` ({set: weight}), and make it the active one. The old sets stay.

    rank: of svd, ties and dare, in every module; by default the largest that one of the sets has there. density: the share of entries
    that ties and dare keep. seed: of dare's draws. Returns path -> Kept."""
    _check(weights, how, rank, density)
    dice, kept, made = torch.Generator().manual_seed(seed), {}, {}
    for path, parts in _parts(model, weights).items():
        A, B = torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)           # (R, K), (N, R)
        most = rank or max(len(A) for A, _ in parts)
        if how == "concat":
            if len(A) > min(len(B), A.shape[1]):
                raise InputError(f"the ranks at {path} add up to {len(A)}, more than a change of {len(B)} x {A.shape[1]} can have: how='linear'"
                                 " is as exact at a lower rank")    # fmt: skip
            share = 1.0
        elif how in ("linear", "svd"):
            A, B, share = of_rank(*_core(A, B), most if how == "svd" else None)
        else:
            changes = [B @ A for A, B in parts]                                                     # (N, K) each
            change = ties(changes, density) if how == "ties" else dare(changes, density, dice)
            A, B, share = of_rank(*torch.linalg.svd(change, full_matrices=False), most)
        made[path], kept[path] = (A, B), Kept(len(A), share)
    put_factors(model, made, name)
    return kept


def ties(changes: list[Tensor], density: float) -> Tensor:
    """Section 3 of arXiv:2306.01708: of each change keep the largest entries, give each place the sign with the larger sum, and take the
    mean of the entries there that have it. With weights of 1 this is the paper's task vector at λ = 1."""
    trimmed = torch.stack([_largest(change, density) for change in changes])                        # (sets, N, K)
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)                                              # (N, K)
    agree = trimmed.sign() == sign                                                                  # 0 agrees with nobody
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


def dare(changes: list[Tensor], density: float, dice: torch.Generator) -> Tensor:
    """Section 3.2 of arXiv:2311.03099: keep each entry with probability `density`, divide it by that, so the mean stays; then the sum."""
    chosen = [torch.bernoulli(torch.full(change.shape, density), generator=dice).to(change) for change in changes]
    return sum(change * keep / density for change, keep in zip(changes, chosen))


def of_rank(U: Tensor, S: Tensor, Vt: Tensor, rank: int | None) -> tuple[Tensor, Tensor, float]:
    """A (r, K) with orthonormal rows, B (N, r) and the share of ‖ΔW‖² they hold, from an SVD. rank None: all of it, where singular
    values below float32's rounding of the largest count as 0. A change of 0 becomes B = 0 with an A that can learn, like a fresh LoRA."""
    all_of_it = int((S > S[0] * torch.finfo(torch.float32).eps).sum())
    rank = min(max(rank or all_of_it, 1), len(S))
    whole = S.square().sum().item()
    return Vt[:rank], U[:, :rank] * S[:rank], S[:rank].square().sum().item() / whole if whole else 1.0


def put_factors(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    """Attach {path: (A, B)} as a LoRA set of scale 1: alpha is the rank, and modules of another rank have patterns."""
    names = published_names(model)
    usual = Counter(len(A) for A, _ in factors.values()).most_common(1)[0][0]
    other = {"^" + re.escape(names[path]): len(A) for path, (A, _) in factors.items() if len(A) != usual}
    method = LoRA(rank=usual, alpha=usual, targets=[names[path] for path in factors], rank_pattern=other, alpha_pattern=other)
    small = method.build(model)
    for path, (A, B) in factors.items():
        small[path].A.data.copy_(A)
        small[path].B.data.copy_(B)
    put_in(model, method, small, name)


def _parts(model: nn.Module, weights: dict[str, float]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Path -> (A, w s B) of each set that is there."""
    state, parts = state_of(model), {}
    for name, weight in weights.items():
        if name not in state.sets:
            raise InputError(f"this model has no set named {name!r}; it has {sorted(state.sets)}")
        for path, wrapper in state.wrappers.items():
            if name in wrapper.adapters:
                factors = getattr(wrapper.adapters[name], "factors", None)
                if isinstance(wrapper.adapters[name], NewHead):
                    raise InputError(f"the set {name!r} has a score head of its own, and no one head fits several sets: combine those of language models")
                if factors is None:
                    raise InputError(
                        f"the set {name!r} is {type(state.sets[name]).__name__}, whose change is no low-rank product B A: LoRA, PiSSA, AdaLoRA and"
                        " VeRA sets can be combined. If it can be merged, merge it and take peft.extract_lora of the result"
                    )
                A, B = factors()
                parts.setdefault(path, []).append((A, weight * B))
    return parts


def _core(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of B A without building it: B = Q R and AT = P T, so B A = Q (R TT) PT, and the core is as small as the rank."""
    (Q, R), (P, T) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vt = torch.linalg.svd(R @ T.T, full_matrices=False)
    return Q @ U, S, Vt @ P.T


def _largest(change: Tensor, density: float) -> Tensor:
    """The entries of the largest magnitude, a share `density` of them; the others 0."""
    kept = change.abs().flatten().topk(max(1, int(density * change.numel()))).indices
    return torch.zeros_like(change).flatten().scatter(0, kept, change.flatten()[kept]).view_as(change)


def _check(weights: dict[str, float], how: str, rank: int | None, density: float) -> None:
    if not weights or not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in weights.values()):
        raise InputError(f"weights is {weights!r}: wanted {{set's name: number}}, for one set at least")
    if how not in HOW:
        raise InputError(f"how is {how!r}: wanted one of {', '.join(HOW)}")
    if rank is not None and how in ("linear", "concat"):
        raise InputError(f"rank {rank} has no effect on {how!r}, which is exact: how='svd' cuts to a rank")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise InputError(f"rank is {rank!r}: it must be a whole number, at least 1")
    if not 0 < density <= 1:
        raise InputError(f"density is {density!r}, a share of the entries: it must be above 0 and at most 1")
