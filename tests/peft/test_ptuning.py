"""P-tuning: the networks that write the virtual tokens, and the table that is left of them. The door: tests/models/test_virtual.py."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def small(model, name="default"):
    return model.virtual.adapters[name]


def attached(make=llama, **choices):
    model = make()
    peft.attach(model, peft.PTuning(length=3, **choices))
    return filled(model)


def test_the_mlps_equation():
    encoder = small(attached(encoder="mlp", hidden_size=5))
    x, parameters = encoder.table, list(encoder.mlp.parameters())
    assert [tuple(p.shape) for p in parameters] == [(5, 12), (5,), (5, 5), (5,), (12, 5), (12,)]
    for place in (0, 2):
        x = F.relu(F.linear(x, parameters[place], parameters[place + 1]))
    torch.testing.assert_close(encoder.rows(), F.linear(x, *parameters[4:]))


def test_the_lstms_equation_worked_step_by_step():
    """One layer: each direction carries h and c along the V rows; gates are stored input, forget, cell, output."""
    encoder = small(attached(hidden_size=4, lstm_layers=1))
    x, lstm = encoder.table, encoder.lstm

    def direction(rows, end):
        W, U, b, d = (getattr(lstm, f"{kind}_l0{end}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, c, out = torch.zeros(4), torch.zeros(4), []
        for row in rows:
            i, f, g, o = (W @ row + b + U @ h + d).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out)

    both = torch.cat([direction(x, ""), direction(x.flip(0), "_reverse").flip(0)], dim=-1)          # (3, 8)
    up, _, down = encoder.mlp
    torch.testing.assert_close(encoder.rows(), down(F.relu(up(both))))


def test_the_papers_encoder_is_two_layers_of_half_the_width_both_ways():
    encoder = small(attached())
    assert (encoder.lstm.hidden_size, encoder.lstm.num_layers, encoder.lstm.bidirectional) == (6, 2, True)
    assert [tuple(p.shape) for p in encoder.mlp.parameters()] == [(12, 12), (12,), (12, 12), (12,)]


def test_one_rows_loss_moves_every_row_through_the_lstm_and_only_itself_without():
    for encoder, wanted in (("lstm", [True] * 3), ("mlp", [False, True, False])):
        model = attached(encoder=encoder)
        small(model).rows()[1].sum().backward()
        assert (small(model).table.grad.abs().amax(dim=1) > 0).tolist() == wanted


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("encoder", ["lstm", "mlp", "none"])
def test_only_table_and_network_learn_and_the_base_comes_back_exactly(make, encoder):
    model = make()
    before = model(IDS)
    peft.attach(model, peft.PTuning(length=3, encoder=encoder))
    assert all(".adapters." in name for name, p in model.named_parameters() if p.requires_grad)
    after = filled(model)(IDS)
    assert (after - before).abs().max() > 1e-3 and after.shape == before.shape
    after.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in small(model).parameters())
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("encoder, kind", [("lstm", "LSTM"), ("mlp", "MLP"), ("none", "MLP")])
def test_a_file_holds_the_table_the_network_wrote(encoder, kind, tmp_path):
    model = attached(encoder=encoder, hidden_size=5)
    after, written = model(IDS), generate_ids(model, [[3, 1], [4]], max_new_tokens=4, eos_ids=())
    peft.save(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {"prompt_embeddings": (3, 12)}
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = dict(peft_type="P_TUNING", num_virtual_tokens=3, token_dim=12, encoder_reparameterization_type=kind, encoder_hidden_size=5)
    assert wanted.items() <= fields.items() and fields["encoder_num_layers"] == 2
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after) and generate_ids(model, [[3, 1], [4]], max_new_tokens=4, eos_ids=()) == written
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["virtual.adapters.default.table"]


def test_dropout_acts_between_the_layers_in_training_only():
    model = attached(dropout=0.5)
    assert not torch.equal(model.train()(IDS), model(IDS))
    assert torch.equal(model.eval()(IDS), model(IDS))


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_trap33_gradients_are_the_same_with_checkpointing(encoder):
    gradients, model = [], attached(gpt2, encoder=encoder)
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(IDS).square().sum().backward()
        gradients.append([p.grad.clone() for p in small(model).parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_trap34_over_a_bfloat16_base_and_under_autocast_gradients_are_float32(encoder):
    model = attached(encoder=encoder)
    exact = model(IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(IDS)
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    half = llama().to(torch.bfloat16)
    peft.attach(half, peft.PTuning(length=3, encoder=encoder))
    assert half(IDS).dtype == torch.bfloat16
    (rounded.float().square().sum() + half(IDS).float().square().sum()).backward()
    for one in (model, half):
        assert {(p.dtype, p.grad.dtype) for p in small(one).parameters()} == {(torch.float32, torch.float32)}


def test_it_cannot_be_merged():
    with pytest.raises(InputError, match="not inside a weight, so there is nothing to merge"):
        peft.merge(attached())


def test_a_model_without_the_door_or_without_room_is_refused():
    with pytest.raises(InputError, match="P-tuning puts virtual tokens in front of the text, and Sequential has no door"):
        peft.attach(nn.Sequential(nn.Linear(3, 2)), peft.PTuning())
    with pytest.raises(InputError, match="a prompt longer than the context: 20 virtual tokens"):
        peft.attach(llama(), peft.PTuning())


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(length=-1), "P-tuning length is -1"),
        (dict(encoder="gru"), 'choose "lstm", "mlp" or "none"'),
        (dict(hidden_size=0), "hidden_size is 0"),
        (dict(lstm_layers=0), "lstm_layers is 0"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(encoder="mlp", dropout=0.1), "acts between the layers of an LSTM, of which there are none"),
        (dict(lstm_layers=1, dropout=0.1), "acts between the layers of an LSTM, of which there are none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.PTuning(**wrong)


def test_parameters_are_counted_without_the_memory():
    with torch.device("meta"):
        model = llama(hidden_size=4096, max_positions=2048)
    peft.attach(model, peft.PTuning(encoder="mlp", hidden_size=1024))
    assert peft.trainable(model).trained == 20 * 4096 + 4096 * 1024 + 1024 + 1024**2 + 1024 + 1024 * 4096 + 4096
    peft.attach(model, peft.PTuning(), "lstm")
    assert all(p.is_meta for p in small(model, "lstm").parameters())
