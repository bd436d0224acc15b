"""From two checkpoints to an adapter: what is in it, how much, and what is not."""

import copy

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.folder import write_model
from minift.models.parameters import Parameters
from minift.peft.attach import state_of
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def tuned(model: nn.Module, *parts: str, seed: int = 4) -> nn.Module:
    """A copy with other numbers in the parameters whose names contain one of `parts`."""
    twin, dice = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if any(part in name for part in parts):
                parameter += 0.2 * torch.randn(parameter.shape, generator=dice)
    return twin


def test_worked_by_hand():
    base = nn.Sequential(nn.Linear(2, 3, bias=False))
    twin = copy.deepcopy(base)
    twin[0].weight.data += torch.tensor([[0.0, 4.0], [3.0, 0.0], [0.0, 0.0]])       # singular values 4 and 3
    found = peft.extract_lora(base, twin.state_dict(), rank=1)
    assert set(found.kept) == {"0"} and found.left == {} and found.kept["0"].rank == 1 and found.kept["0"].share == found.share == pytest.approx(16 / 25)
    A, B = base[0].adapters["extracted"].factors()
    torch.testing.assert_close(B @ A, torch.tensor([[0.0, 4.0], [0.0, 0.0], [0.0, 0.0]]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_at_full_rank_the_base_with_the_set_is_the_tuned_model(make):
    base = make()
    twin = tuned(base, "attention", "mlp")
    found = peft.extract_lora(base, twin.state_dict(), rank=20)
    if make is llama:                                                               # gpt2 has biases too
        torch.testing.assert_close(twin(IDS), base(IDS), rtol=0, atol=1e-5)
    assert all(kept.share == pytest.approx(1.0) for kept in found.kept.values())
    assert all(name.endswith(".bias") for name in found.left) and bool(found.left) == (make is gpt2)
    for path, wrapper in state_of(base).wrappers.items():
        torch.testing.assert_close(wrapper.adapters["extracted"].merged(wrapper.base)["weight"], twin.get_submodule(path).weight, rtol=0, atol=1e-6)


def test_an_adapter_that_was_merged_comes_back(tmp_path):
    model = llama()
    base = copy.deepcopy(model)
    peft.attach(model, peft.LoRA(rank=3, alpha=5, targets=["q", "down", "embed"]))
    after = filled(model)(IDS)
    peft.merge(model)
    peft.remove(model, "default")
    found = peft.extract_lora(base, model.state_dict(), rank=3, targets=["q", "down", "embed"])
    assert {kept.rank for kept in found.kept.values()} == {3} and found.share == pytest.approx(1.0) and peft.names(base) == ["extracted"]
    torch.testing.assert_close(base(IDS), after, rtol=0, atol=1e-4)                 # logits of size 10
    peft.save(base, tmp_path / "extracted", "extracted")
    again = copy.deepcopy(base)
    peft.remove(again, "extracted")
    peft.load(again, tmp_path / "extracted")
    assert torch.equal(again(IDS), base(IDS))


def test_a_share_chooses_the_rank_module_by_module_and_a_rank_is_its_limit():
    base = llama()
    twin = tuned(base, "mlp.up", "attention.q")
    found = peft.extract_lora(base, twin.state_dict(), share=0.9)
    for path, (rank, part) in found.kept.items():
        energy = torch.linalg.svdvals(twin.get_submodule(path).weight - state_of(base).wrappers[path].base.weight).square().cumsum(0)
        assert energy[rank - 1] >= 0.9 * energy[-1] > energy[rank - 2] and part == pytest.approx((energy[rank - 1] / energy[-1]).item())
    assert len(found.kept) == 4 and 2 < max(kept.rank for kept in found.kept.values()) < 12
    limited = peft.extract_lora(base, twin.state_dict(), rank=2, share=0.9, name="limited")
    assert {kept.rank for kept in limited.kept.values()} == {2} and limited.share < 0.9
    whole = peft.extract_lora(base, twin.state_dict(), share=1.0, name="whole")
    assert {kept.rank for kept in whole.kept.values()} == {12} and whole.share == pytest.approx(1.0)


def test_what_differs_elsewhere_is_listed_with_its_size_and_counts_in_the_share():
    base = gpt2()
    twin = tuned(base, "mlp.up", "norm1.weight", "attention.out.bias", "embed")
    found = peft.extract_lora(base, twin.state_dict(), rank=20)
    changed = {name: (p - q).norm().item() for (name, p), q in zip(twin.named_parameters(), copy_without(base).parameters()) if not torch.equal(p, q)}
    inside = {"blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight"}
    left = {name: size for name, size in changed.items() if name not in inside}
    assert "embed.weight" in left and len(left) == 7                                # two up.bias, two norms, two biases, the embedding
    assert found.left == pytest.approx(left)                                        # the embedding is the head too, and counts once
    squares = sum(size**2 for size in found.left.values())
    held = sum(changed[name] ** 2 for name in inside)
    assert found.share == pytest.approx(held / (held + squares))
    assert [kept.share for kept in found.kept.values()] == pytest.approx([1.0, 1.0])


def copy_without(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for name in peft.names(twin):
        peft.remove(twin, name)
    return twin


def test_a_tied_head_gets_its_own_set_if_it_is_a_target_and_is_named_if_the_tuned_model_cut_the_tie():
    base = llama()
    twin = tuned(base, "embed")
    both = peft.extract_lora(base, twin.state_dict(), rank=11, targets=["embed", "head"])
    assert set(both.kept) == {"embed", "head"} and both.left == {}
    torch.testing.assert_close(twin(IDS), base(IDS), rtol=0, atol=1e-5)
    cut = {**twin.state_dict(), "head.weight": base.head.base.weight}
    assert set(peft.extract_lora(base, cut, rank=2, targets=["embed"], name="cut").kept) == {"embed"}
    assert set(peft.extract_lora(copy_without(base), twin.state_dict(), rank=2, targets=["embed"]).left) == set()
    untied = {**cut, "head.weight": cut["head.weight"] + 1}
    assert set(peft.extract_lora(base, untied, rank=2, targets=["embed"], name="untied").left) == {"head.weight"}


def test_modules_that_do_not_differ_get_nothing():
    base = llama()
    found = peft.extract_lora(base, tuned(base, "blocks.1.attention.v").state_dict(), rank=16)
    assert found.kept == {"blocks.1.attention.v": (4, pytest.approx(1.0))}                               # 4 x 12
    assert list(state_of(base).wrappers) == ["blocks.1.attention.v"]


def test_a_folder_is_read_one_tensor_at_a_time(tmp_path):
    base = gpt2()
    twin = tuned(base, "attention")
    write_model(twin, tmp_path / "tuned")
    one, other = peft.extract_lora(base, Parameters(tmp_path / "tuned"), rank=2), peft.extract_lora(base, twin.state_dict(), rank=2, name="b")
    assert one == other


def test_bf16_checkpoints_are_compared_in_float32():
    base = llama().bfloat16()
    twin = tuned(base, "mlp.up")
    peft.extract_lora(base, twin.state_dict(), rank=12)
    small = base.blocks[0].mlp.up
    torch.testing.assert_close(
        (lambda A, B: (B @ A).float())(*small.adapters["extracted"].factors()),
        twin.blocks[0].mlp.up.weight.float() - small.base.weight.float(), rtol=0, atol=1e-6,
    )    # fmt: skip


@pytest.mark.parametrize("wrong, words", [
    (dict(rank=None), "name a rank or a share"),
    (dict(rank=0), "rank is 0"),
    (dict(share=1.5), "share is 1.5"),
    (dict(targets=["query"]), "'query' matches no linear"),
    (dict(targets=["down"]), r"do not differ in the weights of targets \['down'\]; 2 others do: blocks.0.mlp.up.weight, blocks.1.mlp.up.weight"),
])    # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong, words):
    base = llama()
    with pytest.raises(InputError, match=words):
        peft.extract_lora(base, tuned(base, "mlp.up").state_dict(), **{"rank": 2, **wrong})
    assert peft.names(base) == []


def test_checkpoints_that_are_not_of_one_kind_are_refused_by_name():
    base = llama()
    with pytest.raises(InputError, match="do not differ .*, and neither does anything else"):
        peft.extract_lora(base, llama().state_dict() | base.state_dict(), rank=2)
    with pytest.raises(InputError, match="only in the base: blocks.0.attention.q.weight, .*; only in the tuned one: positions.weight"):
        peft.extract_lora(base, gpt2().state_dict(), rank=2)
    with pytest.raises(InputError, match=r"embed.weight is \(11, 12\) in the base and \(13, 12\) in the tuned one"):
        peft.extract_lora(base, llama(vocab_size=13).state_dict(), rank=2)
    damaged = tuned(base, "mlp.up").state_dict()
    damaged["blocks.1.mlp.up.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match="blocks.1.mlp.up.weight contains NaN"):
        peft.extract_lora(base, damaged, rank=2)
    packed = {**base.state_dict(), "norm.weight": torch.zeros(12, dtype=torch.uint8)}
    with pytest.raises(InputError, match="norm.weight is torch.float32 in the base and torch.uint8"):
        peft.extract_lora(base, packed, rank=2)
