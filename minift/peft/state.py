"""What a model remembers of its adapters, and what the rest asks of a method.

Proved in tests/peft/test_attach.py."""

import dataclasses
from typing import Protocol

import torch
from torch import nn

from minift.errors import InputError
from minift.peft.wrapper import Adapted


class Method(Protocol):
    """What attach and files need of a method's config."""

    peft_type: str

    def build(self, model: nn.Module) -> dict[str, nn.Module]: ...
    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict: ...


@dataclasses.dataclass
class State:
    """What a model remembers of its adapters; lives on the model as the plain attribute `_peft`."""

    sets: dict[str, Method]
    wrappers: dict[str, Adapted]
    """Path -> the wrapper there; while merged they are out of the tree, but still here."""
    trained_before: set[str]
    """The parameters that were trainable before the first attach froze them."""
    active: str | None = None
    merged: str | None = None
    disabled: int = 0
    """How many `disabled` blocks we are in."""
    rows: dict[str | None, torch.Tensor] | None = None
    """Inside a `rows` block: set's name (None: the base) -> its rows."""
    backup: dict[str, dict[str, nn.Parameter]] = dataclasses.field(default_factory=dict)
    """While merged: path -> the base's own parameters."""
    stand_ins: dict[str, nn.Linear] = dataclasses.field(default_factory=dict)
    """While merged: path -> the linear in the place of a quantized one (quantized.py)."""
    requantized: bool = False
    """While merged: those linears were rounded again."""
    tie_cut: bool = False
    """While merged: the model's config said "tied embeddings" and no longer does."""


def state_of(model: nn.Module) -> State:
    state = model.__dict__.get("_peft")
    if state is None:
        raise InputError("no adapters are attached to this model: call peft.attach or peft.load first")
    return state
