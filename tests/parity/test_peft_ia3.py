"""IA3 files, outputs and gradients, both ways, against Hugging Face peft. Tolerance 1e-5 absolute: logits of size ~1, float32."""

import json
import warnings

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.files import tensors
from tests.parity.test_peft_lora import IDS, base_folder, close, theirs

CASES = [
    ("llama", None, None), ("llama", ["q_proj", "down_proj"], ["down_proj"]), ("llama", "all-linear", []),
    ("llama", r".*\.(v_proj|o_proj|up_proj)", r".*\.o_proj"), ("gpt2", None, None), ("gpt2", ["attn.c_proj", "c_fc"], ["c_fc"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def factors(model: nn.Module) -> nn.Module:
    """Factors around one, as training leaves them."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=1.0, std=0.5)
    return model


def small_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}


def their_adapter(family: str, base, targets, feedforward):
    config = IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    return get_peft_model(theirs(base), config).eval()


@pytest.mark.parametrize("family, targets, feedforward", CASES)
def test_our_adapter_loads_in_peft_with_the_same_outputs(family, targets, feedforward, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    peft.attach(model, peft.IA3(targets=targets, feedforward=feedforward))
    assert torch.equal(model(IDS), read_model(base)(IDS))
    ours = factors(model)(IDS)
    assert (ours - theirs(base)(IDS).logits).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")                                    # peft only warns about keys it misses
        loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    close(ours, loaded(IDS).logits)
    peft.merge(model)
    close(model(IDS), ours)
    close(model(IDS), loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family, targets, feedforward", CASES)
def test_pefts_adapter_loads_in_ours_with_the_same_outputs_and_gradients(family, targets, feedforward, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = factors(their_adapter(family, base, targets, feedforward))
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)
    weigh = torch.randn(*IDS.shape, 31)
    (model(IDS) * weigh).sum().backward()
    (their(IDS).logits * weigh).sum().backward()
    grads = {key: parameter.grad for key, parameter in tensors(model, state_of(model).sets["default"], small_of(model)).items()}
    theirs_ = {name.replace(".default", ""): p.grad for name, p in their.named_parameters() if p.requires_grad}
    assert grads.keys() == theirs_.keys()
    for key in grads:
        torch.testing.assert_close(grads[key], theirs_[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_usual_modules_are_those_of_peft(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model, their = read_model(base), their_adapter(family, base, None, None)
    peft.attach(model, peft.IA3())
    peft.save(model, tmp_path / "ours")
    their.save_pretrained(tmp_path / "theirs")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in two.items()}
    trained, total = their.get_nb_trainable_parameters()
    assert (peft.trainable(model).trained, peft.trainable(model).total) == (trained, total)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ours_works_on_a_transformers_model_object(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = theirs(base)
    before = model(IDS).logits
    peft.attach(model, peft.IA3())
    assert torch.equal(model(IDS).logits, before)
    after = factors(model)(IDS).logits
    peft.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is (family == "gpt2")
    close(after, PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()(IDS).logits)
    peft.merge(model)                                                      # GPT-2's Conv1D weights are transposed
    close(model(IDS).logits, after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(IDS).logits, before)
