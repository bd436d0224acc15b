"""AdaLoRA, step for step with Hugging Face peft: parameters, importance, masks, penalty; and its files both ways.

Twelve steps of SGD on the same batches. Tolerance 1e-6 for numbers of size ~0.1: float32, the same sums in another order."""

import json
import warnings

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.models.folder import read_model
from minift.peft import training
from minift.peft.attach import state_of
from minift.peft.files import tensors
from tests.parity.test_peft_lora import IDS, base_folder, close, theirs

STEPS, SETTINGS = 12, dict(init_r=5, target_r=2, tinit=2, deltaT=2, beta1=0.7, beta2=0.8, orth_reg_weight=0.3)
LETTERS = {"lora_A": "Q", "lora_E": "E", "lora_B": "P"}
TARGETS = {"llama": "all-linear", "gpt2": ["c_attn", "mlp.c_proj"]}


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def small_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}


def their_adapter(family, base, tfinal=3):
    config = AdaLoraConfig(lora_alpha=6, total_step=STEPS, tfinal=tfinal, target_modules=TARGETS[family], task_type="CAUSAL_LM",
                           fan_in_fan_out=family == "gpt2", **SETTINGS)    # fmt: skip
    return get_peft_model(theirs(base), config).eval()


def their_parameters(their) -> dict[str, nn.Parameter]:
    return {name.replace(".default", ""): p for name, p in their.named_parameters() if "lora_" in name}


def our_parameters(model) -> dict[str, nn.Parameter]:
    """All triplets, those that are off too."""
    names = model.module_names()
    return {
        f"base_model.model.{names[path]}.{part.file_names[letter]}": getattr(part, letter)
        for path, part in small_of(model).items() for letter in part.file_names
    }  # fmt: skip


def pair(family, base, tfinal=3):
    """Ours and theirs with the same trained-like numbers."""
    their, model = their_adapter(family, base, tfinal), read_model(base)
    peft.attach(model, peft.AdaLoRA(alpha=6, tfinal=tfinal, targets=TARGETS[family], **SETTINGS))
    mine = our_parameters(model)
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in their_parameters(their).items()}
    with torch.no_grad():
        for key, parameter in their_parameters(their).items():
            nn.init.normal_(parameter, std=0.3)
            mine[key].copy_(parameter)
    return model, their


