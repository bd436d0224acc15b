"""Adapters on a model: put in, switched, turned off, merged, taken out. Written once, for every method.

A PEFT method is a small module and a rule for where it goes. A config (a frozen dataclass such as peft.LoRA) has

    build(model)       -> {path: small module}     where, and what
    to_file(...), from_file(...), peft_type        its adapter_config.json (files.py)

and a small module has

    forward(base, *inputs)                         called in place of the base module, which it calls itself
    file_names                                     {its parameter's name: the end of its key in adapter_model.safetensors}
    merged(base)       -> {base parameter's name: new value}; a method that cannot be merged raises InputError and says why

and, only where it needs it,

    file_tensors(model, small)                     of a config: its tensors' keys, where they are not one per module and parameter
    check(model, small)                            of a config: refuses what a file may hold but no new set should (a rank above the matrix)
    needs                                          of a config: names of sets that it uses, which cannot be removed before it
    keep_base = False                              of a config: it trains the model's own weights, so there is no base to go back to
    penalty(), after_step(...), lr_scale           what it asks of the training loop (training.py)

Everything else is here, in merging.py and in files.py, and knows no method. One named set is active at a time: it alone is trained.
`rows` lets several sets answer one batch, each its own rows.
Left out: several sets active at once on the same row (combine.py makes one set of several).
Proved in tests/peft/test_attach.py."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from minift.errors import InputError
from minift.peft.head import beside
from minift.peft.merging import merge, unmerge
from minift.peft.state import Method, State, state_of
from minift.peft.wrapper import Adapted, base_at, swap


def attach(model: nn.Module, method: Method, name: str = "default") -> None:
    """Freeze the model and give it the small modules of `method`, as the set `name`, active and trainable."""
    _free(model, name)
    small = method.build(model)
    if hasattr(method, "check"):
        method.check(model, small)
    put_in(model, method, {**small, **beside(model, small)}, name)


def put_in(model: nn.Module, method: Method, small: dict[str, nn.Module], name: str) -> None:
    """Insert ready-made small modules ({path: module}); nothing is changed if anything is refused."""
    _free(model, name)
    state = model.__dict__.get("_peft")
    if state is None:
        trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        state = model._peft = State({}, {}, trained)
        model.requires_grad_(False)
    fresh = {path: Adapted(base_at(model, path)) for path in small if path not in state.wrappers}
    swap({wrapper.base: wrapper for wrapper in fresh.values()}, model)
    state.wrappers.update(fresh)
    for path, module in small.items():
        state.wrappers[path].adapters[name] = module.train(state.wrappers[path].training)
    state.sets[name] = method
    switch(model, name)


def switch(model: nn.Module, name: str) -> None:
    """Make the set `name` the active one: it answers, and it alone is trainable."""
    state = state_of(model)
    _known(state, name)
    if state.merged:
        raise InputError(f"the set {state.merged!r} is merged into the weights: peft.unmerge before switching")
    if state.active is not None:
        _need_base(state, f"switching to {name!r}")
    _activate(state, name)


def names(model: nn.Module) -> list[str]:
    """The sets on this model, in the order they came."""
    state = model.__dict__.get("_peft")
    return [] if state is None else list(state.sets)


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its base, exactly: the reference model of DPO and PPO costs no second copy."""
    state = state_of(model)
    _need_base(state, "peft.disabled")
    was_merged, requantized = state.merged is not None, state.requantized
    if was_merged:
        unmerge(model)
    state.disabled += 1
    _point(state)
    try:
        yield
    finally:
        state.disabled -= 1
        _point(state)
        if was_merged:
            merge(model, requantized)


