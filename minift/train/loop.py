"""The training loop: the only one.

    for each optimizer step:
        for each of its micro-batches:   loss_sum / (targets of the whole step)  -> backward
        clip the gradient, set the learning rate, step

Losses come as sums and counts, and the division is by the targets of the whole step. So 1 batch of 8, 2 of 4 and 8 of 1 give the
same gradient (trap 1), and the last, shorter window of an epoch is scaled by its own tokens (trap 2).
The loop knows no method: which parameters train, what the loss is and how to evaluate come from the recipe.
Proved in tests/train/test_loop.py. Left out: float16 loss scaling, several devices (yet)."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from minift.data.batches import Batch
from minift.errors import InputError
from minift.train import checkpoint, fingerprint, memory
from minift.train.alone import alone
from minift.train.checkpoint import Place, random_state
from minift.train.ema import Averages
from minift.train.kept import Checkpoints
from minift.train.log import Log
from minift.train.loop_config import LoopConfig
from minift.train.optim import learning_rate_factor, optimizers_of, set_learning_rate
from minift.train.precision import autocast, chosen
from minift.train.profile import laps
from minift.train.unbroken import unbroken


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    steps: int
    """Optimizer steps taken."""
    best: float | None
    """The least cost of an evaluation, its loss unless said, whose weights the model holds at the end; None without evaluation."""
    stopped: Literal["finished", "patience", "interrupted"]


Loss = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""(model, batch) -> (sum over targets, number of targets)"""


def planned(config: LoopConfig, micro_batches: int) -> tuple[int, int]:
    """(optimizer steps of an epoch of so many micro-batches, of the whole run)."""
    per_epoch = math.ceil(micro_batches / config.accumulate)
    return per_epoch, min(math.ceil(per_epoch * config.epochs), config.max_steps or math.inf)


