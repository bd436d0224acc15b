"""What memory training needs is known from shapes, before a step is taken."""

import json

import pytest
import torch
from torch import nn

from minift import peft
from minift.data.batches import Batch
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.recipes.sft import loss
from minift.train.loop import LoopConfig, fit
from minift.train.memory_kinds import Alive, foretold, size_of, state_tensors
from minift.train.optim import Projection, optimizers_of

SHAPE = dict(vocab_size=1000, hidden_size=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_size=176, max_positions=512, tie_embeddings=False)


def made(**fields):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SHAPE, **fields}))


def kinds(folder, model, packed=True, rows=4, length=256, **settings):
    """(foretold, measured) of a run of three steps."""
    ids, mask = torch.randint(1000, (rows, length), generator=torch.Generator().manual_seed(1)), torch.ones(rows, length, dtype=torch.bool)
    batch = Batch(ids, mask, torch.zeros_like(ids) if packed else None)
    fit(model, lambda epoch: [batch] * 3 * settings.get("accumulate", 1), loss, LoopConfig(**{"epochs": 1, "precision": "fp32", "profile": True, **settings}), folder, quiet=True)
    found = json.loads((folder / "profile.json").read_text())
    return found["foretold"], found["measured"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_shapes_foretell_is_what_a_step_needs(tmp_path, method, precision, checkpointing):
    model = made()
    if method == "lora":
        peft.attach(model, peft.LoRA(rank=4, alpha=8, targets="all-linear"))
    told, measured = kinds(tmp_path, model, **{"precision": precision, "checkpointing": checkpointing})
    assert told["weights"] == measured["weights"] and told["gradients"] == measured["gradients"] and told["optimizer"] == measured["optimizer"]
    assert told["activations"] == pytest.approx(measured["activations"], rel=0.15)


def test_kinds_of_full_training_worked_by_hand(tmp_path):
    model = made()
    numbers = 2 * 1000 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64) + 64
    told, measured = kinds(tmp_path, model)
    assert measured["weights"] == measured["gradients"] == 4 * numbers
    assert measured["optimizer"] == 8 * numbers + 4 * len(list(model.parameters())) == told["optimizer"]


def test_averages_of_weights_are_the_optimizers_kind(tmp_path):
    plain, averaged = (kinds(tmp_path / str(ema), made(), ema=ema) for ema in (0.0, 0.9))
    for before, after in zip(plain, averaged):                                          # foretold, measured
        assert after["optimizer"] - before["optimizer"] == before["weights"]
        assert after["activations"] == before["activations"]


def test_checkpointing_and_the_kernels_own_mask_save_what_they_are_said_to(tmp_path):
    runs = {name: kinds(tmp_path / name, made(), **settings) for name, settings in
            {"packed": {}, "padded": {"packed": False}, "again": {"checkpointing": True}}.items()}    # fmt: skip
    for which in (0, 1):
        sizes = {name: run[which]["activations"] for name, run in runs.items()}
        assert sizes["packed"] - sizes["padded"] == pytest.approx(3 * 4 * 4 * 256 * 256, rel=0.1)        # a float32 mask for each of 3 blocks
        assert sizes["again"] < 0.6 * sizes["packed"]


@pytest.mark.parametrize("frozen_below", [1, 2])
def test_blocks_below_the_first_that_trains_keep_nothing(tmp_path, frozen_below):
    model = made()
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith("blocks.") and int(name.split(".")[1]) >= frozen_below
    told, measured = kinds(tmp_path, model)
    assert told["activations"] == pytest.approx(measured["activations"], rel=0.15)


@pytest.mark.parametrize("name, momentum", [("adamw", 0.9), ("adamw8bit", 0.9), ("adafactor", 0.9), ("lion", 0.9), ("sgd", 0.9), ("sgd", 0.0), ("galore", 0.9), ("muon", 0.9)])
def test_each_optimizers_memory_is_known_before_its_first_step(name, momentum):
    model = made()
    optimizers = optimizers_of(name, model, 1e-3, 0.01, (momentum, 0.99), Projection(rank=16))
    told = foretold(model, optimizers)["optimizer"]
    assert not state_tensors(optimizers)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    assert told == size_of(state_tensors(optimizers))


def test_the_gradients_of_an_earlier_micro_batch_are_no_activations(tmp_path):
    one, two = (kinds(tmp_path / str(n), made(), rows=1, length=64, accumulate=n)[1] for n in (1, 2))
    assert two["gradients"] == one["gradients"] > 0.5 * one["activations"]             # so that they would be seen
    assert two["activations"] == pytest.approx(one["activations"], rel=0.02)


def test_a_tied_matrix_and_a_view_are_one_piece_of_memory():
    model = made(tie_embeddings=True)
    assert foretold(model, [])["weights"] == size_of(list(model.parameters())) == size_of([*model.parameters(), model.head.weight[:3]])


def test_what_is_alive_is_counted_until_it_is_freed():
    known = torch.zeros(100)
    with Alive([known]) as alive:
        alive.watching = True
        known.add_(1).view(10, 10)
        assert alive.now == 0
        a = known + 1                                                       # 400 bytes
        b = a * 2                                                           # 400 more
        assert alive.now == alive.most == 800
        del a
        assert alive.now == 400 and alive.most == 800
        alive.forget(b)
        assert alive.now == 0
        del b
        assert alive.now == 0


def test_a_gradient_is_no_activation():
    layer, x = nn.Linear(50, 50, bias=False), torch.ones(3, 50)
    with Alive([*layer.parameters(), x]) as alive:
        layer.weight.register_post_accumulate_grad_hook(lambda p: alive.forget(p.grad))
        layer(x).sum().backward()
        assert alive.now == 0 and layer.weight.grad is not None
