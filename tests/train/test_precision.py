import contextlib
import itertools

import pytest
import torch
from torch import nn

from minift.models.rope import rotation
from minift.train import precision
from minift.train.precision import autocast, fastest
from tests.conftest import random_model


@pytest.fixture
def timed(monkeypatch):
    """Pretend that a product takes this long in float32, then in bfloat16."""

    def pretend(fp32, bf16):
        fastest.cache_clear()
        ticks = itertools.accumulate(itertools.chain.from_iterable((0, seconds) for seconds in [fp32] * 8 + [bf16] * 8))
        monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))

    monkeypatch.setattr(precision, "_recalled", {})                          # of runs that other tests took up again
    yield pretend
    fastest.cache_clear()


@pytest.mark.parametrize("fp32, bf16, chosen", [(1.3, 1.0, "bf16"), (1.1, 1.0, "fp32"), (1.0, 3.0, "fp32")])
def test_bfloat16_must_win_by_a_fifth(timed, fp32, bf16, chosen):
    timed(fp32, bf16)
    assert fastest() == chosen


def test_it_is_measured_once(timed):
    timed(2.0, 1.0)
    assert fastest() == fastest() == "bf16"                                        # a second measurement would run out of ticks


def test_other_devices_are_not_measured(monkeypatch):
    monkeypatch.setattr(precision.time, "perf_counter", lambda: 1 / 0)
    assert fastest("cuda") == "bf16"


def test_bf16_computes_products_in_bfloat16_and_leaves_weights_and_gradients_in_float32():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with autocast("bf16"):
        y = layer(x)
    y.float().sum().backward()
    assert (y.dtype, layer.weight.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_fp32_changes_nothing():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with autocast("fp32") as context:
        assert context is None and torch.equal(layer(x), x @ layer.weight.T + layer.bias)
    assert isinstance(autocast("fp32"), contextlib.nullcontext)


@pytest.mark.parametrize("measured, dtype", [((2.0, 1.0), torch.bfloat16), ((1.0, 2.0), torch.float32)])
def test_auto_takes_what_was_measured(timed, measured, dtype):
    timed(*measured)
    with autocast("auto"):
        assert nn.Linear(3, 2)(torch.randn(4, 3)).dtype == dtype


def test_trap35_positions_survive_autocast(small_tokenizer):
    """autocast rounds products only: rotations of far positions stay exact (integers beyond 256 are no bfloat16 numbers)."""
    config, far = random_model(small_tokenizer).config, torch.tensor([[15_000, 15_001]])
    with autocast("bf16"):
        inside = rotation(config, far)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(inside, rotation(config, far)))


def test_what_was_recalled_is_not_measured_again(monkeypatch):
    monkeypatch.setattr(precision, "_recalled", {})
    monkeypatch.setattr(precision.time, "perf_counter", lambda: 1 / 0)
    precision.recall("cpu", "bf16")
    assert precision.chosen("auto") == "bf16" and precision.chosen("fp32") == "fp32"
    with autocast("auto"):
        assert torch.is_autocast_enabled("cpu")
