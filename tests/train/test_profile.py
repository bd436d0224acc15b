"""The profile tells where time and arithmetic went, and changes nothing."""

import gzip
import json
import time

import pytest
import torch

from minift import peft
from minift.data.batches import Batch
from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.recipes.sft import loss
from minift.train import flops
from minift.train.loop import LoopConfig, fit
from minift.train.profile import PARTS, chosen

V, C, M, H, KV, D, L = 97, 24, 40, 3, 1, 8, 2
SHAPE = dict(vocab_size=V, hidden_size=C, layers=L, heads=H, kv_heads=KV, head_dim=D, mlp_size=M, max_positions=512, tie_embeddings=False)
IN_LINEARS = L * (C * H * D + 2 * C * KV * D + H * D * C + 3 * C * M)      # 2 x 4,416
B, T = 5, 13


def made(**fields):
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**SHAPE, **fields}))


def batches(steps, rows=B, length=T, vocab=V):
    dice = torch.Generator().manual_seed(1)
    ids = [torch.randint(vocab, (rows, length), generator=dice) for _ in range(steps)]
    return [Batch(some, torch.ones(rows, length, dtype=torch.bool)) for some in ids]


def profiled(folder, model, data, **settings):
    """What profile.json says of a run over these batches."""
    outcome = fit(model, lambda epoch: data, loss, LoopConfig(**{"epochs": 1, "precision": "fp32", "profile": True, **settings}), folder, quiet=True)
    assert outcome.stopped == "finished"
    return json.loads((folder / "profile.json").read_text())


def test_which_steps_are_looked_at():
    assert chosen(0, 100) == (range(3, 7), 7, 8) and chosen(20, 100) == (range(23, 27), 27, 28)
    assert chosen(0, 7) == (range(1, 5), 5, 6) and chosen(0, 5) == (range(0, 3), 3, 4) and chosen(0, 3) == (range(0, 1), 1, 2)
    assert chosen(0, 2) is None and chosen(98, 100) is None


def test_the_arithmetic_of_full_training_worked_by_hand(tmp_path):
    """Every number of a linear: 2 FLOP a token forward, 2 for the gradient of what came in, 2 for its own. Attention: q k and p v are 2 T D each for a
    head and token, and the backward pass twice that. The first position of a row is no target, so T - 1 of them meet the head."""
    found = profiled(tmp_path, made(), batches(9))
    attention = L * B * H * T * T * D * 2 * 2 * 3
    assert found["flop"] == 6 * (B * T * IN_LINEARS + B * (T - 1) * V * C) + attention
    assert found["counted_tokens"] == found["tokens"] == B * T


def test_frozen_weights_have_no_gradient_of_their_own_to_compute(tmp_path):
    model = made()
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith("blocks.1.mlp.down")
    found = profiled(tmp_path, model, batches(9))
    forward = 2 * (B * T * IN_LINEARS + B * (T - 1) * V * C) + L * B * H * T * T * D * 4
    assert found["flop"] == forward + 2 * B * (T - 1) * V * C + 2 * B * T * C * M     # back through the head, and the one matrix's own


def test_a_second_forward_pass_is_counted(tmp_path):
    plain, again = (profiled(tmp_path / name, made(), batches(9), checkpointing=name == "again")["flop"] for name in ("plain", "again"))
    down = 2 * B * T * L * M * C                                            # a block's last product is not needed a second time
    assert again - plain == 2 * B * T * IN_LINEARS + L * B * H * T * T * D * 4 - down


def test_micro_batches_are_all_counted(tmp_path):
    one = profiled(tmp_path / "one", made(), batches(9))
    three = profiled(tmp_path / "three", made(), batches(27), accumulate=3)
    assert three["flop"] == 3 * one["flop"] and three["tokens"] == 3 * B * T
    assert three["measured"]["gradients"] == one["measured"]["gradients"]
    assert three["measured"]["activations"] < 1.3 * one["measured"]["activations"]       # one micro-batch at a time


def test_the_parts_add_up_to_the_steps_wall_time(tmp_path):
    ends = []
    model = made(hidden_size=96, mlp_size=200, vocab_size=500)
    settings = LoopConfig(epochs=1, precision="fp32", profile=True)
    fit(model, lambda epoch: batches(9, 8, 128, 500), loss, settings, tmp_path, quiet=True, after_step=lambda step, steps: ends.append(time.perf_counter()))
    found = json.loads((tmp_path / "profile.json").read_text())
    wall = 1000 * (ends[6] - ends[2]) / 4                                   # from the end of step 3 to that of step 7
    assert sum(found["ms"].values()) == pytest.approx(wall, rel=0.1)
    assert list(found["ms"]) == list(PARTS) and all(ms > 0 for ms in found["ms"].values())


