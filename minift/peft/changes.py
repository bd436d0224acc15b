"""How much an adapter changes: read from its file alone, or, where that takes the base's numbers, on the model.

For low-rank methods ΔW = B A with the scale inside. With B = Q R (a QR decomposition, Q's columns orthonormal), Q R A and R A have the
same singular values, and R A is only (r, K): the (N, K) change is never built. The Frobenius norm is the root of the sum of their squares.

                          from the file                                     on the model
    LoRA, AdaLoRA         ‖ΔW‖ and singular values                          the same
    DoRA                  of its direction's part s B A                     of ΔW = m (W + s B A) / n - W
    IA3                   mean |l - 1|                                      of ΔW = (l - 1) * W
    VeRA, BitFit, norms   the size of the vectors                           of what they change
    whole weights, rows   the size of the weights                           of their difference to the base's
    bottlenecks           ‖s U D‖, what they add were there no activation   nothing: they are in no weight
    virtual tokens        the mean length of a row                          nothing
    others                the norm of their numbers

Proved in tests/peft/test_changes.py."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.attach import Method, state_of
from minift.peft.lora import at

PAIRS = {
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",
    "lora_A": "lora_B",
    "adapter_down.0.weight": "adapter_up.weight",
}
"""Ends of the keys of A (r, K) -> that of B (N, r)."""

ENDS = sorted([
    *PAIRS, *PAIRS.values(), "lora_E", "lora_magnitude_vector", "adapter_down.0.bias", "adapter_up.bias", "ln_tuning_layers.weight",
    "ln_tuning_layers.bias", "query.weight", "query.bias", "key.weight", "key.bias", "value.weight",
], key=len, reverse=True)    # fmt: skip
"""Ends of keys that are not simply what follows the last dot; the longest that fits counts."""


class Change(NamedTuple):
    """What an adapter does at one module."""

    module: str
    parameters: int
    measure: str
    """What `size` is."""
    size: float
    rank: int | None = None
    singular_values: Tensor | None = None
    """Of ΔW, the largest first."""


def changes(method: Method, tensors: dict[str, Tensor]) -> list[Change]:
    """`method` and `tensors` as files.read returns them."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(("base_model.vera_", "base_model.model.base_model.vera_")) or ".base_layer." in key:
            continue                                                        # frozen: the shared matrices, the base's own rows
        path = key.removeprefix("base_model.model.")
        end = next((end for end in ENDS if path.endswith("." + end)), path.rpartition(".")[2])
        modules.setdefault(path[: -len(end)].rstrip("."), {})[end] = tensor.float()
    return [_change(method, module or "virtual tokens", parts) for module, parts in modules.items()]


def _change(method: Method, module: str, parts: dict[str, Tensor]) -> Change:
    parameters = sum(part.numel() for part in parts.values())
    for a, b in PAIRS.items():
        if a in parts:
            if b not in parts:
                raise InputError(f"{module} has {a} but no {b}: the file is not whole; save or copy the adapter again")
            A, B = parts[a], parts[b]                                       # (r, K), (N, r)
            A, what = (A * parts["lora_E"] if "lora_E" in parts else A), "‖ΔW‖"
            if "lora_magnitude_vector" in parts:
                what = "‖s B A‖, the direction's"
            if a.startswith("adapter"):
                what = "‖s U D‖"
            singular = abs(_scale(method, module, len(A))) * torch.linalg.svdvals(torch.linalg.qr(B).R @ A)     # (min(N, r),)
            return Change(module, parameters, what, singular.norm().item(), len(A), singular)
    if "ia3_l" in parts:
        return Change(module, parameters, "mean |l - 1|", (parts["ia3_l"] - 1).abs().mean().item())
    if "prompt_embeddings" in parts or "trainable_tokens_delta" in parts:
        (rows,) = parts.values()                                            # (V, C), or as wide as all blocks' keys and values
        return Change(module, parameters, "mean ‖row‖", rows.norm(dim=1).mean().item(), len(rows))
    norm = torch.stack([part.norm() for part in parts.values()]).norm().item()
    return Change(module, parameters, f"‖{', '.join(parts)}‖", norm)


def _scale(method: Method, module: str, rank: int) -> float:
    if hasattr(method, "rslora"):                                           # LoRA and its kin
        alpha = at(method.alpha_pattern, module, method.alpha)
        return alpha / math.sqrt(rank) if method.rslora else alpha / rank
    if hasattr(method, "init_r"):
        return method.alpha / (method.init_r + 1e-5)                        # AdaLoRA's, whatever rank is left
    return method.scale                                                     # a bottleneck's s


@torch.no_grad()
def changes_on(model: nn.Module, name: str = "default") -> list[Change]:
    """The difference that the set `name` would make to each parameter if it were merged; InputError for a method that cannot be."""
    found = []
    for path, wrapper in state_of(model).wrappers.items():
        if name in wrapper.adapters:
            parameters = sum(p.numel() for p in wrapper.adapters[name].parameters())
            for key, value in wrapper.adapters[name].merged(wrapper.base).items():
                old = getattr(wrapper.base, key)
                change = value.float() - (0 if old is None else old.float())
                singular = torch.linalg.svdvals(change) if change.ndim == 2 else None
                module = path if key == "weight" else f"{path}.{key}"
                found.append(Change(module, parameters, "‖ΔW‖" if key == "weight" else f"‖Δ{key}‖", change.norm().item(), None, singular))
                parameters = 0                                              # of the module: counted once
    return found