@contextlib.contextmanager
def rows(model: nn.Module, chosen: Sequence[str | None]) -> Iterator[None]:
    """Inside the block row b of every batch is answered by the set chosen[b], or by the base where that is None.

    A backward pass reaches the active set alone, through its own rows. An unknown name (never the base instead, trap 31) and a batch of
    another size are InputErrors. generate() takes the names itself, as `sets`."""
    state = state_of(model)
    for name in set(chosen) - {None}:
        _known(state, name)
    if state.merged or state.disabled or not chosen:
        raise InputError("peft.rows needs a name, or None, for each row, and the sets beside the weights: not merged, not inside peft.disabled")
    _need_base(state, "peft.rows")
    outer = state.rows
    state.rows = {name: torch.tensor([b for b, other in enumerate(chosen) if other == name]) for name in dict.fromkeys(chosen)}
    _point(state)
    try:
        yield
    finally:
        state.rows = outer
        _point(state)


def in_rows(model: nn.Module) -> bool:
    return "_peft" in model.__dict__ and state_of(model).rows is not None


def remove(model: nn.Module, name: str) -> None:
    """Take a set out. Without sets the model is what it was, in its module types and in what is trainable too.

    If the set is merged, the merged weights stay and the way back is dropped. If it was active, the model runs as its base until
    the next switch."""
    state = state_of(model)
    _known(state, name)
    if name in (state.rows or ()):
        raise InputError(f"inside peft.rows {name!r} answers rows of the batch: remove it after that block")
    others = [other for other in state.sets if other != name]
    users = [other for other in others if name in getattr(state.sets[other], "needs", ())]
    if users:
        raise InputError(f"{name!r} is mixed by {users}: remove that first")
    if state.merged == name:
        if others:
            raise InputError(f"{name!r} is merged, and the sets {others} were trained on the weights without it: remove them, or unmerge")
        state.backup, state.stand_ins, state.merged = {}, {}, None
    for wrapper in state.wrappers.values():
        if name in wrapper.adapters:
            del wrapper.adapters[name]
    empty = {path: wrapper for path, wrapper in state.wrappers.items() if not wrapper.adapters}
    swap({wrapper: wrapper.base for wrapper in empty.values()}, model)
    for path in empty:
        del state.wrappers[path]
    del state.sets[name]
    if state.active == name and state.merged is None:
        _activate(state, None)
    if not others:
        for key, parameter in model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(key in state.trained_before)
        del model._peft


def _activate(state: State, name: str | None) -> None:
    state.active = name
    for wrapper in state.wrappers.values():
        for key, module in wrapper.adapters.items():
            module.requires_grad_(key == name)
    _point(state)


def _point(state: State) -> None:
    """Tell every wrapper who answers."""
    rows = None if state.disabled else state.rows
    for wrapper in state.wrappers.values():
        wrapper.rows = rows if rows is not None and any(name in wrapper.adapters for name in rows) else None
        wrapper.active = state.active if state.active in wrapper.adapters and rows is None and not state.disabled else None


def _free(model: nn.Module, name: str) -> None:
    """Refuse a set that cannot be put in, before it is made."""
    state = model.__dict__.get("_peft")
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict(), name):
        raise InputError(f"{name!r} cannot name a set of adapters: use letters, digits, _ and -, and no word of PyTorch's own (train, half)")
    if state is None:
        return
    if name in state.sets:
        raise InputError(f"this model already has a set named {name!r}: peft.remove it, or choose another name")
    if state.merged:
        raise InputError(f"the set {state.merged!r} is merged into the weights: peft.unmerge, or peft.remove it to keep the merged weights")
    _need_base(state, f"attaching {name!r}")


def _need_base(state: State, wanted: str) -> None:
    own = next((name for name, method in state.sets.items() if not getattr(method, "keep_base", True)), None)
    if own is not None:
        raise InputError(
            f"{wanted} needs the base model, and the set {own!r} trains the base's own weights: attach it with keep_base=True, which costs"
            " a copy of what it trains"
        )


def _known(state: State, name: str) -> None:
    if name not in state.sets:
        raise InputError(f"this model has no set named {name!r}; it has {sorted(state.sets)}")
