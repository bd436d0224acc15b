"""AdamW by hand, the schedule by hand, and who is decayed."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from minift import peft
from minift.models.config import ModelConfig
from minift.models.scorer import Scorer
from minift.models.transformer import Transformer
from minift.train.adamw import AdamW
from minift.train.optim import adamw, inner_and_outer, learning_rate_factor, muon, parameter_groups


def test_adamw_first_step_worked_by_hand():
    # m-hat = g, v-hat = g^2, so the Adam step is lr * g / |g| = lr; the decay is lr * wd * w beside it, not inside the gradient
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    layer.weight.grad = torch.full((1, 1), 0.3)
    adamw(layer, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))[0].step()
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1, abs=1e-6)


def test_adamw_is_torchs_to_the_bit_and_goes_on_from_its_state():
    """Weights of two dtypes in one group, one that gets a gradient now and then, a rate that changes; then each goes on from the other's state."""
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7, dtype=torch.bfloat16), torch.randn(4, 2)]
    sides = []
    for kind, more in ((AdamW, {}), (torch.optim.AdamW, {"fused": True})):
        weights = [nn.Parameter(w.clone()) for w in start]
        sides.append((weights, kind([{"params": weights}], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, **more)))

    def steps(first: int) -> None:
        for number in range(first, first + 4):
            gradients = [torch.randn_like(w) if index < 2 or number % 2 else None for index, w in enumerate(start)]
            for weights, optimizer in sides:
                optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
                for w, g in zip(weights, gradients):
                    w.grad = g
                optimizer.step()
        assert all(torch.equal(our, their) for our, their in zip(sides[0][0], sides[1][0]))

    steps(0)
    saved = [optimizer.state_dict() for _, optimizer in sides]
    sides[0][1].load_state_dict(saved[1])
    sides[1][1].load_state_dict(saved[0])
    steps(4)


def test_a_grad_scaler_skips_what_is_infinite_and_divides_the_rest():
    w = nn.Parameter(torch.ones(2))
    optimizer, scaler = AdamW([w], lr=0.1, weight_decay=0.0), torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, moved in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((factor * w).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(w.detach(), torch.ones(2)) != moved and w.isfinite().all()
    torch.testing.assert_close(optimizer.state[w]["exp_avg"], torch.full((2,), 0.1))          # 0.1 times the gradient, which is 1 unscaled


def test_steps_are_counted_in_float32_whatever_the_default_is():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        w = nn.Parameter(torch.ones(2))
        optimizer = AdamW([w])
        for _ in range(300):
            w.grad = torch.ones(2)
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert optimizer.state[w]["step"].item() == 300


COLD = """
import sys, torch
from minift.train.optim import optimizers_of
for name in ("adamw", "adamw8bit", "lion", "adafactor"):
    layer = torch.nn.Linear(300, 300)
    (optimizer,) = optimizers_of(name, layer, 1e-3, 0.1, (0.9, 0.99))
    layer(torch.ones(2, 300)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_no_step_waits_for_torchs_compiler():
    assert subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True).stdout == "False\n"


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    decayed, kept = parameter_groups(model, lr=1.0, weight_decay=0.1)
    assert [p.ndim for p in decayed["params"]] == [2, 2] and decayed["weight_decay"] == 0.1
    assert [p.ndim for p in kept["params"]] == [1, 1, 1] and kept["weight_decay"] == 0.0


def test_frozen_parameters_are_in_no_group():
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    assert [p is model.bias for group in parameter_groups(model, 1.0, 0.1) for p in group["params"]] == [True]


def test_warm_up_then_each_schedules_middle_and_end():
    factors = lambda kind: [learning_rate_factor(s, steps=12, warmup=2, schedule=kind) for s in range(12)]
    assert factors("cosine")[:3] == [0.5, 1.0, 1.0]
    assert factors("linear")[2:] == pytest.approx([1 - i / 10 for i in range(10)])     # the last step takes a tenth; the one after it would take 0
    assert factors("cosine")[7] == pytest.approx(0.5) and factors("cosine")[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 10)))
    assert factors("constant")[2:] == [1.0] * 10


def test_wsd_warms_up_stays_and_falls_at_the_end():
    factors = lambda **more: [learning_rate_factor(s, steps=10, schedule="wsd", **more) for s in range(10)]
    assert factors(warmup=2, cooldown=4) == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(warmup=0, cooldown=1) == [1] * 10                                  # falls from 1 to 0 in one step, which is the one after the last
    assert factors(warmup=6, cooldown=8)[5:] == [1, 1, 0.75, 0.5, 0.25]               # no room for all: it falls when it is warm


def test_no_step_of_any_schedule_is_wasted():
    for schedule in ("cosine", "linear", "wsd", "constant"):
        for steps, warmup in ((1, 0), (1, 1), (2, 1), (30, 2), (7, 7)):
            assert all(learning_rate_factor(s, steps, warmup, schedule, cooldown=3) > 0 for s in range(steps)), (schedule, steps)


def test_muon_takes_the_inner_matrices_and_adamw_the_rest():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks, self.norm = nn.Embedding(7, 4), nn.ModuleList([nn.Linear(4, 4)]), nn.LayerNorm(4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    model = Tiny()
    matrices, rest = muon(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))
    ids = lambda optimizer: {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert ids(matrices) == {id(model.blocks[0].weight)}
    assert ids(rest) == {id(p) for p in model.parameters()} - ids(matrices)


@pytest.mark.parametrize("scores", [0, 3], ids=["head", "scores"])
def test_a_head_of_its_own_is_no_inner_matrix_also_where_a_method_is_attached(scores):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=20, hidden_size=8, layers=1, heads=2, kv_heads=2, head_dim=4, mlp_size=12, max_positions=16, tie_embeddings=False, labels=scores)
    model = Scorer(config) if scores else Transformer(config)
    peft.attach(model, peft.Full(keep_base=False))
    inner, rest = inner_and_outer(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert inner and all("blocks." in names[id(p)] for p in inner)
    assert any(("score" if scores else "head") in names[id(p)] for p in rest)
