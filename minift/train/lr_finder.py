"""Which learning rate? Raise it at every step and see where the loss falls fastest, and where it bursts (Smith 2015, arXiv:1506.01186, section 3.3).

    rate_i = lowest (highest / lowest)^(i / (steps - 1))                    i = 0 ... steps - 1; equal steps on a logarithmic axis
    smooth_i = beta-average of the losses, divided by 1 - beta^(i+1)        stop when it is above 4 times its best

One optimizer step at each rate, on the training data in its usual order; loss_i is that of the batch that step i then learns from. Smith runs from small to large and reads the two ends off the picture
(for a cyclic rate). Two rules make a number of it, both fast.ai's (lr_find): the rate where the smooth loss falls most steeply per e-fold of
the rate, and a tenth of the rate where it is lowest. The second is the one suggested: near the lowest point the loss no longer falls, and a
factor of ten is clear of it, while the slope of noisy losses may be steepest anywhere.
It is a first guess for these batches and this method. What the loss does in a hundred steps on the way up says little of ten thousand at one rate.
Proved in tests/train/test_lr_finder.py. Left out: momentum cycled against the rate, a sweep of held-out losses."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from minift.data.batches import Batch
from minift.errors import InputError
from minift.train import checkpoint
from minift.train.loop import Loss, LoopConfig
from minift.train.optim import optimizers_of, set_learning_rate
from minift.train.precision import autocast

BURST = 4.0
"""Times the best smooth loss: there the sweep ends."""
SMOOTHING = 0.9


@dataclass(frozen=True)
class Sweep:
    """What a sweep saw, a value for each step."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]

    @property
    def lowest(self) -> int:
        """The step with the lowest smooth loss."""
        return min(range(len(self.smooth)), key=self.smooth.__getitem__)

    @property
    def steepest(self) -> int:
        """The step before which the smooth loss fell most, up to the lowest; the first tenth, where it is hardly an average yet, does not count."""
        first = len(self.smooth) // 10
        falls = {i: self.smooth[i - 1] - self.smooth[i] for i in range(max(1, first), self.lowest + 1)}
        return max(falls, key=falls.get, default=self.lowest)

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate with the lowest smooth loss; None if the loss never fell below where it began."""
        return self.rates[self.lowest] / 10 if self.lowest >= max(1, len(self.smooth) // 10) else None

    @property
    def open_end(self) -> bool:
        """Did the loss still fall at the highest rate?"""
        return self.lowest == len(self.smooth) - 1


def rates_between(lowest: float, highest: float, steps: int) -> list[float]:
    """Equal steps on a logarithmic axis. Raises InputError for a range that is none."""
    if not 0 < lowest < highest < math.inf:
        raise InputError(f"--lowest is {lowest:g}, --highest {highest:g}: wanted two rates above 0, the second the larger one")
    if steps < 10:
        raise InputError(f"--steps is {steps}: too few to see a curve; wanted 10 or more, 100, say")
    return [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]


def smoothed(losses: Sequence[float], beta: float = SMOOTHING) -> list[float]:
    average, result = 0.0, []
    for i, loss in enumerate(losses, 1):
        average = beta * average + (1 - beta) * loss
        result.append(average / (1 - beta**i))
    return result


def sweep(model: nn.Module, epoch_batches: Callable[[int], Sequence[Batch]], loss: Loss, config: LoopConfig, rates: Sequence[float]) -> Sweep:
    """One optimizer step at each of the rates, with config's optimizer, precision, clipping and accumulation; arguments as of `fit`.

    The model is left as it was: weights, buffers, random numbers, mode. Ends early where the loss bursts or is no number."""
    trained = [p for p in model.parameters() if p.requires_grad]
    parameters = {name: p.clone() for name, p in checkpoint.trained_parameters(model).items()}
    buffers = {name: b.clone() for name, b in checkpoint.running_buffers(model).items()}
    random_state, was_training = torch.get_rng_state(), model.training
    device, losses = next(model.parameters()).device, []
    optimizers = optimizers_of(config.optimizer, model, 1.0, config.weight_decay, config.betas, config.projection)
    torch.manual_seed(config.seed)
    try:
        model.train()
        for rate, window in zip(rates, _windows(epoch_batches, config.accumulate)):
            targets, total = max(1, sum(batch.targets for batch in window)), 0.0
            for batch in window:
                with autocast(config.precision, device.type):
                    loss_sum, _ = loss(model, batch.to(device))
                (loss_sum / targets).backward()
                total += loss_sum.item() / targets
            nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
            if not math.isfinite(total):
                break
            losses.append(total)
            smooth = smoothed(losses)
            if smooth[-1] > BURST * min(smooth):
                break
            set_learning_rate(optimizers, rate)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    finally:
        for p in trained:
            p.grad = None
        checkpoint.load_parameters(model, parameters)
        for name, buffer in checkpoint.running_buffers(model).items():
            buffer.copy_(buffers[name])
        torch.set_rng_state(random_state)
        model.train(was_training)
    if not losses:
        raise InputError("the loss of the first batch is no number: no learning rate will help. Is --precision fp32 any better?")
    return Sweep(list(rates[: len(losses)]), losses, smoothed(losses))


def _windows(epoch_batches: Callable[[int], Sequence[Batch]], accumulate: int) -> Iterator[Sequence[Batch]]:
    """The micro-batches of one optimizer step after another, epoch after epoch, without end."""
    epoch = 0
    while True:
        batches = epoch_batches(epoch)
        yield from (batches[i : i + accumulate] for i in range(0, len(batches), accumulate))
        epoch += 1
