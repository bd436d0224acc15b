"""The average of the weights that training passes through: less noisy than the last ones (Polyak and Juditsky 1992; corrected as Adam's averages
are, arXiv:1412.6980, section 3).

    a_t = (1 - d) (w_t + d w_t-1 + ... + d^(t-1) w_1) / (1 - d^t)         the mean of all weights so far, older ones counting less
        = a_t-1 + (1 - d) / (1 - d^t) (w_t - a_t-1)                       the same, one step at a time

Bias-corrected: the weights before training are no part of it, and a_1 = w_1. Without the division, d = 0.999 and 100 steps of
fine-tuning would leave an average that is nine tenths the untrained model. With it they leave about the mean of the 100, so nothing has to be
said of how long the run is. Only what trains is averaged. Evaluation, the best checkpoint and the result are the averages; the steps go on from
the weights. They are saved like an optimizer's state, beside it.
Proved in tests/train/test_ema.py. Left out: a warm-up of d, averaging every n-th step, averages on another device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from minift.errors import InputError
from minift.train.unbroken import unbroken


class Averages:
    """Of a model's trained parameters; float32 at least."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step, self.kept = decay, 0, None
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self.step += 1
        share = (1 - self.decay) / (1 - self.decay**self.step)                # 1 at the first step
        for name, p in self.weights.items():
            self.averages[name].lerp_(p.to(self.averages[name].dtype), share)

    @torch.no_grad()
    def into_model(self) -> None:
        """The model's weights become the averages, for good."""
        for name, p in self.weights.items():
            p.copy_(self.averages[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages for weights; after it, its own again, to the bit."""
        self.kept = {name: p.detach().clone() for name, p in self.weights.items()}
        try:
            self.into_model()
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """The model's own weights, if it has the averages now. Also for whoever catches an interruption that came before `applied` could do it."""
        with unbroken():
            for name, p in self.weights.items() if self.kept else ():
                p.copy_(self.kept[name])
            self.kept = None

    def state_dict(self) -> dict:
        return {"step": self.step, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """Raises InputError if these are no averages, or another model's."""
        saved = state.get("averages")
        if saved is None or {name: t.shape for name, t in saved.items()} != {name: t.shape for name, t in self.averages.items()}:
            raise InputError("the checkpoint holds no averages of these weights: go on with the same --ema and settings")
        self.step = state["step"]
        for name, average in self.averages.items():
            average.copy_(saved[name])
