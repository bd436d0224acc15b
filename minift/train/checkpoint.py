"""Stopping and going on: everything the next optimizer step depends on.

    state = where the run is (Place), trained parameters, their modules' buffers, optimizer states, the random numbers' state

Frozen weights come from the base model again. The random state is the one that the next step begins with: a run that is interrupted inside a
step, some micro-batches and their dropout on, saves the state of that step's beginning and takes the whole step again.
How a state becomes a file is in state_file.py, which files are kept in kept.py. Proved in tests/train/test_checkpoint.py and test_resume.py."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from minift.errors import InputError
from minift.train import state_file


@dataclass
class Place:
    """Where a run is."""

    step: int = 0
    """Optimizer steps taken."""
    best: float | None = None
    """The best evaluation so far."""
    bad: int = 0
    """Evaluations since that one."""
    evaluated: int = 0
    """The last step whose weights were evaluated."""
    score: float | None = None
    """That evaluation, if it is of the present weights and counts."""


def random_state(device: torch.device | str = "cpu") -> dict[str, torch.Tensor | None]:
    """Of torch's generators, on the CPU and on `device`."""
    cuda = torch.cuda.get_rng_state(device) if torch.device(device).type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, torch.Tensor | None], device: torch.device | str = "cpu") -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def trained_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """name -> tensor of what the optimizer changes (a tied matrix once)."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def running_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """name -> persistent buffer of the modules that train: what they count beside learning (AdaLoRA's averages)."""
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def state_of(model: nn.Module, optimizers: list, place: Place, random: dict | None = None, extra: dict | None = None) -> dict:
    """The state, by reference: write it before the next step. optimizers: whatever has a state_dict of tensors and numbers; random: as of
    `random_state`, now if it is None; extra: plain numbers that a recipe's own loop goes on from."""
    return {
        **asdict(place),
        "parameters": trained_parameters(model),
        "buffers": running_buffers(model),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random": random or random_state(next(model.parameters()).device),
        "extra": extra or {},
    }


def read(path: Path, parts: tuple[str, ...] | None = None) -> dict:
    """A state from a file; parts: see state_file. Raises FileNotFoundError, and InputError for a file that holds none."""
    state = state_file.read(path, parts)
    missing = {*(field.name for field in fields(Place)), "parameters", "buffers", "optimizers", "random", "extra"} - state.keys()
    if missing:
        raise InputError(f"{path} is no checkpoint of a run: it has no {', '.join(sorted(missing))}")
    return state


def restore(state: dict, model: nn.Module, optimizers: list) -> Place:
    """Put model, optimizers and random numbers back to where `state` was written; returns where that is."""
    load_parameters(model, state["parameters"])
    own, saved = running_buffers(model), state["buffers"]
    if {name: b.shape for name, b in own.items()} != {name: b.shape for name, b in saved.items()}:
        raise InputError(f"the checkpoint holds {len(saved)} running averages, this run {len(own)} or others: use the same settings")
    for name, buffer in own.items():
        buffer.copy_(saved[name])
    if len(optimizers) != len(state["optimizers"]):
        raise InputError(f"the checkpoint holds the states of {len(state['optimizers'])} optimizers or averages, this run has {len(optimizers)}: use the same settings")
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    set_random_state(state["random"], next(model.parameters()).device)
    return Place(**{field.name: state[field.name] for field in fields(Place)})


def load_parameters(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Copy the trained parameters in; the names and shapes must be exactly those the model trains now."""
    own = dict(model.named_parameters())
    trained = {name for name, p in own.items() if p.requires_grad}
    if trained != set(saved):
        differing = sorted(trained ^ set(saved))
        raise InputError(f"the checkpoint trained other parameters than this run ({len(differing)} differ, e.g. {differing[0]}): use the same settings")
    for name, value in saved.items():
        if own[name].shape != value.shape:
            raise InputError(f"the checkpoint's {name} is {tuple(value.shape)}, this run's is {tuple(own[name].shape)}: use the same settings")
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)
