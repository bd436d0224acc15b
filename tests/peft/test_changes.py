"""How much an adapter changes, from its file and on its model; every size worked out another way."""

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.changes import changes, changes_on
from minift.peft.files import read
from tests.peft.small import filled, gpt2, llama


def test_norm_and_singular_values_are_those_of_the_whole_change():
    dice = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 11, generator=dice), torch.randn(7, 3, generator=dice)
    tensors = {"base_model.model.layers.0.q_proj.lora_A.weight": A, "base_model.model.layers.0.q_proj.lora_B.weight": B}
    (change,) = changes(peft.LoRA(rank=3, alpha=-6), tensors)
    whole = 2.0 * B @ A                                                     # a negative scale turns no singular value negative
    assert (change.module, change.rank, change.parameters, change.measure) == ("layers.0.q_proj", 3, 33 + 21, "‖ΔW‖")
    torch.testing.assert_close(change.singular_values, torch.linalg.svdvals(whole)[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(change.size), whole.norm(), rtol=1e-5, atol=0)


def test_rslora_and_the_pattern_set_the_scale():
    tensors = {"base_model.model.a.lora_A.weight": torch.ones(4, 1), "base_model.model.a.lora_B.weight": torch.eye(4)[:1]}
    assert changes(peft.LoRA(rank=4, alpha=2, rslora=True), tensors)[0].size == 1.0                      # 2 / sqrt 4
    assert changes(peft.LoRA(rank=4, alpha=2, alpha_pattern={"a": 8}), tensors)[0].size == 2.0           # 8 / 4


def test_the_frozen_rows_that_peft_adds_are_no_change():
    pair = {"base_model.model.e.lora_embedding_A": torch.ones(1, 5), "base_model.model.e.lora_embedding_B": torch.ones(3, 1)}
    (change,) = changes(peft.LoRA(rank=1, alpha=1), {**pair, "base_model.model.e.base_layer.weight": torch.ones(5, 3)})
    assert change.parameters == 8 and change.size == pytest.approx(15**0.5)


def of(model: nn.Module, method, folder) -> dict[str, tuple]:
    """Attach `method`, give it other numbers, save it: module -> what `changes` says of the file."""
    peft.attach(model, method)
    peft.save(filled(model), folder)
    return {change.module: change for change in changes(*read(folder))}


def test_dora_shows_its_directions_part_and_on_the_model_the_whole_change(tmp_path):
    model = llama()
    found = of(model, peft.DoRA(rank=2, alpha=6, targets=["q"]), tmp_path / "a")["model.layers.1.self_attn.q_proj"]
    base, small = model.blocks[1].attention.q.base, model.blocks[1].attention.q.adapters["default"]
    assert found.size == pytest.approx((3 * small.B @ small.A).norm().item(), rel=1e-5) and found.rank == 2
    assert found.measure == "‖s B A‖, the direction's" and found.parameters == 2 * 12 + 12 * 2 + 12
    (_, change) = changes_on(model)
    whole = base.weight + 3 * small.B @ small.A
    exact = small.magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True) - base.weight
    assert change.module == "blocks.1.attention.q" and change.parameters == found.parameters
    assert change.size == pytest.approx(exact.norm().item(), rel=1e-5)
    torch.testing.assert_close(change.singular_values, torch.linalg.svdvals(exact.detach()), rtol=1e-4, atol=1e-5)


def test_adalora_is_p_times_lambda_times_q(tmp_path):
    model = llama()
    found = of(model, peft.AdaLoRA(init_r=3, target_r=2, alpha=6, targets=["up"]), tmp_path / "a")["model.layers.0.mlp.up_proj"]
    small = model.blocks[0].mlp.up.adapters["default"]
    whole = 6 / (3 + 1e-5) * small.P @ torch.diag(small.E[:, 0]) @ small.Q
    assert found.size == pytest.approx(whole.norm().item(), rel=1e-4) and found.rank == 3
    assert {c.module: c.size for c in changes_on(model)}["blocks.0.mlp.up"] == pytest.approx(found.size, rel=1e-4)