def fit(
    model: nn.Module,
    epoch_batches: Callable[[int], Sequence[Batch]],
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    evaluate: Callable[[], dict[str, float]] | None = None,
    resume: bool = False,
    quiet: bool = False,
    after_step: Callable[[int, int], None] | None = None,
    counts: Callable[[int, int], bool] | None = None,
    metrics: Callable[[], dict[str, float]] | None = None,
    unit: str = "tokens",
    cost: Callable[[dict[str, float]], float] = itemgetter("loss"),
) -> Outcome:
    """Train the model's trainable parameters in place.

    epoch_batches(n) gives the micro-batches of epoch n, the same ones each time it is asked, as many in each. evaluate() returns named values of
    whose cost (the "loss", unless said) the best one has least of. after_step(step, steps) is called while the gradients are still there. An evaluation at which
    counts(step, steps) is False cannot be the best one. metrics() is asked after each step for what else its line should hold; unit: what
    a batch's targets are. Checkpoints and metrics.jsonl go to `folder`. Raises FloatingPointError at a loss that is not
    finite, before it reaches the weights."""
    torch.manual_seed(config.seed)
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("nothing to train: every parameter is frozen")
    optimizers = optimizers_of(config.optimizer, model, config.lr, config.weight_decay, config.betas, config.projection)
    averages = Averages(model, config.ema) if config.ema else None
    memory.keep()
    holes = memory.Holes()
    stateful = [*optimizers, averages] if averages else optimizers
    measured = averages.applied if averages else contextlib.nullcontext
    first = epoch_batches(0)
    (per_epoch, steps), data = planned(config, len(first)), fingerprint.fingerprint(first)
    del first
    eval_every = config.eval_every or per_epoch
    place, said, stopped = Place(), [], "finished"
    with alone(folder):
        kept = Checkpoints(folder, config.keep_last, config.keep_best)
        if resume:
            place, extra = kept.restore(model, stateful, said.append)
            fingerprint.compare(extra.get("data"), data)
        else:
            kept.begin()
    random = random_state(device)                                             # of the next step's start: what an interrupted one begins with again
    if hasattr(model, "checkpointing"):
        model.checkpointing = config.checkpointing
    compute = torch.compile(loss, dynamic=False) if config.compile else loss
    due = lambda: evaluate is not None and (place.step % eval_every == 0 or place.step == steps)
    tired = lambda: config.patience and place.bad >= config.patience

    def save() -> Path:
        return kept.write(checkpoint.state_of(model, stateful, place, random, {"data": data}))

    def look() -> None:
        """Evaluate the weights, and take note of how good they are."""
        nonlocal random
        with measured():
            values = evaluate()
        model.train()
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the held-out loss is {values['loss']} after step {place.step}: training stopped; {_way_on(kept)}")
        with unbroken():
            log.evaluation(place.step, values)
            place.evaluated = place.step
            if (counts is None or counts(place.step, steps)) and math.isfinite(score := float(cost(values))):     # of equal rows there is no correlation
                place.score = score
                place.best, place.bad = (place.score, 0) if place.best is None or place.score < place.best else (place.best, place.bad + 1)
            random = random_state(device)

    bf16 = chosen(config.precision, device.type) == "bf16"
    with alone(folder), Log(folder, steps, place.step, config.tensorboard, quiet, unit) as log, laps(
        config.profile, folder, model, optimizers, averages, place.step, steps, bf16, log.say
    ) as lap:
        for text in said:
            log.say(text)
        try:
            model.train()
            if place.evaluated < place.step and due():                        # interrupted before or in that evaluation
                look()
                save()
            for window in () if tired() else _windows(epoch_batches, config.accumulate, per_epoch, place.step, steps):
                targets = max(1, sum(batch.targets for batch in window))
                total = 0.0
                for batch in window:
                    batch = batch.to(device)
                    lap("data")
                    with autocast(config.precision, device.type):
                        loss_sum, _ = compute(model, batch)
                    lap("loss")                                   # the forward pass too, unless it is profiled: profile.py has a hook at its end
                    (loss_sum / targets).backward()
                    total += loss_sum.item() / targets
                    lap("backward")
                norm = nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
                if not math.isfinite(total) or not torch.isfinite(norm):
                    raise FloatingPointError(_not_finite(total, place.step, per_epoch, config.accumulate, kept))
                factor = learning_rate_factor(place.step, steps, round(config.warmup * steps), config.schedule, max(1, round(config.cooldown * steps)))
                set_learning_rate(optimizers, factor)
                with unbroken():
                    for optimizer in optimizers:
                        optimizer.step()
                    place.step, place.score, random = place.step + 1, None, random_state(device)
                    if averages:
                        averages.update()
                    if after_step is not None:
                        after_step(place.step, steps)
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                    lap("optimizer")
                    log.step(place.step, total, config.lr * factor, norm.item(), targets, metrics() if metrics is not None else {})
                if due():
                    look()
                if place.step % (config.save_every or eval_every) == 0 or place.step == steps or kept.is_good(place.score):
                    save()
                holes.step()
                lap("between")
                if tired():
                    break
            if tired():
                stopped = "patience"
                log.say(f"no better held-out loss in {place.bad} evaluations: stopped at step {place.step} of {steps}")
        except KeyboardInterrupt:
            stopped = "interrupted"
            for optimizer in optimizers:
                optimizer.zero_grad()
            if averages:
                averages.restore()
            way_on = ". Run the same command with --resume to go on" if hasattr(config, "resume") else ""             # quickstart has no such option
            log.say(f"interrupted after step {place.step} of {steps}; saved to {save()}{way_on}")
    if place.best is not None and stopped != "interrupted" and kept.best_step() != place.step:
        state = kept.best(("parameters", "optimizers") if averages else ("parameters",))
        checkpoint.load_parameters(model, state["parameters"])
        if averages:
            averages.load_state_dict(state["optimizers"][-1])
    if averages:
        averages.into_model()
    memory.give_back()
    return Outcome(place.step, place.best, stopped)


def _windows(epoch_batches, accumulate: int, per_epoch: int, step: int, steps: int) -> Iterator[Sequence[Batch]]:
    """The micro-batches of each optimizer step from `step` on; the last window of an epoch may be shorter. ValueError for an epoch of more or fewer steps than the first."""
    batches, epoch = [], -1
    while step < steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = epoch_batches(epoch)
            if math.ceil(len(batches) / accumulate) != per_epoch:
                raise ValueError(f"epoch {epoch} has {len(batches)} micro-batches, {math.ceil(len(batches) / accumulate)} steps of {accumulate}; the first had {per_epoch} steps")
        place = (step % per_epoch) * accumulate
        yield batches[place : place + accumulate]
        step += 1


def _not_finite(loss: float, step: int, per_epoch: int, accumulate: int, kept: Checkpoints) -> str:
    place = step % per_epoch * accumulate
    return (
        f"the loss is {loss} at step {step + 1} (epoch {step // per_epoch + 1}, batch {place + 1}): training stopped before the weights "
        f"were touched; {_way_on(kept)}"
    )


def _way_on(kept: Checkpoints) -> str:
    return f"{kept.kept()}. Try a lower --lr, or --precision fp32"
