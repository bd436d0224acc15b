"""Merging: compute what a set learned into the weights, and the way back.

    W' = W + change          y = x W'T + b is the same function; the adapter's modules leave the tree

A merge never writes into a weight. It gives the module a new one and keeps the old one aside, so the way back is exact to the bit
in every dtype, and a weight shared with another module (tied embeddings) stays what it was there.
In place of a linear in 4 or 8 bits stands, while merged, a plain one in its float dtype with W' = dequantize(q) + change. Rounded to
those bits again W' would lose most of a small change (trap 23): only on request, and then `merge` says what is left (quantized.py).
Proved in tests/peft/test_attach.py and test_quantized.py."""

import dataclasses
from collections import Counter

import torch
from torch import nn

from minift.errors import InputError
from minift.peft.quantized import Survived, merged_values, stand_in, survived
from minift.peft.state import state_of
from minift.peft.wrapper import base_modules, swap
from minift.quant import QuantizedLinear


@torch.no_grad()
def merge(model: nn.Module, requantize: bool = False) -> dict[str, Survived]:
    """Compute the active set into the weights and put the original modules back in the tree: same function, no extra cost.

    The old weights are kept aside for unmerge; `remove` of the merged set lets go of them and leaves a plain model, ready to be
    saved. Where a tied weight is merged the tie is cut, and the model's config says so (trap 25).
    requantize: quantized linears are rounded to their scheme again; returns path -> what survived of the change there, else nothing."""
    state = state_of(model)
    if state.merged:
        raise InputError(f"the set {state.merged!r} is merged already: merging twice would add it twice")
    if state.active is None:
        raise InputError("no set is active: peft.switch to the one to merge")
    if state.disabled or state.rows is not None:
        raise InputError("inside peft.disabled the model is its base, and inside peft.rows several sets: merge before or after that block")
    wrappers = {path: wrapper for path, wrapper in state.wrappers.items() if wrapper.active}
    new = {path: merged_values(w.adapters[w.active], w.base) for path, w in wrappers.items()}       # all, or a refusal and no change
    packed = [path for path, values in new.items() if "weight" in values and isinstance(wrappers[path].base, QuantizedLinear)]
    if requantize and not packed:
        raise InputError("requantize: this set changes no weight in 4 or 8 bits, so there is nothing to round again; leave it out")
    stand_ins = {path: stand_in(wrappers[path].base, new[path], requantize) for path in packed}
    report = {path: survived(wrappers[path].base, new[path]["weight"], stand_ins[path]) for path in packed} if requantize else {}
    owners = Counter(id(p) for module in base_modules(model).values() for p in module.parameters(recurse=False))
    replaced: dict[int, list[int]] = {}                            # a shared weight -> the weights it becomes, one for each place
    made: dict[int, nn.Parameter] = {}
    for path in (path for path in new if path not in stand_ins):
        base, values = state.wrappers[path].base, new[path]
        state.backup[path] = {key: getattr(base, key) for key in values}
        for key, value in values.items():
            fresh = made.setdefault(id(value), nn.Parameter(value, requires_grad=False))
            replaced.setdefault(id(state.backup[path][key]), []).append(id(fresh))
            setattr(base, key, fresh)
    cut = any(owners[old] != len(places) or len(set(places)) > 1 for old, places in replaced.items())
    state.tie_cut = cut and _tied(model)
    if state.tie_cut:
        _say_tied(model, False)
    swap({wrapper: stand_ins.get(path, wrapper.base) for path, wrapper in state.wrappers.items()}, model)
    state.merged, state.stand_ins, state.requantized = state.active, stand_ins, requantize
    return report


def unmerge(model: nn.Module) -> None:
    """Undo merge: the very parameters and modules of before, bit for bit, ties included."""
    state = state_of(model)
    if not state.merged:
        raise InputError("no set is merged into this model: there is nothing to undo")
    for path, parameters in state.backup.items():
        for key, parameter in parameters.items():
            setattr(state.wrappers[path].base, key, parameter)
    if state.tie_cut:
        _say_tied(model, True)
    standing = {path: state.stand_ins.get(path, wrapper.base) for path, wrapper in state.wrappers.items()}
    for path, wrapper in state.wrappers.items():
        wrapper.train(standing[path].training)
    swap({standing[path]: wrapper for path, wrapper in state.wrappers.items()}, model)
    state.backup, state.stand_ins, state.merged, state.tie_cut = {}, {}, None, False


def _tied(model: nn.Module) -> bool:
    """Does the model's config (ours, or a transformers one) say that the head is the embedding?"""
    config = getattr(model, "config", None)
    return bool(getattr(config, "tie_embeddings", False) or getattr(config, "tie_word_embeddings", False))


def _say_tied(model: nn.Module, tied: bool) -> None:
    if hasattr(model.config, "tie_embeddings"):
        model.config = dataclasses.replace(model.config, tie_embeddings=tied)       # ours is frozen
    else:
        model.config.tie_word_embeddings = tied
