"""VeRA files, outputs, gradients and random matrices, both ways, against Hugging Face peft.

Tolerance 1e-5 absolute: logits of size ~1, float32. The random matrices are equal to the bit."""

import warnings

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.files import tensors
from tests.parity.test_peft_lora import IDS, base_folder, close, theirs

CASES = [
    ("llama", "all-linear", True), ("llama", ["q_proj", "v_proj"], False), ("gpt2", "all-linear", False), ("gpt2", ["c_attn"], True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def trained(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return model


def small_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}


def their_adapter(family, base, targets, saved, seed=3):
    config = VeraConfig(r=7, target_modules=targets, save_projection=saved, projection_prng_key=seed, task_type="CAUSAL_LM",
                        fan_in_fan_out=family == "gpt2")    # fmt: skip
    return get_peft_model(theirs(base), config).eval()


@pytest.mark.filterwarnings("ignore:Specified to not")                     # peft's own opinion on leaving the matrices out
@pytest.mark.parametrize("family, targets, saved", CASES)
def test_our_adapter_loads_in_peft_with_the_same_outputs(family, targets, saved, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    peft.attach(model, peft.VeRA(rank=7, targets=targets, projection_prng_key=3, save_projection=saved))
    assert torch.equal(model(IDS), read_model(base)(IDS))
    ours = trained(model)(IDS)
    assert (ours - theirs(base)(IDS).logits).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    assert ("base_model.vera_A" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")) is saved
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    close(ours, loaded(IDS).logits)
    peft.merge(model)
    close(model(IDS), ours)
    close(model(IDS), loaded.merge_and_unload()(IDS).logits)


@pytest.mark.filterwarnings("ignore:Specified to not")
@pytest.mark.parametrize("family, targets, saved", CASES)
def test_pefts_adapter_loads_in_ours_with_the_same_outputs_and_gradients(family, targets, saved, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = trained(their_adapter(family, base, targets, saved))
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
    found = tensors(model, state_of(model).sets["default"], small_of(model))
    grads = {key: parameter.grad for key, parameter in found.items() if "lambda" in key}
    theirs_ = {name.replace(".default", ""): p.grad for name, p in their.named_parameters() if p.requires_grad}
    assert grads.keys() == theirs_.keys()
    for key in grads:
        torch.testing.assert_close(grads[key], theirs_[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family, seed", [("llama", 0), ("gpt2", 12345)])
def test_a_seed_draws_pefts_random_matrices_to_the_bit_and_counts_are_equal(family, seed, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model, their = read_model(base), their_adapter(family, base, "all-linear", True, seed)
    peft.attach(model, peft.VeRA(rank=7, projection_prng_key=seed))
    shared = next(iter(small_of(model).values())).shared
    assert torch.equal(shared.A, their.base_model.vera_A["default"]) and torch.equal(shared.B, their.base_model.vera_B["default"])
    counted, total = their.get_nb_trainable_parameters()
    assert (peft.trainable(model).trained, peft.trainable(model).total) == (counted, total)
    for key, parameter in their.named_parameters():
        if parameter.requires_grad:
            path = key.removeprefix("base_model.model.").replace(".default", "")
            mine = tensors(model, state_of(model).sets["default"], small_of(model))[f"base_model.model.{path}"]
            assert torch.equal(mine, parameter)                            # the start: b zero, d 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ours_works_on_a_transformers_model_object(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = theirs(base)
    before = model(IDS).logits
    peft.attach(model, peft.VeRA(rank=5))
    assert torch.equal(model(IDS).logits, before)
    after = trained(model)(IDS).logits
    peft.save(model, tmp_path / "adapter")
    close(after, PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()(IDS).logits)
    peft.merge(model)
    close(model(IDS).logits, after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(IDS).logits, before)
