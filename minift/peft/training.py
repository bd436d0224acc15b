"""What a method may ask of the training loop, which knows no method.

    lr_scale           an attribute of a parameter: it learns that many times as fast (LoRA+); train/optim.py reads it
    penalty()          of a small module: a scalar added to the mean loss of each step (AdaLoRA's orthogonality)
    settled(...)       of a config: could training end here? Until then no evaluation is the best one (AdaLoRA)
    after_step(...)    of a config: called when the optimizer has stepped and the gradients are still there (AdaLoRA's budget)

Proved in tests/peft/test_training.py."""

import torch
from torch import Tensor, nn

from minift.peft.attach import State
from minift.peft.head import NewHead


def penalty(model: nn.Module) -> Tensor | None:
    """The sum of what the active set's small modules ask to be added to the loss; None if they ask nothing."""
    asked = [module.penalty() for module in _active(model) if hasattr(module, "penalty")]
    return torch.stack(asked).sum() if asked else None


def after_step(model: nn.Module, step: int, steps: int) -> None:
    """Tell the active set that optimizer step number `step` (the first is 1) of `steps` is done; call it before zero_grad."""
    state: State | None = model.__dict__.get("_peft")
    method = state.sets.get(state.active) if state is not None else None
    if hasattr(method, "after_step"):
        method.after_step(_active(model), step, steps)


def settled(model: nn.Module, step: int, steps: int) -> bool:
    """Is what the active set is after step `step` of the kind it is to end as? An AdaLoRA over its budget is not, however good."""
    state: State | None = model.__dict__.get("_peft")
    method = state.sets.get(state.active) if state is not None else None
    return method.settled(step, steps) if hasattr(method, "settled") else True


def _active(model: nn.Module) -> list[nn.Module]:
    """The method's own small modules of the active set."""
    state: State | None = model.__dict__.get("_peft")
    active = [] if state is None else [w.adapters[w.active] for w in state.wrappers.values() if w.active is not None]
    return [module for module in active if not isinstance(module, NewHead)]