def test_vectors_are_measured_by_their_own_kind_of_size(tmp_path):
    model = llama()
    found = of(model, peft.IA3(), tmp_path / "ia3")["model.layers.0.mlp.down_proj"]
    small = model.blocks[0].mlp.down.adapters["default"]
    assert found.measure == "mean |l - 1|" and found.size == pytest.approx((small.l - 1).abs().mean().item())
    exact = (small.l - 1) * model.blocks[0].mlp.down.base.weight
    assert {c.module: c.size for c in changes_on(model)}["blocks.0.mlp.down"] == pytest.approx(exact.norm().item(), rel=1e-5)
    model = gpt2()
    found = of(model, peft.BitFit(), tmp_path / "bitfit")["transformer.h.0.mlp.c_fc"]
    small = model.blocks[0].mlp.up.adapters["default"]
    assert found.measure == "‖bias‖" and found.size == pytest.approx(small.bias.norm().item(), rel=1e-6)
    shift = (small.bias - model.blocks[0].mlp.up.base.bias).norm().item()
    on = {c.module: c for c in changes_on(model)}["blocks.0.mlp.up.bias"]
    assert on.measure == "‖Δbias‖" and on.size == pytest.approx(shift, rel=1e-5) and on.parameters == 20 and on.singular_values is None
    model = llama()
    assert of(model, peft.LayerNormTuning(), tmp_path / "norms")["model.norm"].size == pytest.approx(model.norm.adapters["default"].weight.norm().item())


def test_a_new_bias_is_a_change_from_zero():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    peft.attach(model, peft.BitFit(targets=["0"], add_missing=True))
    model[0].adapters["default"].bias.data = torch.tensor([3.0, -4.0])
    assert [(c.module, c.size) for c in changes_on(model)] == [("0.bias", 5.0)]


def test_vera_counts_its_vectors_and_not_the_shared_matrices(tmp_path):
    model = llama()
    found = of(model, peft.VeRA(rank=5, targets=["q", "v"]), tmp_path / "a")
    small = model.blocks[0].attention.v.adapters["default"]
    part = found["model.layers.0.self_attn.v_proj"]
    assert len(found) == 4 and part.parameters == 5 + 4 and "vera_lambda_b" in part.measure
    assert part.size == pytest.approx(torch.cat([small.b, small.d]).norm().item(), rel=1e-5)
    base = model.blocks[0].attention.v.base
    exact = small.merged(base)["weight"] - base.weight
    assert {c.module: c.size for c in changes_on(model)}["blocks.0.attention.v"] == pytest.approx(exact.norm().item(), rel=1e-4)


def test_virtual_tokens_and_new_rows_have_a_mean_length(tmp_path):
    model = llama()
    (found,) = of(model, peft.Prompt(length=3), tmp_path / "prompt").values()
    table = model.virtual.adapters["default"].table
    assert (found.module, found.rank, found.parameters) == ("virtual tokens", 3, 36) and found.measure == "mean ‖row‖"
    assert found.size == pytest.approx(table.norm(dim=1).mean().item(), rel=1e-5)
    with pytest.raises(InputError, match="virtual tokens stand in front of the text"):
        changes_on(model)
    model = llama()
    found = of(model, peft.NewTokens(ids=(3, 7)), tmp_path / "rows")
    assert all(change.rank == 2 and change.measure == "mean ‖row‖" for change in found.values()) and found


def test_the_models_own_weights_are_shown_whole_and_on_the_model_by_their_difference(tmp_path):
    model = llama(tie_embeddings=False)
    found = of(model, peft.Head(), tmp_path / "a")["lm_head"]
    mine, base = model.head.adapters["default"].weight, model.head.base.weight
    assert found.measure == "‖weight‖" and found.size == pytest.approx(mine.norm().item(), rel=1e-5)
    (change,) = changes_on(model)
    torch.testing.assert_close(change.singular_values, torch.linalg.svdvals((mine - base).detach()), rtol=1e-4, atol=1e-5)


def test_a_bottleneck_is_measured_as_if_it_had_no_activation():
    place = "model.layers.0.output_adapters.adapters.mine."
    D, U = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    tensors = {place + "adapter_down.0.weight": D, place + "adapter_down.0.bias": torch.ones(2), place + "adapter_up.weight": U,
               place + "adapter_up.bias": torch.ones(2)}    # fmt: skip
    (change,) = changes(peft.Parallel(), tensors)
    assert (change.module, change.measure, change.rank, change.parameters) == (place[:-1], "‖s U D‖", 2, 12)
    assert change.size == 4 * 6 and change.singular_values.tolist() == [24.0, 0.0]


def test_any_other_method_is_shown_by_the_norm_of_its_numbers():
    tensors = {"base_model.model.model.layers.0.reft_W": torch.full((2, 2), 2.0), "base_model.model.model.layers.0.reft_b": torch.tensor([3.0, 0.0])}
    (change,) = changes(None, tensors)
    assert change == ("model.layers.0", 6, "‖reft_W, reft_b‖", 5.0, None, None)
