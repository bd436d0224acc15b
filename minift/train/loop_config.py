"""The options of the loop, which every recipe that trains has: each field is an option, the text under it its help.

A number that no run could mean is refused here, and so is an option without effect (trap 22). What the options do is in loop.py and in the
files that it calls. Proved in tests/train/test_loop.py and tests/test_cli.py. Left out: options of the data and of the method, which are the
recipes' (recipes/tuning.py)."""

import math
from dataclasses import dataclass

from minift.errors import InputError
from minift.train.optim import Name, Projection, Schedule
from minift.train.precision import Precision


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
    """torch.compile the loss: half a minute at the start, ten seconds where its cache is filled, and steps no faster on the CPU that was measured (benchmarks/LOG.md)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    eval_every: int = 0
    """Optimizer steps between evaluations; 0: once per epoch."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better loss; 0: never."""
    save_every: int = 0
    """Optimizer steps between checkpoints; 0: at each evaluation."""
    keep_last: int = 2
    """Checkpoints that are kept, the newest ones: to go on from, and to go back to."""
    keep_best: int = 1
    """Checkpoints that are kept beside them, those of the best evaluations; the very best one is the result."""
    seed: int = 0
    """Of the order of the data, dropout and new weights."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too (needs the package tensorboard)."""
    profile: bool = False
    """Look at a few early steps: where their time and memory go, on a page (profile.md), and a trace for Perfetto."""

    def __post_init__(self):
        """Refuse numbers that no run could mean."""
        least = {"lr": 0, "accumulate": 1, "warmup": 0, "weight_decay": 0, "clip": 0, "eval_every": 0, "patience": 0, "save_every": 0, "keep_last": 1, "keep_best": 1}
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
