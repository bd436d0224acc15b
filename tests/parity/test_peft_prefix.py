"""Prefix tuning files, outputs and gradients, both ways, against Hugging Face peft. Tolerance as in test_peft_prompt.py."""

import json

import pytest
import torch
import transformers
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file

from minift import peft
from minift.errors import InputError
from minift.generate import generate_ids
from minift.models.folder import read_model
from tests.parity.test_peft_lora import CONFIGS, IDS, base_folder, close, theirs
from tests.peft.small import filled

V = 3


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def peft_model(folder, **choices):
    return get_peft_model(theirs(folder), PrefixTuningConfig(num_virtual_tokens=V, task_type="CAUSAL_LM", **choices)).eval()


@pytest.mark.parametrize("method", [peft.Prefix(V, projection_size=7), peft.Prefix(V, projection=False), peft.PTuningV2(V)])
@pytest.mark.parametrize("family", CONFIGS)
def test_our_prefix_loads_in_peft_with_the_same_outputs_and_text(family, method, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    model = read_model(folder)
    peft.attach(model, method)
    ours = filled(model)(IDS)
    assert (ours - theirs(folder)(IDS).logits).abs().max() > 1e-2          # the prefix says something
    peft.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()
    close(ours, loaded(IDS).logits)
    text = loaded.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert generate_ids(model, IDS.tolist(), max_new_tokens=6, eos_ids=()) == text[:, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_pefts_prefix_loads_in_ours_with_the_same_outputs(family, projection, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    their = peft_model(folder, prefix_projection=projection, encoder_hidden_size=7)
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(folder)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)
    mine, yours = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("again", "adapter"))
    for field in ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "peft_type"):
        assert mine[field] == yours[field], field


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_of_table_and_network_equal_pefts_in_a_padded_batch(family, projection, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    their, model = peft_model(folder, prefix_projection=projection, encoder_hidden_size=7), read_model(folder)
    peft.attach(model, peft.Prefix(V, projection=projection, projection_size=7))
    small, encoder = model.virtual.adapters["default"], their.prompt_encoder.default
    pairs = list(zip(small.parameters(), encoder.parameters(), strict=True))
    for ours, other in pairs:
        ours.data = other.data.clone()
    weigh, mask = torch.randn(*IDS.shape, 31), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    ours, logits = model(IDS, segments=1 - mask), their(IDS, attention_mask=mask).logits
    close(ours[mask.bool()], logits[mask.bool()])
    (ours * weigh * mask[:, :, None]).sum().backward()
    (logits * weigh * mask[:, :, None]).sum().backward()
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert their.get_nb_trainable_parameters() == (peft.trainable(model).trained, peft.trainable(model).total)


def test_a_transformers_model_has_no_door_and_is_refused():
    with pytest.raises(InputError, match="LlamaForCausalLM has no door for them"):
        peft.attach(transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]), peft.Prefix(V))
