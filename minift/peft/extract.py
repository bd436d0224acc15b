"""The adapter that a fully fine-tuned checkpoint almost is: the difference of two checkpoints, cut to low rank.

    ΔW = W_tuned - W_base = U S VT,   A = the first r rows of VT (r, K),   B = the first r columns of U S (N, r)

No matrix of rank r is closer to ΔW (Eckart and Young 1936), and the share of ‖ΔW‖² that it holds is the sum of the first r squared
singular values over the sum of all: reported for each module. What differs elsewhere (norms, biases, embeddings that are no targets)
cannot be in a LoRA set; it is listed, never dropped in silence.
Left out: choosing ranks across modules for a total budget, and randomised SVDs. This one is exact, and its cost grows as the cube of the
width: moments for a small model, hours of CPU for one of billions of parameters (with the model on a GPU it is computed there).
Proved in tests/peft/test_extract.py."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.combine import Kept, of_rank, put_factors
from minift.peft.targets import find, is_conv1d, is_embedding
from minift.peft.wrapper import base_modules


@dataclass(frozen=True)
class Extracted:
    """What of a difference is in the set, and what is not."""

    kept: dict[str, Kept]
    """Path of each module in the set -> its rank there, and the share of its ‖ΔW‖²."""
    left: dict[str, float]
    """Name of each parameter that differs and is not in the set -> Frobenius norm of its difference."""
    share: float
    """Of the squared norm of all differences, those left included."""


@torch.no_grad()
def extract_lora(
    model: nn.Module, tuned: Mapping[str, Tensor], rank: int | None = None, share: float | None = None,
    targets: str | list[str] | tuple[str, ...] = "all-linear", name: str = "extracted",
) -> Extracted:    # fmt: skip
    """Attach to `model`, the base, the LoRA set `name` that brings it nearest to `tuned`.

    tuned: parameter's name -> tensor: state_dict() of another model, or models.parameters.Parameters(folder), which reads one tensor at a time.
    rank: of every module (less where the matrix is smaller). share: the smallest rank that holds this share of ‖ΔW‖², `rank` at most if
    both are given. Modules that do not differ get nothing."""
    if rank is None and share is None:
        raise InputError("name a rank or a share of ‖ΔW‖² to keep (or both: the share, and the rank it must not pass)")
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise InputError(f"rank is {rank!r}: it must be a whole number, at least 1")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share is {share!r}: it must be above 0 and at most 1")
    chosen, factors, kept, left, held, whole = find(model, targets), {}, {}, {}, 0.0, 0.0
    first: dict[int, str] = {}
    for key, base in _same_parameters(model, tuned).items():
        path, change = key.rpartition(".")[0], _difference(key, base, tuned[key])
        one = first.setdefault(id(base), key)
        if one != key and path not in chosen and torch.equal(tuned[key], tuned[one]):
            continue                                                            # tied in both: it differs once
        size = change.square().sum().item()
        whole += size
        if size and path in chosen and key.endswith(".weight"):
            U, S, Vt = torch.linalg.svd(change.T if is_conv1d(chosen[path]) or is_embedding(chosen[path]) else change, full_matrices=False)
            A, B, part = of_rank(U, S, Vt, rank if share is None else min(_rank_for(share, S), rank or len(S)))
            factors[path], kept[path] = (A, B), Kept(len(A), part)
            held += part * size
        elif size:
            left[key] = size**0.5
    if not factors:
        others = f"; {len(left)} others do: {', '.join(list(left)[:3])}" if left else ", and neither does anything else"
        raise InputError(f"the two checkpoints do not differ in the weights of targets {targets!r}{others}")
    put_factors(model, factors, name)
    return Extracted(kept, left, held / whole)


def _rank_for(share: float, S: Tensor) -> int:
    energy = S.double().square().cumsum(0)
    return int((energy < share * energy[-1]).sum()) + 1 if share < 1 else len(S)


def _same_parameters(model: nn.Module, tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's parameters by name, a tied weight under each of its names; InputError if `tuned` has others."""
    own = {f"{path}.{key}".lstrip("."): value for path, m in base_modules(model).items() for key, value in m.named_parameters(recurse=False)}
    buffers = {f"{path}.{key}".lstrip(".") for path, module in base_modules(model).items() for key, _ in module.named_buffers(recurse=False)}
    missing, extra = [key for key in own if key not in tuned], [key for key in tuned if key not in own and key not in buffers]
    if missing or extra:
        few = lambda keys: ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") or "none"
        raise InputError(f"base and tuned are not one architecture: only in the base: {few(missing)}; only in the tuned one: {few(extra)}")
    return own


def _difference(key: str, base: Tensor, tuned: Tensor) -> Tensor:
    if base.shape != tuned.shape:
        raise InputError(f"{key} is {tuple(base.shape)} in the base and {tuple(tuned.shape)} in the tuned one: resized, or from another base?")
    if not base.is_floating_point() or not tuned.is_floating_point():
        raise InputError(f"{key} is {base.dtype} in the base and {tuned.dtype} in the tuned one: load both unquantized")
    wide = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
    change = tuned.to(base.device, wide) - base.to(wide)
    if not change.isfinite().all():
        raise InputError(f"{key} contains NaN or infinity in one of the two checkpoints")
    return change
