"""BitFit: worked by hand, exact at the start and merged, and honest about models without biases."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.folder import write_model
from minift.peft.attach import state_of
from minift.peft.bitfit import Bias
from tests.peft.small import gpt2, llama
from tests.peft.test_lora import Conv1D

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), Conv1D(5, 5), nn.Linear(5, 4))


def trained(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return model


def test_a_trained_bias_worked_by_hand():
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    small, x = Bias(base), torch.tensor([[4.0, 1.0]])                      # W x = (6, 16)
    assert torch.equal(small(base, x), torch.tensor([[16.0, 36.0]]))
    small.bias.data = torch.tensor([-1.0, 100.0])                          # in place of the base's, not beside it
    assert torch.equal(small(base, x), torch.tensor([[5.0, 116.0]]))
    assert torch.equal(small.merged(base)["bias"], small.bias) and base.bias.tolist() == [10.0, 20.0]


def test_an_added_bias_worked_by_hand():
    base = nn.Linear(2, 3, bias=False)
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
    small, x = Bias(base), torch.tensor([[4.0, 1.0]])
    assert small.bias.tolist() == [0.0, 0.0, 0.0] and torch.equal(small(base, x), base(x))
    small.bias.data = torch.tensor([-1.0, 100.0, 7.0])
    assert torch.equal(small(base, x), torch.tensor([[5.0, 116.0, 8.0]])) and base.bias is None


@pytest.mark.parametrize("make, method", [(gpt2, peft.BitFit()), (mlp, peft.BitFit()), (lambda: llama(qkv_bias=True), peft.BitFit())])
def test_step_0_and_merging_change_no_bit(make, method):
    model = make()
    x = torch.randn(3, 6) if isinstance(model, nn.Sequential) else IDS
    before = model(x)
    peft.attach(model, method)
    assert torch.equal(model(x), before)
    after = trained(model)(x)
    assert (after - before).abs().max() > 1e-3
    peft.merge(model)
    assert torch.equal(model(x), after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(x), before)


def test_every_bias_is_trained_and_nothing_else():
    for model, numbers in [(gpt2(), 2 * (36 + 12 + 20 + 12 + 24) + 12), (mlp(), 5 + 5 + 5 + 4), (llama(qkv_bias=True), 2 * (12 + 4 + 4))]:
        biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
        peft.attach(model, peft.BitFit())
        assert {f"{path}.bias" for path in state_of(model).wrappers} == biases and peft.trainable(model).trained == numbers
    model = gpt2()
    peft.attach(model, peft.BitFit(targets=["qkv", "mlp.up"]))              # Section 4.2: the query and the first feed-forward matrix
    assert peft.trainable(model).trained == 2 * (36 + 20)


def test_a_model_without_biases_is_refused_unless_they_may_be_added_and_then_it_says_how_many(capsys):
    with pytest.raises(InputError, match="no biases to train. The option add_missing .* gives its linears biases of zeros"):
        peft.attach(llama(), peft.BitFit())
    model = llama()
    before = model(IDS)
    peft.attach(model, peft.BitFit(add_missing=True))
    numbers = 2 * (12 + 4 + 4 + 12 + 20 + 20 + 12)
    said = capsys.readouterr()
    assert said.err == f"BitFit: added biases of zeros to 14 linears that had none ({numbers} numbers)\n" and said.out == ""
    assert peft.trainable(model).trained == numbers and "head" not in state_of(model).wrappers
    assert torch.equal(model(IDS), before)
    after = trained(model)(IDS)
    peft.merge(model)
    torch.testing.assert_close(model(IDS), after, rtol=0, atol=1e-6)       # one sum in another order
    assert model.blocks[0].attention.q.bias is not None
    peft.unmerge(model)
    assert torch.equal(model(IDS), after)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before) and model.blocks[0].attention.q.bias is None


def test_biases_that_are_there_and_biases_that_are_added_go_together(capsys):
    model = llama(qkv_bias=True)
    peft.attach(model, peft.BitFit(add_missing=True))
    assert len(state_of(model).wrappers) == 14 and "8 linears" in capsys.readouterr().err
    peft.attach(gpt2(), peft.BitFit(add_missing=True))
    assert capsys.readouterr().err == ""                                   # nothing was missing


def test_merged_added_biases_are_never_lost_in_a_checkpoint(tmp_path):
    model = llama()
    peft.attach(model, peft.BitFit(add_missing=True))
    peft.merge(trained(model))
    peft.remove(model, "default")
    with pytest.raises(InputError, match="not what its config describes .too many: blocks.0.attention.k.bias"):
        write_model(model, tmp_path / "merged")


def test_the_gradients_are_those_of_the_equation():
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)).double()
    peft.attach(model, peft.BitFit())
    (first, second), x, seen = trained(model), torch.randn(4, 6, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    (model(x) * seen).sum().backward()
    torch.testing.assert_close(second.adapters["default"].bias.grad, seen.sum(0))
    own = first.adapters["default"].bias.detach().clone().requires_grad_()
    (nn.functional.layer_norm(x @ first.base.weight.T + own, (5,), second.base.weight) * seen).sum().backward()
    torch.testing.assert_close(first.adapters["default"].bias.grad, own.grad)
    assert first.base.weight.grad is None and first.base.bias.grad is None


@pytest.mark.parametrize("make, add", [(gpt2, False), (llama, True), (mlp, False)])
def test_saved_and_loaded_it_is_the_same(make, add, tmp_path):
    model = make()
    x = torch.randn(3, 6) if isinstance(model, nn.Sequential) else IDS
    peft.attach(model, peft.BitFit(add_missing=add))
    after = trained(model)(x)
    peft.save(model, tmp_path / "adapter")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(x), after)


def test_the_files_are_the_documented_ones(tmp_path):
    model = gpt2()
    peft.attach(model, peft.BitFit())
    peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "BITFIT" and config["add_missing"] is False
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj", "ln_1", "ln_2", "ln_f"]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 13 and stored["base_model.model.transformer.h.1.attn.c_attn.bias"].shape == (36,)


def test_the_bias_that_is_read_without_a_call_is_left_alone():
    attention = nn.MultiheadAttention(6, 2)
    model = nn.ModuleDict({"attention": attention, "out": nn.Linear(6, 6)})
    peft.attach(model, peft.BitFit())
    assert set(state_of(model).wrappers) == {"out"}


def test_trap34_the_copy_is_float32_on_a_bf16_base_and_step_0_is_exact():
    for model, x, add in [(gpt2().bfloat16(), IDS, False), (mlp().bfloat16(), torch.randn(3, 6).bfloat16(), False), (llama().bfloat16(), IDS, True)]:
        before = model(x)
        peft.attach(model, peft.BitFit(add_missing=add))
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert torch.equal(model(x), before) and before.dtype == torch.bfloat16
        after = trained(model)(x)
        after.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        peft.merge(model)
        assert add or torch.equal(model(x), after)


def test_trap32_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = gpt2()
        peft.attach(model, peft.BitFit())
        trained(model).checkpointing = checkpointing
        model(IDS).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 13 and all(torch.equal(a, b) for a, b in zip(*grads))
    assert sum(bool(a.any()) for a in grads[0]) == 13


def test_a_target_without_a_bias_is_refused():
    with pytest.raises(InputError, match="targets 'up' matches no module with a bias of this model"):
        peft.attach(llama(qkv_bias=True), peft.BitFit(targets=["up"]))