def test_time_is_told_to_the_part_that_took_it(tmp_path, monkeypatch):
    """Each part is made to wait, another time each."""
    model = made()

    class Slow(Batch):
        def to(self, device):
            time.sleep(0.02)
            return self

    def slow_loss(model, batch):
        total, count = loss(model, batch)
        time.sleep(0.06)
        total.register_hook(lambda g: time.sleep(0.08))
        return total, count

    model.blocks[1].register_forward_hook(lambda *_: time.sleep(0.04))
    data = [Slow(batch.token_ids, batch.loss_mask) for batch in batches(5)]
    settings = LoopConfig(epochs=1, precision="fp32", profile=True)
    fit(model, lambda epoch: data, slow_loss, settings, tmp_path, quiet=True, after_step=lambda step, steps: time.sleep(0.1))
    ms = json.loads((tmp_path / "profile.json").read_text())["ms"]
    waits = dict(zip(PARTS, (20, 40, 60, 80, 100)))
    assert all(slept <= ms[part] for part, slept in waits.items()), ms                 # a part that is told to another falls short
    assert sum(ms[part] for part in waits) < 2 * sum(waits.values()), ms               # nor is one told twice; a busy machine may add its own


@pytest.mark.parametrize("settings", [dict(), dict(checkpointing=True, accumulate=2), dict(precision="bf16")])
def test_a_profiled_run_computes_the_same_to_the_bit(tmp_path, settings):
    ends = []
    for profile in (False, True):
        model = made(dropout=0.1)
        peft.attach(model, peft.LoRA(rank=2, alpha=4, targets="all-linear"))
        fit(model, lambda epoch: batches(24), loss, LoopConfig(**{"epochs": 1, "precision": "fp32", **settings}, profile=profile), tmp_path / str(profile), quiet=True)
        ends.append({name: p.clone() for name, p in model.named_parameters() if p.requires_grad})
        lines = [json.loads(line) for line in open(tmp_path / str(profile) / "metrics.jsonl")]
        ends.append([(line["loss"], line["grad_norm"]) for line in lines])
    assert ends[1] == ends[3] and all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())           # nothing stays on the model


def test_the_trace_is_one_that_perfetto_reads(tmp_path):
    found = profiled(tmp_path, made(), batches(9))
    with gzip.open(tmp_path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"aten::mm", "aten::_scaled_dot_product_flash_attention_for_cpu"} <= names and "Optimizer.step#AdamW.step" in names
    assert len(found["operators"]) == 10 and found["operators"] == sorted(found["operators"], key=lambda row: -row[2])
    assert 0 < found["products_ms"] < found["traced_ms"]


def test_too_short_a_run_says_so_and_goes_on(tmp_path, capsys):
    outcome = fit(made(), lambda epoch: batches(2), loss, LoopConfig(epochs=1, precision="fp32", profile=True), tmp_path)
    assert outcome.steps == 2 and "2 steps are too few" in capsys.readouterr().out and not (tmp_path / "profile.json").exists()


def test_a_run_that_stops_in_its_profile_leaves_no_page_and_nothing_switched_on(tmp_path):
    def stop(step, steps):
        if step == 8:
            raise KeyboardInterrupt

    model = made()
    settings = LoopConfig(epochs=1, precision="fp32", profile=True)
    assert fit(model, lambda epoch: batches(9), loss, settings, tmp_path, quiet=True, after_step=stop).stopped == "interrupted"
    assert not (tmp_path / "profile.json").exists() and not any(module._forward_hooks for module in model.modules())
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_profile_and_compile_exclude_each_other():
    with pytest.raises(InputError, match="leave --compile out"):
        LoopConfig(profile=True, compile=True)


def test_the_peak_is_at_least_what_one_product_reaches_and_draws_no_random_number():
    state = torch.get_rng_state()
    peak = flops.matmul_peak(torch.float32, torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state())
    a = torch.ones(512, 512)
    best = min(flops._timed(a) for _ in range(5))
    assert peak > 0.5 * 2 * 512**3 / best
