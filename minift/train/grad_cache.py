"""GradCache: the gradient of one large contrastive batch, in the memory of a small one (Gao et al. 2021, arXiv:2101.06983).

    1. embed the rows in mini-batches, keeping no graph            f: rows -> (n, C), once without gradients
    2. loss of all embeddings together, and dL/df at each          B x C numbers: the cache
    3. embed each mini-batch again, with a graph, and push its part of dL/df through it

In-batch losses look at all rows at once, so summing the gradients of small batches is another, easier loss. This one costs a second
forward pass, and its gradient is the large batch's. Dropout must draw the same zeros in both passes, or step 3 differentiates another function
than the loss saw (trap 40): the random state before each mini-batch is kept and restored, on the CPU and on GPUs that are in use.
Proved in tests/train/test_grad_cache.py. Left out: several devices; layers that change in a forward pass (batch norm's averages move twice)."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Embed = Callable[[Any], Tensor]
"""A slice of a column's rows -> (n, C). Called twice on each slice; random numbers only from torch's generators."""


def grad_cache(columns: Sequence[Any], embed: Embed, loss: Callable[..., tuple[Tensor, int]], *, size: int) -> tuple[Tensor, int]:
    """loss(*embeddings of the columns) -> (sum, count), as if embed had been called with a graph; backward() on the sum runs step 3.

    A column is anything with a length and slices: a list of texts, a tensor. size: rows of a mini-batch; the last one of a column may have fewer.
    Parameters of the loss (a temperature that learns) get their gradient as well. Only backward() works: torch.autograd.grad sees no parameters."""
    if size < 1:
        raise ValueError(f"size is {size}: a mini-batch needs at least 1 row")
    if not columns or not all(len(rows) for rows in columns):
        raise ValueError(f"columns of {[len(rows) for rows in columns]} rows: wanted at least one column, and none without rows")
    return loss(*(_embedded(rows, embed, size) for rows in columns))


def _embedded(rows: Any, embed: Embed, size: int) -> Tensor:
    """(len(rows), C): a leaf, that hands its gradient on to what embed depends on."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    states, embeddings = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            embeddings.append(embed(part))
    for part, made in zip(parts, embeddings):
        if made.shape[:1] != (len(part),):
            raise ValueError(f"embed made {tuple(made.shape)} of {len(part)} rows: wanted ({len(part)}, width)")
    leaf = torch.cat(embeddings)
    if not torch.is_grad_enabled():
        return leaf
    mode = _autocast_mode(leaf.device.type)                                                      # backward() is called outside of it

    def replay(leaf: Tensor) -> None:
        for part, state, gradient in zip(parts, states, leaf.grad.split(size)):
            with _replayed(state), mode(), torch.enable_grad():
                again = embed(part)
            if again.requires_grad:                                                              # not where all of it is frozen
                again.backward(gradient)
        leaf.grad = None

    leaf.requires_grad_().register_post_accumulate_grad_hook(replay)                             # called once the loss's gradient is whole
    return leaf


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextlib.contextmanager
def _replayed(state: tuple[Tensor, list[Tensor]]):
    """The random numbers from `state` on; afterwards those that were due."""
    cpu, gpus = state
    with torch.random.fork_rng(devices=range(len(gpus))):
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        yield


def _autocast_mode(device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """What autocast does now, to be entered again."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)
