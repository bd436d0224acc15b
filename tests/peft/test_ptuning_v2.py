"""P-tuning v2 is prefix tuning's arithmetic with its own choices; what is proved in test_prefix.py holds for it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minift import peft
from minift.errors import InputError
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_it_is_a_flat_prefix_in_every_block(make):
    model, prefix = make(), make()
    prefix.load_state_dict(model.state_dict())
    peft.attach(model, peft.PTuningV2(length=3))
    peft.attach(prefix, peft.Prefix(length=3, projection=False))
    prefix.virtual.adapters.load_state_dict(filled(model).virtual.adapters.state_dict())
    assert torch.equal(model(IDS), prefix(IDS))
    model(IDS).square().sum().backward()
    table = model.virtual.adapters["default"].table
    blocks = table.grad.view(3, 2, -1)                                     # (V, layers, 2 kv heads D): every block's prompts learn
    assert table.shape == (3, 2 * 2 * 4 * model.config.kv_heads) and (blocks.abs().amax(dim=-1) > 0).all()


def test_the_papers_choices():
    method = peft.PTuningV2()
    assert (method.length, method.projection) == (20, False)
    model = llama(max_positions=32)
    peft.attach(model, peft.PTuningV2(projection=True, projection_size=5))
    assert len(list(model.virtual.adapters["default"].network.parameters())) == 4


@pytest.mark.parametrize("projection", [False, True])
def test_in_a_file_it_is_a_prefix_and_loads_as_one(projection, tmp_path):
    model = llama()
    peft.attach(model, peft.PTuningV2(length=3, projection=projection))
    after = filled(model)(IDS)
    peft.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"].shape == (3, 16)
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(IDS), after)
    with pytest.raises(InputError, match="nothing to merge"):
        peft.merge(model)


def test_trap33_gradients_are_the_same_with_checkpointing():
    gradients, model = [], llama()
    peft.attach(model, peft.PTuningV2(length=3))
    table = filled(model).virtual.adapters["default"].table
    for model.checkpointing in (False, True):
        table.grad = None
        model(IDS).square().sum().backward()
        gradients.append(table.grad)
    assert torch.equal(*gradients)


def test_what_prefix_tuning_refuses_it_refuses():
    with pytest.raises(InputError, match="length is 0"):
        peft.PTuningV2(length=0)
    with pytest.raises(InputError, match="a prompt longer than the context: 20 virtual tokens"):
        peft.attach(llama(), peft.PTuningV2())