@pytest.mark.parametrize("family, tfinal", [("llama", 3), ("gpt2", 3), ("llama", 0)])
def test_twelve_steps_are_pefts_twelve_steps(family, tfinal, tmp_path):
    model, their = pair(family, base_folder(family, tmp_path / "base"), tfinal)
    mine, others = our_parameters(model), their_parameters(their)
    ours_step = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
    their_step = torch.optim.SGD([p for p in their.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
    off = []
    for step in range(1, STEPS + 1):
        ids = torch.randint(0, 31, (2, 7))
        loss = their(ids, labels=ids).loss                                 # with the penalty in it
        loss.backward()
        their_step.step()
        their.base_model.update_and_allocate(step)
        logits = model(ids)
        plain = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        total = plain + training.penalty(model)
        total.backward()
        ours_step.step()
        training.after_step(model, step, STEPS)
        torch.testing.assert_close(total, loss, rtol=1e-6, atol=1e-6)
        for key, parameter in mine.items():
            torch.testing.assert_close(parameter, others[key], rtol=0, atol=1e-6)
            torch.testing.assert_close(parameter.grad, others[key].grad, rtol=1e-4, atol=1e-6)
        allocator = their.base_model.rankallocator
        if step < STEPS - tfinal:
            for path, part in small_of(model).items():
                for end, letter in LETTERS.items():
                    name = f"{model.module_names()[path]}.{end}.default"
                    torch.testing.assert_close(getattr(part, f"sensitivity_{letter}"), allocator.exp_avg_ipt[name], rtol=1e-4, atol=1e-7)
                    torch.testing.assert_close(getattr(part, f"uncertainty_{letter}"), allocator.exp_avg_unc[name], rtol=1e-4, atol=1e-7)
        assert all(torch.equal(mine[key] == 0, p == 0) for key, p in others.items())
        off.append(sum(int((p == 0).sum()) for key, p in others.items() if "lora_E" in key))
        ours_step.zero_grad()
        their_step.zero_grad()
    modules = len(mine) // 3
    assert off[:3] == [0, 0, 0] and off[3] > 0 and off[-1] == 3 * modules      # 5 triplets per module, 2 stay
    if tfinal:
        assert off[STEPS - tfinal - 1 :] == [3 * modules] * (tfinal + 1)
    pattern = their.peft_config["default"].rank_pattern
    fields = state_of(model).sets["default"].to_file(model, small_of(model))
    assert {k.replace(".default", ""): v for k, v in pattern.items()} == fields["rank_pattern"]


def finished(family, base):
    """Both, after a whole training: some triplets are off, whole modules perhaps."""
    model, their = pair(family, base)
    config = state_of(model).sets["default"]
    for step in range(1, STEPS + 1):
        for key, parameter in our_parameters(model).items():
            parameter.grad = torch.randn_like(parameter)
            if "0.self_attn.k_proj" in key or "1.attn.c_attn" in key:      # the last one the budget would spend on
                parameter.grad *= 1e-3
            their_parameters(their)[key].grad = parameter.grad.clone()
        config.after_step(list(small_of(model).values()), step, STEPS)
        their.base_model.update_and_allocate(step)
    return model, their


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pruned_adapter_of_ours_loads_in_peft_with_the_same_outputs(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model, their = finished(family, base)
    ours = model(IDS)
    close(ours, their(IDS).logits)
    assert (ours - theirs(base)(IDS).logits).abs().max() > 0.01
    peft.save(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(len(value) for key, value in stored.items() if "lora_E" in key) == 2 * len(small_of(model))
    assert any(len(value) == 0 for key, value in stored.items() if "lora_E" in key)     # a module that lost all its rank
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    close(ours, loaded(IDS).logits)
    peft.merge(model)
    close(model(IDS), ours)
    close(model(IDS), loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pefts_pruned_adapter_loads_in_ours_and_is_written_as_it_was(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    _, their = finished(family, base)
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)
    one, two = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "again"))
    assert one["rank_pattern"] == two["rank_pattern"] and one["rank_pattern"]
    close(PeftModel.from_pretrained(theirs(base), tmp_path / "again").eval()(IDS).logits, their(IDS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_before_their_first_choice_go_both_ways(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model, their = pair(family, base)
    close(model(IDS), their(IDS).logits)
    peft.save(model, tmp_path / "ours")
    close(PeftModel.from_pretrained(theirs(base), tmp_path / "ours").eval()(IDS).logits, model(IDS))
    their.save_pretrained(tmp_path / "theirs")
    other = read_model(base)
    peft.load(other, tmp_path / "theirs")
    close(other(IDS), model(IDS))
    found = tensors(other, state_of(other).sets["default"], small_of(other))
    assert all(torch.equal(found[key], parameter) for key, parameter in their_parameters(their).items())
    method = state_of(other).sets["default"]
    assert method.schedule(STEPS) == (2, STEPS - 3) and (method.beta1, method.beta2, method.deltaT, method.orth_reg_weight) == (0.7, 0.8, 2, 0.3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_start_and_ours_on_a_transformers_model_object(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = theirs(base)
    before = model(IDS).logits
    peft.attach(model, peft.AdaLoRA(init_r=4, target_r=3))
    assert torch.equal(model(IDS).logits, before)
    assert torch.equal(get_peft_model(theirs(base), AdaLoraConfig(total_step=9, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2"))
                       (IDS).logits, before)    # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    after = model(IDS).logits
    peft.save(model, tmp_path / "adapter")
    close(after, PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()(IDS).logits)
    peft.merge(model)
    close(model(IDS).logits, after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(IDS).logits, before)
