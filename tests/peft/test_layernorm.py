"""LayerNorm tuning: worked by hand, on every kind of norm, exact at the start and merged."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.attach import state_of
from tests.peft.small import gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class OwnRMSNorm(nn.Module):
    """As in transformers' LLaMA: a class of its own, with a rounding of its own."""

    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), OwnRMSNorm(5), nn.Linear(5, 4), nn.LayerNorm(4))


def trained(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def test_a_trained_norm_worked_by_hand():
    model = nn.Sequential(nn.LayerNorm(2, eps=0.0))
    peft.attach(model, peft.LayerNormTuning())
    own = model[0].adapters["default"]
    own.weight.data, own.bias.data = torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0])
    x = torch.tensor([[1.0, 5.0]])                                         # mean 3, deviation 2: (-1, 1)
    assert torch.equal(model(x), torch.tensor([[8.0, 23.0]]))
    assert model[0].base.weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(norm_offset=1.0, qk_norm=True), mlp])
def test_step_0_and_merging_change_no_bit_whatever_the_norm(make):
    model = make()
    x = torch.randn(3, 6) if isinstance(model, nn.Sequential) else IDS
    before = model(x)
    peft.attach(model, peft.LayerNormTuning())
    assert torch.equal(model(x), before)
    after = trained(model)(x)
    assert (after - before).abs().max() > 1e-3
    peft.merge(model)
    assert torch.equal(model(x), after)
    peft.unmerge(model)
    assert torch.equal(model(x), after)
    peft.remove(model, "default")
    assert torch.equal(model(x), before)


def test_every_norm_is_trained_and_nothing_else():
    for model, numbers in [(llama(), 5 * 12), (gpt2(), 5 * 24), (llama(qk_norm=True), 5 * 12 + 4 * 4), (mlp(), 5 + 8)]:
        norms = {name for name, p in model.named_parameters() if p.ndim == 1 and ("norm" in name or name[0] in "13")}
        peft.attach(model, peft.LayerNormTuning())
        assert peft.trainable(model).trained == numbers
        assert {f"{path}.{name}" for path, w in state_of(model).wrappers.items() for name in w.adapters["default"].file_names} == norms
    model = llama()
    peft.attach(model, peft.LayerNormTuning(targets=["norm1"]))
    assert set(state_of(model).wrappers) == {"blocks.0.norm1", "blocks.1.norm1"}


def test_the_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.LayerNorm(5)).double()
    peft.attach(model, peft.LayerNormTuning())
    base, own = model[0].base, trained(model)[0].adapters["default"]
    x, seen = torch.randn(4, 5, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    (model(x) * seen).sum().backward()
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(own.weight.grad, (seen * plain).sum(0))
    torch.testing.assert_close(own.bias.grad, seen.sum(0))
    assert base.weight.grad is None and base.bias.grad is None


@pytest.mark.parametrize("make", [llama, gpt2, mlp])
def test_saved_and_loaded_it_is_the_same(make, tmp_path):
    model = make()
    x = torch.randn(3, 6) if isinstance(model, nn.Sequential) else IDS
    peft.attach(model, peft.LayerNormTuning())
    after = trained(model)(x)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(x), after)


def test_the_files_are_the_documented_ones(tmp_path):
    model = gpt2()
    peft.attach(model, peft.LayerNormTuning(targets=["norm1", "norm"]))
    peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LN_TUNING" and config["target_modules"] == ["ln_1", "ln_f"]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 6 and stored["base_model.model.transformer.ln_f.ln_tuning_layers.bias"].shape == (12,)


def test_a_short_name_is_not_written_where_another_module_has_it():
    """peft copies whatever the name fits, linears too."""
    model = nn.ModuleDict({"a": nn.ModuleDict({"out": nn.LayerNorm(3)}), "b": nn.ModuleDict({"out": nn.Linear(3, 3)})})
    method = peft.LayerNormTuning()
    assert method.to_file(model, method.build(model)) == {"target_modules": ["a.out"]}


def test_trap34_the_copy_is_float32_on_a_bf16_base_and_step_0_is_exact():
    for model, x in [(llama().bfloat16(), IDS), (mlp().bfloat16(), torch.randn(3, 6).bfloat16())]:
        before = model(x)
        peft.attach(model, peft.LayerNormTuning())
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert torch.equal(model(x), before) and before.dtype == torch.bfloat16
        after = trained(model)(x)
        after.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        peft.merge(model)
        assert torch.equal(model(x), after)


def test_trap32_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = llama()
        peft.attach(model, peft.LayerNormTuning())
        trained(model).checkpointing = checkpointing
        model(IDS).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 5 and all(torch.equal(a, b) and a.any() for a, b in zip(*grads))


def test_bad_input_is_refused_in_plain_words():
    with pytest.raises(InputError, match="no LayerNorm or RMSNorm with a gain"):
        peft.attach(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False), nn.BatchNorm1d(2)), peft.LayerNormTuning())
    with pytest.raises(InputError, match="targets 'q' matches no norm of this model. It has: blocks.N.norm1"):
        peft.attach(llama(), peft.LayerNormTuning(targets=["q"]))
