"""Which modules a target names, and what is said when it names none."""

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft.targets import find, is_norm, shortest, written_targets
from tests.peft.small import gpt2, llama



def test_all_linear_is_every_linear_except_the_head():
    parts = ["attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down"]
    assert list(find(llama(), "all-linear")) == [f"blocks.{layer}.{part}" for layer in (0, 1) for part in parts]
    assert len(find(gpt2(), "all-linear")) == 8                            # qkv, out, up, down
    assert list(find(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), "all-linear")) == ["0", "2"]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2), "rows": nn.Embedding(2, 2)})
    assert list(find(model, "all-linear")) == ["body"]


@pytest.mark.parametrize(
    "ours, theirs", [("q", "q_proj"), ("attention.q", "self_attn.q_proj"), ("embed", "embed_tokens"), ("head", "lm_head")]
)
def test_a_name_is_a_path_or_the_end_of_one_ours_or_hugging_faces(ours, theirs):
    model = llama()
    assert list(find(model, [ours])) == list(find(model, (theirs,))) != []


def test_a_name_ends_at_a_dot():
    model = nn.ModuleDict({"v": nn.Linear(2, 2), "wide_v": nn.Linear(2, 2), "deep": nn.ModuleDict({"v": nn.Linear(2, 2)})})
    assert list(find(model, ["v"])) == ["v", "deep.v"]
    assert list(find(model, ["deep.v", "wide_v"])) == ["wide_v", "deep.v"]


def test_another_string_is_a_pattern_for_the_whole_path():
    assert list(find(llama(), r".*\.1\.self_attn\.[qv]_proj")) == ["blocks.1.attention.q", "blocks.1.attention.v"]
    assert list(find(llama(), r"blocks\.0\.mlp\..*")) == ["blocks.0.mlp.gate", "blocks.0.mlp.up", "blocks.0.mlp.down"]
    with pytest.raises(InputError, match="pattern 'q_proj' matches no linear"):    # an end of a path is not a full match
        find(llama(), "q_proj")
    with pytest.raises(InputError, match="not a regular expression"):
        find(llama(), "*.q")


def test_a_target_that_matches_nothing_lists_what_there_is():
    with pytest.raises(InputError) as error:
        peft.attach(llama(), peft.LoRA(targets=["q", "qproj"]))
    text = str(error.value)
    assert "targets 'qproj' matches no linear or embedding" in text and "near names: q_proj" in text
    assert "blocks.N.attention.q (model.layers.N.self_attn.q_proj)" in text and "embed (model.embed_tokens)" in text
    with pytest.raises(InputError, match="empty list"):
        find(llama(), [])
    with pytest.raises(InputError, match="no linear or embedding an adapter could go on"):
        find(nn.Sequential(nn.ReLU()), "all-linear")


def test_a_refused_target_leaves_the_model_trainable_and_bare():
    model = llama()
    with pytest.raises(InputError):
        peft.attach(model, peft.LoRA(targets=["nothing"]))
    assert all(p.requires_grad for p in model.parameters()) and peft.names(model) == []


def test_the_targets_are_found_again_under_adapters():
    model = llama()
    bare = list(find(model, "all-linear"))
    peft.attach(model, peft.LoRA(rank=2))
    assert list(find(model, "all-linear")) == bare


def test_a_projection_that_is_never_called_is_no_target():
    attention = nn.MultiheadAttention(4, 2)                                # reads out_proj.weight itself
    with pytest.raises(InputError):
        find(attention, "all-linear")


def test_an_embedding_with_a_forward_of_its_own_is_no_target():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    with pytest.raises(InputError):
        find(nn.ModuleDict({"embed": Scaled(3, 2)}), ["embed"])


def test_the_shortest_list_means_the_same_modules():
    paths = ["a.0.q", "a.0.v", "a.1.q", "a.1.v"]
    assert shortest(["a.1.q", "a.0.q"], paths) == ["q"]
    assert shortest(["a.1.q"], paths) == ["a.1.q"]                         # "q" would take a.0.q too
    assert shortest(["a.1.q", "a.0.v", "a.1.v"], paths) == ["a.0.v", "a.1.q", "a.1.v"]


def test_a_linear_used_in_two_places_is_adapted_in_both():
    shared = nn.Linear(3, 3)
    model, x = nn.Sequential(shared, nn.Tanh(), shared), torch.randn(2, 3)
    peft.attach(model, peft.LoRA(rank=1))
    assert model[0] is model[2]
    nn.init.ones_(model[0].adapters["default"].B)
    once = model[0](x)
    torch.testing.assert_close(model(x), model[0](once.tanh()))
    peft.remove(model, "default")
    assert model[0] is shared and model[2] is shared


def test_a_method_may_take_another_kind_of_module():
    model = nn.ModuleDict({"norm": nn.LayerNorm(3), "bare": nn.LayerNorm(3, elementwise_affine=False), "v": nn.Linear(3, 3), "g": nn.GroupNorm(1, 3)})
    assert [name for name, module in model.items() if is_norm(module)] == ["norm"]     # no gain, nothing to train
    assert list(find(model, ["norm"], is_norm, "norm")) == ["norm"]
    with pytest.raises(InputError, match="targets 'v' matches no norm of this model. It has: norm$"):
        find(model, ["v"], is_norm, "norm")
    assert sum(is_norm(module) for module in llama().modules()) == sum(is_norm(module) for module in gpt2(norm_offset=0.0).modules()) == 5
    assert sum(is_norm(module) for module in llama(norm_offset=1.0, qk_norm=True).modules()) == 9
    adapted = llama()
    peft.attach(adapted, peft.LoRA(rank=1, targets=["q", "v"]))
    assert written_targets(adapted, ["norm"], is_norm) == ["norm"]
    assert written_targets(adapted, ["blocks.0.norm1", "blocks.1.norm1"], is_norm) == ["input_layernorm"]
