"""Stopping and going on: everything the next optimizer step depends on, in one file.

    state = step, trained parameters and their modules' buffers, optimizer states, random-number state, the best score so far

Written aside, synced and renamed (minift/files.py has the same rule for folders), so a kill at any moment leaves the old file.
Read with `weights_only=True`: a checkpoint is data and can run no code. Proved in tests/train/test_checkpoint.py."""

import os
from pathlib import Path

import torch
from torch import nn

from minift.errors import InputError


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


def write(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, best: float | None, bad: int, extra: dict | None = None
) -> None:
    """Replace the checkpoint file at `path` by this state; `bad` counts the evaluations since the best one, extra: plain numbers that a
    recipe's own loop goes on from."""
    state = {
        "step": step,
        "parameters": trained_parameters(model),
        "buffers": running_buffers(model),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": torch.get_rng_state(),
        "best": best,
        "bad": bad,
        "extra": extra or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    try:
        with open(aside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:                    # torch.save turns a full disk into a RuntimeError
        text = str(error).splitlines()[0]
        raise OSError(f"{path} cannot be written ({text}): is the disk full? What was there before is kept") from error
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path) -> dict:
    """A state written by `write`. Raises InputError if it is not one."""
    try:
        state = torch.load(path, weights_only=True)
        if not isinstance(state, dict) or not {"step", "parameters", "buffers", "optimizers", "rng", "best", "bad"} <= state.keys():
            raise EOFError("it holds something else")
        return state
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path} to go on from: start without --resume") from None
    except Exception as error:                                  # on a damaged file torch.load may raise anything
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a readable checkpoint ({text}): start without --resume") from None


def restore(state: dict, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Put model, optimizers and random numbers back to where `state` was written."""
    load_parameters(model, state["parameters"])
    own, saved = running_buffers(model), state["buffers"]
    if {name: b.shape for name, b in own.items()} != {name: b.shape for name, b in saved.items()}:
        raise InputError(f"the checkpoint holds {len(saved)} running averages, this run {len(own)} or others: use the same settings")
    for name, buffer in own.items():
        buffer.copy_(saved[name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])


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
