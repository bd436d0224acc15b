"""Optimizers and schedules beside transformers', torch's and bitsandbytes', in float64 where they can."""

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
from transformers.optimization import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from minift.train.adafactor import Adafactor
from minift.train.lion import Lion
from minift.train.optim import learning_rate_factor

SHAPES = [(5, 7), (7, 5), (1, 6), (9,), (2, 3, 4)]
"""Factored over the last two axes, or not at all."""


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def descend(make, steps=8, shapes=SHAPES, before=lambda optimizer, params: None, dtype=torch.float64, scale=1.0):
    params = [nn.Parameter(draw(shape, place, dtype)) for place, shape in enumerate(shapes)]
    optimizer = make(params)
    for step in range(steps):
        for place, p in enumerate(params):
            p.grad = draw(p.shape, 100 * step + place + 50, dtype) * scale * (1 + 9 * (step % 3 == 1))    # some steps are long enough to be clipped
        before(optimizer, params)
        optimizer.step()
    return params


def all_close(ours, theirs, atol=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [1.0, 0.7, 1e9])
def test_adafactor_is_that_of_transformers(clip, decay):
    theirs = descend(lambda params: transformers.optimization.Adafactor(
        params, lr=0.03, clip_threshold=clip, weight_decay=decay, scale_parameter=False, relative_step=False))    # fmt: skip
    all_close(descend(lambda params: Adafactor(params, lr=0.03, clip=clip, weight_decay=decay)), theirs)


def test_adafactor_with_bfloat16_weights_is_that_of_transformers_but_for_the_last_rounding():
    theirs = descend(lambda params: transformers.optimization.Adafactor(params, lr=0.03, scale_parameter=False, relative_step=False), dtype=torch.bfloat16)
    ours = descend(lambda params: Adafactor(params, lr=0.03), dtype=torch.bfloat16)
    all_close(ours, theirs, atol=2**-7)                                               # one step of bfloat16 at the largest weights, near 2


def test_adafactor_is_torchs_at_torchs_relative_rates():
    """torch's takes max(1e-3, rms(w)) min(lr, 1 / sqrt(t)), a rate for each weight. Given that rate, ours is the same."""
    eps = (1e-30, 1e-3)
    theirs = descend(lambda params: torch.optim.Adafactor(params, lr=0.5, eps=eps, d=1.0, weight_decay=0.0, foreach=False))
    step = 0

    def relative(optimizer, params):
        nonlocal step
        step += 1
        for group, p in zip(optimizer.param_groups, params):
            group["lr"] = max(1e-3, p.detach().square().mean().sqrt().item()) * min(0.5, step**-0.5)

    all_close(descend(lambda params: Adafactor([{"params": [p]} for p in params]), before=relative), theirs, atol=1e-11)


def test_lion_is_that_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    how = dict(lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)
    theirs = descend(lambda params: bnb.optim.Lion32bit(params, **how), dtype=torch.float32)
    all_close(descend(lambda params: Lion(params, **how), dtype=torch.float32), theirs, atol=1e-6)


@pytest.mark.parametrize("steps, warmup", [(20, 4), (7, 0), (3, 1)])
def test_from_the_warm_up_on_the_rate_is_that_of_transformers_at_every_step(steps, warmup):
    optimizer = lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "cosine": get_cosine_schedule_with_warmup(optimizer(), warmup, steps),
        "linear": get_linear_schedule_with_warmup(optimizer(), warmup, steps),
        "wsd": get_wsd_schedule(optimizer(), warmup, 2, steps, decay_type="linear"),
    }
    for name, scheduler in theirs.items():
        for step in range(steps):
            if step >= warmup:
                assert learning_rate_factor(step, steps, warmup, name, cooldown=2) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), (name, step)
            scheduler.optimizer.step()
            scheduler.step()
