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
from minift.train import checkpoint, memory
from minift.train.ema import Averages
from minift.train.log import Log
from minift.train.optim import Name, Projection, Schedule, learning_rate_factor, optimizers_of, set_learning_rate
from minift.train.precision import Precision, autocast, chosen
from minift.train.profile import laps


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every recipe that trains lets you choose."""

    lr: float = 1e-3
    """Peak learning rate."""
    epochs: float = 3.0
    """Passes over the training data (a part of one is fine)."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, if that comes first."""
    accumulate: int = 1
    """Micro-batches per optimizer step; the gradient equals that of one large batch."""
    schedule: Schedule = "cosine"
    """How the rate falls after the warm-up; wsd: it stays, and falls linearly at the end."""
    cooldown: float = 0.1
    """wsd: share of the steps, the last ones, in which the rate falls."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    weight_decay: float = 0.01
    """Decoupled; not applied to norms and biases."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's two averaging rates, and Lion's; the first one is sgd's momentum."""
    optimizer: Name = "adamw"
    """adamw8bit: its averages in 8 bits, a quarter of their memory; paged: on a GPU, kept in host memory. adafactor: a row and a column in
    place of a matrix of averages. lion: one average; wants a rate 3 to 10 times smaller. sgd: with momentum. galore: averages of the leading
    directions of the matrices inside the blocks only, AdamW for the rest; trains weights themselves. muon: for training from scratch only; the
    matrices inside the blocks, AdamW for the rest."""
    galore_rank: int = 128
    """galore: directions kept of each matrix."""
    galore_every: int = 200
    """galore: optimizer steps until they are looked for anew."""
    galore_scale: float = 0.25
    """galore: the matrices' rate is this share of the rate."""
    ema: float = 0.0
    """Measure and keep the average of the weights over the steps, in which a step counts this many times as much as the next one (0.99, say); 0:
    the last weights."""
    clip: float = 1.0
    """Largest gradient norm; a longer gradient is scaled down to it. 0 turns clipping off."""
    precision: Precision = "auto"
    """auto: bf16 where a quick measurement finds it faster."""
    compile: bool = False
    """torch.compile the loss: a minute at the start, faster steps; best when all batches have one shape."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_every: int = 0
    """Optimizer steps between evaluations; 0: once per epoch."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better loss; 0: never."""
    save_every: int = 0
    """Optimizer steps between checkpoints; 0: at each evaluation."""
    seed: int = 0
    """Of the order of the data, dropout and new weights."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too (needs the package tensorboard)."""
    profile: bool = False
    """Look at a few early steps: where their time and memory go, on a page (profile.md), and a trace for Perfetto."""

    def __post_init__(self):
        """Refuse numbers that no run could mean."""
        least = {"lr": 0, "accumulate": 1, "warmup": 0, "weight_decay": 0, "clip": 0, "eval_every": 0, "patience": 0, "save_every": 0}
        for name, smallest in least.items():
            if getattr(self, name) is not None and not getattr(self, name) >= smallest:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: wanted {smallest} or more")
        if not 0 < self.epochs < math.inf or (self.max_steps is not None and self.max_steps < 1):
            raise InputError(f"--epochs {self.epochs:g}, --max-steps {self.max_steps}: wanted at least one step")
        if self.warmup > 1:
            raise InputError(f"--warmup is {self.warmup}: it is a share of the steps, wanted 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"--betas are {self.betas}: wanted two numbers from 0 to below 1")
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema is {self.ema}: wanted 0 to below 1, 0.99, say")
        if self.galore_rank < 1 or self.galore_every < 1 or not 0 < self.galore_scale < math.inf:
            raise InputError(f"--galore-rank {self.galore_rank}, --galore-every {self.galore_every}, --galore-scale {self.galore_scale}: wanted 1 or more, and above 0")
        if self.schedule == "wsd" and not 0 < self.cooldown <= 1 - self.warmup:
            raise InputError(f"--cooldown is {self.cooldown}, --warmup {self.warmup}: shares of the same steps, wanted more than 0 and together at most 1")
        for name in ("galore_rank", "galore_every", "galore_scale"):
            self._refuse_without_effect(name, self.optimizer == "galore", "--optimizer galore")
        if self.profile and self.compile:
            raise InputError("--profile tells the parts of a step apart by hooks, around which nothing is compiled: leave --compile out")
        self._refuse_without_effect("betas", self.optimizer != "adafactor", "every --optimizer but adafactor")
        self._refuse_without_effect("cooldown", self.schedule == "wsd", "--schedule wsd")

    def _refuse_without_effect(self, name: str, used: bool, owner: str) -> None:
        if not used and getattr(self, name) != getattr(type(self), name):
            raise InputError(f"--{name.replace('_', '-')} is an option of {owner}: leave it out")

    @property
    def projection(self) -> Projection:
        return Projection(self.galore_rank, self.galore_every, self.galore_scale)


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

    epoch_batches(n) gives the micro-batches of epoch n, the same ones each time it is asked. evaluate() returns named values of
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
    stateful = [*optimizers, averages] if averages else optimizers
    measured = averages.applied if averages else contextlib.nullcontext
    per_epoch, steps = planned(config, len(epoch_batches(0)))
    eval_every = config.eval_every or per_epoch
    last, best_file = folder / "checkpoints" / "last.pt", folder / "checkpoints" / "best.pt"
    step, best, bad, stopped = 0, None, 0, "finished"
    if resume:
        state = checkpoint.read(last)
        checkpoint.restore(state, model, stateful)
        step, best, bad = state["step"], state["best"], state["bad"]
    if hasattr(model, "checkpointing"):
        model.checkpointing = config.checkpointing
    compute = torch.compile(loss, dynamic=False) if config.compile else loss

    def save(path: Path) -> None:
        checkpoint.write(path, model, stateful, step, best, bad)

    random_state = torch.get_rng_state()
    bf16 = chosen(config.precision, device.type) == "bf16"
    with Log(folder, steps, step, config.tensorboard, quiet, unit) as log, laps(config.profile, folder, model, optimizers, step, steps, bf16, log.say) as lap:
        try:
            model.train()
            for window in _windows(epoch_batches, config.accumulate, per_epoch, step, steps):
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
                    raise FloatingPointError(_not_finite(total, step, per_epoch, config.accumulate, last))
                factor = learning_rate_factor(step, steps, round(config.warmup * steps), config.schedule, max(1, round(config.cooldown * steps)))
                set_learning_rate(optimizers, factor)
                for optimizer in optimizers:
                    optimizer.step()
                step += 1
                random_state = torch.get_rng_state()
                if averages:
                    averages.update()
                if after_step is not None:
                    after_step(step, steps)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                lap("optimizer")
                log.step(step, total, config.lr * factor, norm.item(), targets, metrics() if metrics is not None else {})
                if evaluate is not None and (step % eval_every == 0 or step == steps):
                    with measured():
                        values = evaluate()
                        model.train()
                        if not math.isfinite(values["loss"]):
                            raise FloatingPointError(f"the held-out loss is {values['loss']} after step {step}: training stopped; {_kept(last)}")
                        log.evaluation(step, values)
                        if counts is None or counts(step, steps):
                            best, bad = (cost(values), 0) if best is None or cost(values) < best else (best, bad + 1)
                            if bad == 0:
                                save(best_file)
                if step % (config.save_every or eval_every) == 0 or step == steps:
                    save(last)
                if step % memory.EVERY == 0:
                    memory.give_back()
                lap("between")
                if config.patience and bad >= config.patience:
                    stopped = "patience"
                    log.say(f"no better held-out loss in {bad} evaluations: stopped at step {step} of {steps}")
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
            torch.set_rng_state(random_state)                     # a step that was cut short is taken again, with the same random numbers
            for optimizer in optimizers:
                optimizer.zero_grad()
            save(last)
            log.say(f"interrupted after step {step} of {steps}; saved to {last}. Run the same command with --resume to go on")
    if averages:
        averages.into_model()
    if best is not None and stopped != "interrupted":
        checkpoint.load_parameters(model, checkpoint.read(best_file)["parameters"])
    return Outcome(step, best, stopped)


def _windows(epoch_batches, accumulate: int, per_epoch: int, step: int, steps: int) -> Iterator[Sequence[Batch]]:
    """The micro-batches of each optimizer step from `step` on; the last window of an epoch may be shorter."""
    batches, epoch = [], -1
    while step < steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            batches = epoch_batches(epoch)
        place = (step % per_epoch) * accumulate
        yield batches[place : place + accumulate]
        step += 1


def _not_finite(loss: float, step: int, per_epoch: int, accumulate: int, last: Path) -> str:
    place = step % per_epoch * accumulate
    return (
        f"the loss is {loss} at step {step + 1} (epoch {step // per_epoch + 1}, batch {place + 1}): training stopped before the weights "
        f"were touched; {_kept(last)}"
    )


def _kept(last: Path) -> str:
    kept = f"the checkpoint of an earlier step is in {last}" if last.exists() else "no checkpoint had been written yet"
    return f"{kept}. Try a lower --lr, or --precision fp32"
