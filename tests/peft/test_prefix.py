"""Prefix tuning: the table and the network that makes it, where it starts, what a file holds. The door itself: tests/models/test_virtual.py."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.peft.prefix import SoftPrefix
from tests.models.small import model as family
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def small(model, name="default"):
    return model.virtual.adapters[name]


def test_the_table_is_cut_into_blocks_then_keys_and_values_then_heads_worked_by_hand():
    """V = 2 rows; 2 blocks, 1 head of width 2: row 0 holds k k v v of block 0, then of block 1."""
    prefix = SoftPrefix(torch.arange(16.0).view(2, 8), (2, 1, 2))
    (k0, v0), (k1, v1) = prefix(None).keys_values
    assert k0.tolist() == [[[0, 1], [8, 9]]] and v0.tolist() == [[[2, 3], [10, 11]]]
    assert k1.tolist() == [[[4, 5], [12, 13]]] and v1.tolist() == [[[6, 7], [14, 15]]]
    two_heads, _ = SoftPrefix(torch.arange(8.0).view(1, 8), (2, 2, 1))(None).keys_values
    assert two_heads[0].tolist() == [[[0]], [[1]]] and two_heads[1].tolist() == [[[2]], [[3]]]


def test_the_networks_equation_and_its_gradients():
    model = llama()
    peft.attach(model, peft.Prefix(length=3, projection_size=5))
    prefix = small(filled(model))
    E, (U, b, W, c) = prefix.table, [p.detach().clone().requires_grad_() for p in prefix.network.parameters()]
    assert (E.shape, U.shape, W.shape) == ((3, 4), (5, 4), (16, 5))                       # kv heads D = 4; 2 blocks * 2 * 4 = 16
    own = E.detach().clone().requires_grad_()
    expected = torch.tanh(F.linear(own, U, b)) @ W.T + c                                  # (3, 16)
    torch.testing.assert_close(prefix.flat(), expected)
    weigh = torch.randn(3, 16)
    (prefix.flat() * weigh).sum().backward()
    (expected * weigh).sum().backward()
    for ours, theirs in zip((E, *prefix.network.parameters()), (own, U, b, W, c), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3", "gemma", "gpt2", "bloom", "falcon_7b"])
def test_started_from_words_it_is_the_model_that_has_read_them(name):
    model, text = family(name), (7, 8, 9)
    expected = model(torch.cat([torch.tensor([text] * 2), IDS], dim=1))[:, 3:]
    peft.attach(model, peft.Prefix(length=3, projection=False, init_tokens=text))
    torch.testing.assert_close(model(IDS), expected, rtol=1e-5, atol=1e-5)


def test_words_are_read_by_the_base_model_without_dropout_whatever_is_attached():
    model = gpt2(dropout=0.5).train()
    peft.attach(model, peft.Prefix(length=3, projection=False, init_tokens=(7, 8)))       # repeated: 7 8 7
    peft.attach(model, peft.LoRA(rank=2), "lora")
    filled(model)
    peft.attach(model, peft.Prefix(length=3, projection=False, init_tokens=(7, 8, 7, 9)), "again")   # cut: 7 8 7
    again = small(model, "again").table.clone()
    bare = gpt2(dropout=0.5)
    bare.load_state_dict({key.replace(".base", ""): value for key, value in model.state_dict().items() if "adapters" not in key})
    peft.attach(bare, peft.Prefix(length=3, projection=False, init_tokens=(7, 8, 7)))
    assert torch.equal(again, small(bare).table) and model.training


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("projection", [True, False])
def test_only_the_prefix_learns_and_the_base_comes_back_exactly(make, projection):
    model = make()
    before = model(IDS)
    peft.attach(model, peft.Prefix(length=3, projection=projection, projection_size=6))
    assert all(".adapters." in name for name, p in model.named_parameters() if p.requires_grad)
    width = 4 * model.config.kv_heads                                                     # kv heads D
    numbers = 3 * width + 6 * (width + 1) + 4 * width * (6 + 1) if projection else 3 * 4 * width
    assert peft.trainable(model).trained == numbers
    after = filled(model)(IDS)
    assert (after - before).abs().max() > 1e-3
    after.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in small(model).parameters())
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before)


def test_new_numbers_are_drawn_as_peft_draws_them():
    model = llama(max_positions=300)
    peft.attach(model, peft.Prefix(length=200, projection=False))
    table = small(model).table
    assert table.shape == (200, 16) and table.std().item() == pytest.approx(1.0, rel=0.1) and abs(table.mean()) < 0.1


def test_a_file_holds_the_table_alone_and_loads_flat(tmp_path):
    """What comes out of the network is what is stored: the same text is generated, and the table itself goes on learning."""
    model = llama()
    peft.attach(model, peft.Prefix(length=3, projection_size=6))
    after = filled(model)(IDS)
    written = generate_ids(model, [[3, 1], [4]], max_new_tokens=4, eos_ids=())
    peft.save(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {"prompt_embeddings": (3, 16)}
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = dict(peft_type="PREFIX_TUNING", num_virtual_tokens=3, token_dim=4, num_layers=2, num_attention_heads=1, prefix_projection=False)
    assert wanted.items() <= fields.items()
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after) and generate_ids(model, [[3, 1], [4]], max_new_tokens=4, eos_ids=()) == written
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["virtual.adapters.default.table"]


def test_a_file_for_other_heads_is_refused_even_if_the_table_would_fit(tmp_path):
    model = llama(kv_heads=3)
    peft.attach(model, peft.Prefix(length=3))
    peft.save(model, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"head width\) \(2, 3, 4\), but this llama model has \(2, 1, 12\)"):
        peft.load(llama(kv_heads=1, heads=1, head_dim=12), tmp_path / "adapter")


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("projection", [True, False])
def test_trap33_gradients_are_the_same_with_checkpointing(make, projection):
    gradients, model = [], make()
    peft.attach(model, peft.Prefix(length=3, projection=projection, projection_size=6))
    filled(model)
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(IDS, segments=torch.tensor([[0, 0, 0, 1, 1]] * 2)).square().sum().backward()
        gradients.append([p.grad.clone() for p in small(model).parameters()])
    assert all(torch.equal(one, two) and one.abs().max() > 0 for one, two in zip(*gradients, strict=True))


def test_trap34_over_a_bfloat16_base_the_numbers_and_their_gradients_are_float32():
    model = llama().to(torch.bfloat16)
    peft.attach(model, peft.Prefix(length=3, projection_size=6))
    assert {p.dtype for p in small(model).parameters()} == {torch.float32}
    assert model(IDS).dtype == torch.bfloat16
    model(IDS).float().square().sum().backward()
    assert {p.grad.dtype for p in small(model).parameters()} == {torch.float32}
    peft.attach(model, peft.Prefix(length=2, projection=False, init_tokens=(1, 2)), "words")
    assert small(model, "words").table.dtype == torch.float32


def test_autocast_runs_the_network_in_low_precision_and_keeps_float32_gradients():
    model = llama()
    peft.attach(model, peft.Prefix(length=3, projection_size=6))
    exact = filled(model)(IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(IDS)
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    rounded.float().square().sum().backward()
    assert {p.grad.dtype for p in small(model).parameters()} == {torch.float32}


def test_it_cannot_be_merged():
    model = llama()
    peft.attach(model, peft.Prefix(length=3))
    with pytest.raises(InputError, match="not inside a weight, so there is nothing to merge"):
        peft.merge(model)


def test_a_model_without_the_door_or_without_room_is_refused():
    with pytest.raises(InputError, match="prefix tuning puts virtual tokens in front of the text, and Sequential has no door"):
        peft.attach(nn.Sequential(nn.Linear(3, 2)), peft.Prefix(length=3))
    with pytest.raises(InputError, match="a prompt longer than the context: 16 virtual tokens"):
        peft.attach(llama(), peft.Prefix(length=16))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(length=0), "prefix length is 0"),
        (dict(projection_size=0), "projection_size is 0"),
        (dict(init_tokens=(1, 2)), "pass projection=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        peft.Prefix(**wrong)


def test_parameters_are_counted_without_the_memory():
    with torch.device("meta"):
        model = llama(vocab_size=32000, hidden_size=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_size=11008, max_positions=2048)
    peft.attach(model, peft.Prefix(length=100, projection=False))
    assert peft.trainable(model).trained == 100 * 32 * 2 * 4096 and small(model).table.is_meta
