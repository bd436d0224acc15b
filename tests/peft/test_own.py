"""The baselines train a copy of the model's own numbers, or the numbers themselves."""

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.wrapper import plain_weight
from tests.peft.small import gpt2, llama

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
METHODS = [peft.Full(), peft.LastLayers(1), peft.Head()]


def step(model):
    """One plain gradient step on the trained numbers."""
    model(IDS).square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.5 * p.grad
                p.grad = None


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_step_0_is_the_base_and_after_a_step_disabled_still_is(make, method):
    model = make()
    before = model(IDS)
    peft.attach(model, method)
    assert torch.equal(model(IDS), before)
    step(model)
    after = model(IDS)
    assert (after - before).abs().max() > 1e-3
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    assert torch.equal(model(IDS), after)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_is_unmerged_and_the_way_back_is_exact(method, tied):
    model = llama(tie_embeddings=tied)
    before = model(IDS)
    peft.attach(model, method)
    step(model)
    after = model(IDS)
    peft.merge(model)
    assert torch.equal(model(IDS), after)
    assert (model.head.weight is model.embed.weight) == (tied and not isinstance(method, peft.Head)) == model.config.tie_embeddings
    peft.unmerge(model)
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    peft.remove(model, "default")
    assert torch.equal(model(IDS), before) and (model.head.weight is model.embed.weight) == tied


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_set_comes_back(tmp_path, method, tied):
    model = llama(tie_embeddings=tied)
    peft.attach(model, method)
    step(model)
    peft.save(model, tmp_path / "a")
    after = model(IDS)
    peft.remove(model, "default")
    peft.load(model, tmp_path / "a", name="again")
    assert torch.equal(model(IDS), after) and peft.names(model) == ["again"]


def test_full_on_a_tied_model_counts_and_trains_the_shared_weight_once():
    model = llama()
    numbers = sum(p.numel() for p in model.parameters())
    peft.attach(model, peft.Full())
    assert peft.trainable(model).trained == numbers
    step(model)
    assert model.head.adapters["default"].weight is model.embed.adapters["default"].weight


def test_the_gradient_of_a_copy_is_the_gradient_of_the_weight():
    model = llama(tie_embeddings=False)
    model(IDS).square().mean().backward()
    wanted = model.blocks[1].mlp.down.weight.grad.clone()
    model.zero_grad()
    peft.attach(model, peft.Full())
    model(IDS).square().mean().backward()
    torch.testing.assert_close(model.blocks[1].mlp.down.adapters["default"].weight.grad, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("tied, head", [(True, set()), (False, {"head"})])
def test_the_last_layers_are_blocks_norm_and_an_untied_head(tied, head):
    model = llama(tie_embeddings=tied)
    peft.attach(model, peft.LastLayers(1))
    trained = {".".join(n.split(".")[:2]) if n.startswith("blocks") else n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"blocks.1", "norm"} | head


def test_without_a_copy_the_models_own_numbers_train_and_what_needs_the_base_is_refused():
    model = llama()
    weight, held = model.blocks[0].attention.q.weight, sum(p.numel() for p in model.parameters())
    peft.attach(model, peft.Full(keep_base=False))
    assert sum(p.numel() for p in model.parameters()) == held and weight.requires_grad
    old = weight.detach().clone()
    step(model)
    assert not torch.equal(weight, old)
    with pytest.raises(InputError, match="peft.disabled needs the base model, and the set 'default' trains the base's own weights"):
        with peft.disabled(model):
            pass
    with pytest.raises(InputError, match="attaching 'b' needs the base model"):
        peft.attach(model, peft.LoRA(rank=2), "b")
    after = model(IDS)
    peft.merge(model)
    assert torch.equal(model(IDS), after) and model.head.weight is model.embed.weight and model.config.tie_embeddings
    peft.remove(model, "default")
    assert torch.equal(model(IDS), after) and isinstance(model.blocks[0].attention.q, nn.Linear)


def test_a_bf16_base_is_trained_by_a_float32_copy_and_refused_without_one():
    model = llama().bfloat16()
    before = model(IDS)
    with pytest.raises(InputError, match="cannot resolve small steps"):
        peft.attach(model, peft.Full(keep_base=False))
    peft.attach(model, peft.Full())
    assert torch.equal(model(IDS), before) and all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_checkpointing_gives_the_same_gradients():                                  # trap 32
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = llama().train()
        model.checkpointing = checkpointing
        peft.attach(model, peft.LastLayers(1))
        model(IDS).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) > 5 and all(torch.equal(a, b) for a, b in zip(*grads))


def test_any_module_has_a_full_and_a_head_but_last_layers_need_a_list():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(3, 5))
    model.add_module("score", nn.Linear(5, 2))
    x = torch.randn(4, 3)
    before = model(x)
    for method, trained in ((peft.Full(), 4), (peft.Head(), 2)):
        peft.attach(model, method)
        assert torch.equal(model(x), before) and sum(p.requires_grad for p in model.parameters()) == trained
        peft.remove(model, "default")
    with pytest.raises(InputError, match="no list of blocks"):
        peft.attach(model, peft.LastLayers())
    with pytest.raises(InputError, match="looked for head, lm_head, score, classifier"):
        peft.attach(nn.Sequential(nn.Linear(2, 2)), peft.Head())


@pytest.mark.parametrize("n", [0, 3])
def test_more_blocks_than_there_are_is_refused(n):
    with pytest.raises(InputError, match=f"the last {n} blocks of a model with 2: choose 1 to 2"):
        peft.attach(llama(), peft.LastLayers(n))


def test_the_head_of_a_baseline_is_a_plain_product_and_that_of_an_adapter_is_not():
    model = llama(tie_embeddings=False)
    assert plain_weight(model.head) is model.head.weight
    peft.attach(model, peft.Full())
    assert plain_weight(model.head) is model.head.adapters["default"].weight
    with peft.disabled(model):
        assert plain_weight(model.head) is model.head.base.weight
    model = llama(tie_embeddings=False)
    peft.attach(model, peft.LoRA(rank=2, targets=["head"]))
    assert plain_weight(model.head) is None and plain_weight(nn.Linear(2, 2)) is None
