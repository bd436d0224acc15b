"""What is written once for every method: identities of attach, switch, disabled, merge, remove; counts; traps 24, 25, 32."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minift import peft
from minift.errors import InputError
from minift.models.folder import read_model, write_model
from minift.peft.wrapper import base_modules
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


EVERYWHERE = ["q", "k", "v", "out", "gate", "up", "down", "embed", "head"]
MODELS = {
    "mlp": (mlp, "all-linear", torch.randn(4, 6, generator=torch.Generator().manual_seed(1))),
    "llama": (llama, EVERYWHERE, IDS),
    "gpt2": (gpt2, ["qkv", "out", "up", "down", "embed", "positions"], IDS),
}


@pytest.fixture(params=MODELS)
def adapted(request):
    """(model with a non-zero adapter, input, the base's output)."""
    make, targets, x = MODELS[request.param]
    model = make()
    before = model(x)
    peft.attach(model, peft.LoRA(rank=3, alpha=5, targets=targets))
    assert not torch.equal(filled(model)(x), before)
    return model, x, before


def test_disabled_is_the_base_exactly(adapted):
    model, x, before = adapted
    after = model(x)
    with peft.disabled(model):
        assert torch.equal(model(x), before)
        with peft.disabled(model):
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)                               # still, after an inner block has ended
        peft.switch(model, "default")
        assert torch.equal(model(x), before)
        with pytest.raises(InputError, match="inside peft.disabled"):
            peft.merge(model)
    assert torch.equal(model(x), after)


def test_disabled_ends_when_its_block_fails(adapted):
    model, x, before = adapted
    after = model(x)
    with pytest.raises(ZeroDivisionError), peft.disabled(model):
        1 / 0
    assert torch.equal(model(x), after)


def test_merged_is_unmerged_and_made_of_the_original_modules(adapted):
    model, x, before = adapted
    after = model(x)
    peft.merge(model)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-5)      # sums of at most 20 float32 products in another order
    assert not any(type(module).__module__.startswith("minift.peft") for module in model.modules())
    with peft.disabled(model):
        assert torch.equal(model(x), before)
    torch.testing.assert_close(model(x), after, rtol=1e-5, atol=1e-5)


