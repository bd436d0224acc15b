"""AdamW in 8 bits: by hand, close to AdamW, smaller, and the same after a stop. Its equality with bitsandbytes is a parity test."""

import json

import pytest
import torch
from torch import nn

from minift.data.batches import Example, pad
from minift.errors import InputError
from minift.losses.sft import next_token
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.train import checkpoint, state_file
from minift.train.adamw8bit import AdamW8bit
from minift.train.loop import LoopConfig, fit
from minift.train.optim import adamw8bit
from minift_kernels.averages import decode, encode, rates_of


def weights(*shapes, dtype=torch.float32, seed=0) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]


def give_gradients(params, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)


@pytest.mark.parametrize("n", [8, 4096])                     # float32 averages, and codes
def test_first_step_worked_by_hand(n):
    # m-hat = g and v-hat = g^2, so the Adam step is lr g / |g| = lr; the decay lr * wd * w stands beside it, not inside the gradient
    p = nn.Parameter(torch.full((n,), 2.0))
    p.grad = torch.full((n,), 0.3)
    AdamW8bit([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.data, torch.full((n,), 2.0 - 0.1 * 0.5 * 2.0 - 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [8, 4096])
def test_eps_stands_outside_the_root_and_after_the_correction(n):
    # second step with g = 1e-3 both times: m-hat = 1e-3, sqrt(v-hat) = 1e-3, eps 1e-3: half a step. g is each block's absmax, code 255: exact
    p = nn.Parameter(torch.zeros(n))
    optimizer = AdamW8bit([p], lr=1.0, eps=1e-3, weight_decay=0.0, betas=(0.5, 0.75))
    for _ in range(2):
        p.grad = torch.full((n,), 1e-3)
        optimizer.step()
    torch.testing.assert_close(p.data, torch.full((n,), -1.0), rtol=1e-5, atol=0)


def test_the_rates_of_a_step_by_hand():                      # beta 0.9, 0.99; step 2: 1 - 0.81 = 0.19, sqrt(1 - 0.9801) = 0.141067
    got = rates_of(2, 0.1, (0.9, 0.99), 1e-8, 0.5)
    assert got == pytest.approx([0.9, 0.1, 0.99, 0.01, 0.141067, 1e-8, 0.95, -0.1 / 0.19], rel=1e-5)


def test_codes_worked_by_hand():
    # 1.0 is the absmax of the first block; 0.5 in the signed map: the top decade's 64 slices of 0.9 / 64 from 0.1; the nearest middle is 0.5008
    x = torch.zeros(258)
    x[0], x[1], x[2], x[256], x[257] = 1.0, 0.5, -1.0, -0.25, 0.125
    codes, absmax = encode(x, signed=True)
    assert absmax.tolist() == [1.0, 0.25]
    assert codes[:4].tolist() == [255, 127 + 64 + 28, 0, 127] and codes[256] == 0          # -1 is not in the map: its lowest is -0.99297
    middles = decode(codes, absmax, signed=True)
    assert middles[[0, 1, 2, 3]].tolist() == pytest.approx([1.0, 0.5007812, -0.9929687, 0.0], rel=1e-6)
    assert middles[256] == pytest.approx(-0.25 * 0.9929687, rel=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_comes_back_and_a_tie_takes_the_lower(signed):
    values = decode(torch.arange(256, dtype=torch.uint8), torch.ones(1), signed)
    x = values.clone()
    x[0] = x[0] if signed else 0.0
    assert torch.equal(encode(x, signed)[0], torch.arange(256, dtype=torch.uint8))
    x[10] = (values[10] + values[11]) / 2
    assert encode(x, signed)[0][10] == 10


def test_a_block_of_zeros_stays_zero():
    codes, absmax = encode(torch.zeros(300), signed=True)
    assert absmax.tolist() == [0.0, 0.0] and torch.equal(decode(codes, absmax, True), torch.zeros(300))


def test_the_states_take_two_bytes_a_weight_and_small_tensors_four_each():
    params = weights((64, 100), (4095,))
    give_gradients(params, 0)
    optimizer = AdamW8bit(params)
    optimizer.step()
    held = lambda p: sum(t.nbytes for t in optimizer.state[p].values() if isinstance(t, torch.Tensor))
    assert held(params[0]) == 2 * 6400 + 2 * 4 * 25 and held(params[1]) == 2 * 4 * 4095


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trap37_going_on_from_a_checkpoint_is_the_same_to_the_bit(tmp_path, dtype):
    def training(seed):
        model = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 3)).to(dtype)
        model.load_state_dict({name: torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for name, t in model.state_dict().items()})
        return model, [AdamW8bit([dict(params=[p for p in model.parameters() if p.ndim == i]) for i in (1, 2)], lr=1e-2)]

    def step(model, optimizers, number):
        give_gradients(list(model.parameters()), number)
        optimizers[0].step()

    model, optimizers = training(0)
    for number in range(3):
        step(model, optimizers, number)
    state_file.write(tmp_path / "one", checkpoint.state_of(model, optimizers, checkpoint.Place(3)))
    other, others = training(1)
    checkpoint.restore(checkpoint.read(tmp_path / "one"), other, others)
    for number in range(3, 6):
        step(model, optimizers, number)
        step(other, others, number)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    for p, q in zip(model.parameters(), other.parameters()):
        ours, theirs = optimizers[0].state[p], others[0].state[q]
        assert ours["step"] == theirs["step"] == 6
        for name in ours.keys() - {"step"}:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def test_a_loaded_state_is_a_copy():
    params, again = weights((4096,)), weights((4096,))
    give_gradients(params, 0)
    optimizer, other = AdamW8bit(params), AdamW8bit(again)
    optimizer.step()
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    before = other.state[again[0]]["m"].clone()
    give_gradients(params, 1)
    optimizer.step()
    assert torch.equal(other.state[again[0]]["m"], before)


def test_another_optimizer_s_state_or_another_model_s_is_refused():
    params, wide = weights((4096,)), weights((8192,))
    give_gradients(params + wide, 0)
    plain, ours, other = torch.optim.AdamW(params), AdamW8bit(params), AdamW8bit(wide)
    plain.step(), ours.step()
    with pytest.raises(InputError, match="the saved optimizer state holds exp_avg, exp_avg_sq, step, AdamW8bit's m, m_absmax, step, v, v_absmax"):
        ours.load_state_dict(plain.state_dict())
    with pytest.raises(InputError, match=r"the saved averages are of shape \(4096,\), the weight of \(8192,\): use the same model"):
        other.load_state_dict(ours.state_dict())


def test_paging_is_refused_without_a_gpu_and_weights_in_pieces_too():
    with pytest.raises(InputError, match="paged averages stay in host memory while the weights are on a GPU, and these are on cpu: take plain adamw8bit"):
        AdamW8bit(weights((5000,)), paged=True)
    with pytest.raises(InputError, match="take plain adamw8bit"):
        adamw8bit(torch.nn.Linear(80, 80), 1e-3, 0.0, (0.9, 0.99), paged=True)
    with pytest.raises(InputError, match=r"a weight of shape \(70, 80\) has strides \(1, 70\)"):
        AdamW8bit([nn.Parameter(torch.zeros(80, 70).T)])


def test_a_weight_without_gradient_is_left_alone():
    params = weights((4096,), (4096,))
    before = params[1].detach().clone()
    params[0].grad = torch.ones(4096)
    optimizer = AdamW8bit(params)
    optimizer.step()
    assert torch.equal(params[1], before) and params[1] not in optimizer.state


def small_training(folder, optimizer: str, **settings):
    """30 steps on 16 fixed texts with a model whose every matrix is above 4,096 numbers; the loss of each step, and the weights."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=128, hidden_size=64, layers=2, heads=4, kv_heads=4, head_dim=16, mlp_size=96, max_positions=32))
    draw = torch.Generator().manual_seed(1)
    texts = [Example(torch.randint(128, (24,), generator=draw).tolist(), [False] + [True] * 23) for _ in range(16)]
    batches = [pad(texts[i : i + 8]) for i in range(0, 16, 8)]
    loss = lambda model, batch: next_token(model(batch.token_ids), batch.token_ids, batch.loss_mask)
    config = LoopConfig(**{**dict(lr=5e-3, epochs=15, max_steps=30, precision="fp32", optimizer=optimizer, save_every=10), **settings})
    fit(model, lambda epoch: batches, loss, config, folder, quiet=True, resume=(folder / "checkpoints").exists())
    return [line["loss"] for line in map(json.loads, open(folder / "metrics.jsonl"))], model


def test_after_thirty_steps_the_loss_is_within_two_percent_of_adamw_s(tmp_path):
    (plain, _), (eight, _) = (small_training(tmp_path / name, name) for name in ("adamw", "adamw8bit"))
    assert plain[0] == eight[0] and plain[-1] < plain[0] - 0.5
    assert eight[-1] == pytest.approx(plain[-1], rel=0.02) and eight != plain


def test_trap37_the_loop_goes_on_with_it_to_the_bit(tmp_path):
    _, whole = small_training(tmp_path / "whole", "adamw8bit", schedule="constant", warmup=0.0)
    small_training(tmp_path / "parts", "adamw8bit", schedule="constant", warmup=0.0, max_steps=13)
    _, parts = small_training(tmp_path / "parts", "adamw8bit", schedule="constant", warmup=0.0)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))
