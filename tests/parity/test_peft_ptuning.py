"""P-tuning files, outputs and gradients, both ways, against Hugging Face peft. Tolerance as in test_peft_prompt.py."""

import pytest
import torch
from peft import PeftModel, PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file

from minift import peft
from minift.models.folder import read_model
from tests.parity.test_peft_lora import CONFIGS, IDS, base_folder, close, theirs
from tests.peft.small import filled

V = 3


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def peft_model(folder, encoder):
    sizes = dict(encoder_reparameterization_type=encoder.upper(), encoder_hidden_size=7)
    return get_peft_model(theirs(folder), PromptEncoderConfig(num_virtual_tokens=V, task_type="CAUSAL_LM", **sizes)).eval()


@pytest.mark.parametrize("encoder", ["lstm", "mlp", "none"])
@pytest.mark.parametrize("family", CONFIGS)
def test_our_p_tuning_loads_in_peft_with_the_same_outputs(family, encoder, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    model = read_model(folder)
    peft.attach(model, peft.PTuning(V, encoder=encoder))
    ours = filled(model)(IDS)
    assert (ours - theirs(folder)(IDS).logits).abs().max() > 1e-2          # it says something
    peft.save(model, tmp_path / "adapter")
    close(ours, PeftModel.from_pretrained(theirs(folder), tmp_path / "adapter").eval()(IDS).logits[:, V:])


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("family", CONFIGS)
def test_pefts_p_tuning_loads_in_ours_with_the_same_outputs(family, encoder, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    their = peft_model(folder, encoder)
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(folder)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits[:, V:])
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_of_table_and_network_equal_pefts(family, encoder, tmp_path):
    folder = base_folder(family, tmp_path / "base")
    their, model = peft_model(folder, encoder), read_model(folder)
    peft.attach(model, peft.PTuning(V, encoder=encoder, hidden_size=7))
    pairs = list(zip(model.virtual.adapters["default"].parameters(), their.prompt_encoder.default.parameters(), strict=True))
    for ours, other in pairs:
        ours.data = other.data.clone()
    model.double(), their.double()
    weigh = torch.randn(*IDS.shape, 31).double()
    ours, logits = model(IDS), their(IDS).logits[:, V:]
    close(ours, logits)
    (ours * weigh).sum().backward()
    (logits * weigh).sum().backward()
    largest = max(other.grad.abs().max().item() for _, other in pairs)             # small ones are sums of large ones; rotations are float32 ones
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad, rtol=0, atol=1e-6 * largest)
    assert their.get_nb_trainable_parameters() == (peft.trainable(model).trained, peft.trainable(model).total)