def test_remove_restores_types_outputs_and_what_was_trainable(adapted):
    model, x, before = adapted
    plain = [(path, type(module)) for path, module in base_modules(model).items()]
    peft.remove(model, "default")
    assert torch.equal(model(x), before)
    assert [(name, type(module)) for name, module in model.named_modules()] == plain
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert peft.names(model) == [] and "_peft" not in model.__dict__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trap24_unmerge_restores_every_bit_however_often(dtype):
    model = llama().to(dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    peft.attach(model, peft.LoRA(rank=3, targets=EVERYWHERE))
    filled(model)
    for _ in range(5):
        peft.merge(model)
        assert not torch.equal(model.blocks[0].mlp.up.weight, before["blocks.0.mlp.up.weight"])
        peft.unmerge(model)
    peft.remove(model, "default")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and torch.equal(parameter, before[name]), name


def test_a_bf16_merge_is_the_float32_sum_rounded_once():
    model = nn.Sequential(nn.Linear(6, 5)).to(torch.bfloat16)
    peft.attach(model, peft.LoRA(rank=2, alpha=6))
    base, lora = model[0].base, filled(model)[0].adapters["default"]
    exact = base.weight.float() + 3 * lora.B @ lora.A
    peft.merge(model)
    assert torch.equal(model[0].weight, exact.to(torch.bfloat16))


@pytest.mark.parametrize("targets", [["head"], ["embed"], ["embed", "head"]])
def test_trap25_merging_a_tied_weight_unties_and_the_saved_model_agrees(targets, tmp_path):
    model = llama()
    assert model.head.weight is model.embed.weight
    peft.attach(model, peft.LoRA(rank=2, targets=targets))
    after = filled(model)(IDS)
    peft.merge(model)
    torch.testing.assert_close(model(IDS), after, rtol=1e-5, atol=1e-5)
    assert model.config.tie_embeddings is False and model.head.weight is not model.embed.weight
    write_model(model, tmp_path / "merged")
    torch.testing.assert_close(read_model(tmp_path / "merged")(IDS), model(IDS), rtol=1e-6, atol=1e-6)
    peft.unmerge(model)
    assert model.config.tie_embeddings is True
    peft.remove(model, "default")
    assert model.head.weight is model.embed.weight


def test_merging_elsewhere_leaves_a_tie_alone():
    model = llama()
    peft.attach(model, peft.LoRA(rank=2))
    peft.merge(model)
    assert model.config.tie_embeddings is True and model.head.weight is model.embed.weight


def test_removing_a_merged_set_leaves_a_plain_model_that_can_be_saved(tmp_path):
    model = gpt2()
    peft.attach(model, peft.LoRA(rank=2))
    after = filled(model)(IDS)
    peft.merge(model)
    peft.remove(model, "default")
    assert peft.names(model) == [] and peft.trainable(model).percent == 100
    write_model(model, tmp_path / "merged")
    torch.testing.assert_close(read_model(tmp_path / "merged")(IDS), after, rtol=1e-5, atol=1e-5)


def recomputing(model: nn.Sequential):
    """model(x) with each layer under gradient checkpointing."""

    def run(x):
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    return run


def test_trap32_checkpointing_does_not_change_the_adapters_gradients():
    model, x = mlp(), torch.randn(4, 6)
    peft.attach(model, peft.LoRA(rank=2))
    filled(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(model(x).square().sum(), trained)
    again = torch.autograd.grad(recomputing(model)(x).square().sum(), trained)
    assert all(torch.equal(a, b) and a.count_nonzero() for a, b in zip(plain, again))


def test_trap32_under_checkpointing_every_b_moves_after_one_step():
    model = llama()
    model.checkpointing = True
    peft.attach(model, peft.LoRA(rank=2))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model(IDS).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    model.zero_grad()
    model.checkpointing = False
    model(IDS).square().sum().backward()
    for name, parameter in trained.items():
        torch.testing.assert_close(gradients[name], parameter.grad)
    torch.optim.SGD(trained.values(), lr=0.1).step()
    moved = [p.count_nonzero().item() > 0 for name, p in trained.items() if name.endswith(".B")]
    assert len(moved) == 14 and all(moved)


def test_the_active_set_answers_and_it_alone_is_trainable():
    model, x = mlp(), torch.randn(2, 6)
    outputs = {"base": model(x)}
    for name, targets in [("law", ["0"]), ("finance", ["0", "2"]), ("tail", ["2"])]:
        peft.attach(model, peft.LoRA(rank=2, targets=targets), name)
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                nn.init.normal_(parameter)
        outputs[name] = model(x)
    assert peft.names(model) == ["law", "finance", "tail"]
    for name in ["law", "tail", "finance", "law"]:
        peft.switch(model, name)
        assert torch.equal(model(x), outputs[name])
        assert {key.split(".")[2] for key, p in model.named_parameters() if p.requires_grad} == {name}
    peft.remove(model, "finance")
    assert torch.equal(model(x), outputs["law"])
    peft.remove(model, "law")                                              # the active one: the base answers until a switch
    assert torch.equal(model(x), outputs["base"])
    peft.switch(model, "tail")
    assert torch.equal(model(x), outputs["tail"])


def test_counts_worked_by_hand():
    model = mlp()
    assert str(peft.trainable(model)) == "53 of 53 parameters trained (100.000 %), 212 bytes"      # 6 * 5 + 5 + 5 * 3 + 3
    peft.attach(model, peft.LoRA(rank=2, targets=["0"]))
    counts = peft.trainable(model)                                         # A 2 * 6, B 5 * 2
    assert (counts.trained, counts.total, counts.bytes) == (22, 75, 88) and counts.percent == pytest.approx(100 * 22 / 75)
    tied = llama()
    assert peft.trainable(tied).total == sum(p.numel() for p in tied.parameters())


def test_the_wrapper_answers_for_its_base():
    model = mlp()
    peft.attach(model, peft.LoRA(rank=2))
    assert model[0].in_features == 6 and model[0].weight.shape == (5, 6) and model[0].bias is model[0].base.bias
    with pytest.raises(AttributeError, match="no_such_thing"):
        model[0].no_such_thing


def test_training_mode_reaches_the_adapters_whenever_they_came():
    model = mlp().eval()
    peft.attach(model, peft.LoRA(rank=2, dropout=0.5))
    assert not any(module.training for module in model.modules())
    peft.merge(model)
    model.train()
    peft.unmerge(model)
    assert all(module.training for module in model.modules())


def test_a_copy_of_an_adapted_model_is_independent():
    model, x = mlp(), torch.randn(2, 6)
    peft.attach(model, peft.LoRA(rank=2))
    twin, after = copy.deepcopy(filled(model)), model(x)
    peft.remove(twin, "default")
    assert torch.equal(model(x), after) and peft.names(model) == ["default"]


def test_sets_that_clash_or_do_not_exist_are_refused_by_name():
    model = mlp()
    with pytest.raises(InputError, match="no adapters are attached"):
        peft.switch(model, "default")
    with pytest.raises(InputError, match="no adapters are attached"), peft.disabled(model):
        pass
    peft.attach(model, peft.LoRA(rank=2))
    with pytest.raises(InputError, match="already has a set named 'default'"):
        peft.attach(model, peft.LoRA(rank=2))
    for name in ["", "a.b", "items"]:
        with pytest.raises(InputError, match="cannot name a set"):
            peft.attach(model, peft.LoRA(rank=2), name)
    for call in (peft.switch, peft.remove):
        with pytest.raises(InputError, match=r"no set named 'other'; it has \['default'\]"):
            call(model, "other")


def test_a_merged_model_refuses_what_would_count_twice():
    model = mlp()
    peft.attach(model, peft.LoRA(rank=2), "a")
    with pytest.raises(InputError, match="nothing to undo"):
        peft.unmerge(model)
    peft.attach(model, peft.LoRA(rank=2), "b")
    peft.merge(model)
    with pytest.raises(InputError, match="merging twice"):
        peft.merge(model)
    with pytest.raises(InputError, match="unmerge before switching"):
        peft.switch(model, "a")
    with pytest.raises(InputError, match="'b' is merged into the weights"):
        peft.attach(model, peft.LoRA(rank=2), "c")
    with pytest.raises(InputError, match=r"the sets \['a'\] were trained on the weights without it"):
        peft.remove(model, "b")
    peft.remove(model, "a")
    peft.unmerge(model)
    peft.remove(model, "b")
    with pytest.raises(InputError, match="no adapters are attached"):
        peft.merge(model)


def test_a_refused_merge_changes_nothing():
    model = mlp()
    peft.attach(model, peft.LoRA(rank=2))
    model[2].base.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    first = model[0].base.weight
    with pytest.raises(InputError, match="round the change away"):
        peft.merge(model)
    assert model[0].base.weight is first and not model._peft.merged
