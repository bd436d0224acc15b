"""Combined sets against Hugging Face peft's add_weighted_adapter, where it adds what the sets do.

Compared are the changes ΔW of every module. Entries reach 10, norms 50, and their SVD is in float32: an error of some 2^-23 * 50 = 6e-6
on each entry, so the tolerance is 3e-5.
Not compared, because theirs is another thing: `linear` (adds A and B by themselves), sets with rsLoRA or alpha patterns (theirs takes the
first set's options for the result), TIES with unequal weights (theirs elects the sign before it weighs)."""

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from minift import peft
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.targets import published_names

SHAPE = dict(vocab_size=31, initializer_range=0.2)
CONFIGS = {
    "llama": transformers.LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
                                      num_key_value_heads=1, max_position_embeddings=32, **SHAPE),
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, **SHAPE),
}  # fmt: skip
TARGETS = {"llama": (["q_proj", "embed_tokens"], ["q_proj", "up_proj"]), "gpt2": (["c_attn", "wpe"], ["c_attn", "wpe"])}


@pytest.fixture(params=CONFIGS)
def both(request, tmp_path):
    """(our model, peft's model) on one base with the same two sets, "a" of rank 3 and scale 5/3, "b" of rank 2 and scale 2."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(tmp_path / "base")
    first, second = TARGETS[request.param]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    options = dict(init_lora_weights=False, task_type="CAUSAL_LM", fan_in_fan_out=request.param == "gpt2")
    their = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=first, **options), "a")
    their.add_adapter("b", LoraConfig(r=2, lora_alpha=4, target_modules=second, **options))
    their.save_pretrained(tmp_path / "adapters")
    model = read_model(tmp_path / "base")
    for name in "ab":
        peft.load(model, tmp_path / "adapters" / name, name)
    return model, their


def their_changes(their: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """File path -> ΔW (N, K), or (V, C) of an embedding."""
    found = {}
    for path, layer in their.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and (name in layer.lora_A or name in layer.lora_embedding_A):
            change = layer.get_delta_weight(name)
            found[path] = change.T if name in layer.lora_A and layer.fan_in_fan_out else change
    return found


def our_changes(model, name: str) -> dict[str, torch.Tensor]:
    names, found = published_names(model), {}
    for path, wrapper in state_of(model).wrappers.items():
        if name in wrapper.adapters:
            A, B = wrapper.adapters[name].factors()
            found[names[path]] = ((B @ A).T if isinstance(wrapper.base, torch.nn.Embedding) else B @ A).float()
    return found


def compare(model, their, name="sum"):
    one, other = our_changes(model, name), their_changes(their, name)
    assert one.keys() == other.keys()
    for path in one:
        torch.testing.assert_close(one[path], other[path], rtol=0, atol=3e-5, msg=lambda text: f"{path}: {text}")


def test_the_two_sets_are_the_same_before_anything_is_combined(both):
    for name in "ab":
        compare(*both, name)


@pytest.mark.parametrize("how", ["concat", "linear"])
@pytest.mark.parametrize("weights", [(0.7, -0.3), (1.0, 1.0)])
def test_our_exact_sums_are_pefts_cat(both, how, weights):
    model, their = both
    their.add_weighted_adapter(["a", "b"], list(weights), "sum", "cat")
    peft.combine(model, dict(zip("ab", weights)), "sum", how=how)
    compare(model, their)


@pytest.mark.parametrize("rank", [None, 2])
def test_svd_is_pefts(both, rank):
    model, their = both
    their.add_weighted_adapter(["a", "b"], [0.7, -0.3], "sum", "svd", svd_rank=rank or 3)
    peft.combine(model, {"a": 0.7, "b": -0.3}, "sum", how="svd", rank=rank or 3)
    compare(model, their)


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_ties_is_pefts_when_the_weights_are_equal(both, density):
    model, their = both
    their.add_weighted_adapter(["a", "b"], [0.8, 0.8], "sum", "ties_svd", svd_rank=4, density=density)
    peft.combine(model, {"a": 0.8, "b": 0.8}, "sum", how="ties", rank=4, density=density)
    compare(model, their)


def test_dare_is_pefts_when_both_draw_the_same(both, monkeypatch):
    model, their = both
    stripes = lambda p, generator=None: (torch.arange(p.numel()) % 3 > 0).to(p).view(p.shape if p.shape[0] < p.shape[1] else p.T.shape)
    same = lambda p, generator=None: stripes(p) if p.shape[0] < p.shape[1] else stripes(p.T).T        # whichever way round ΔW is held
    monkeypatch.setattr(torch, "bernoulli", same)
    their.add_weighted_adapter(["a", "b"], [0.7, -0.3], "sum", "dare_linear_svd", svd_rank=4, density=0.6)
    peft.combine(model, {"a": 0.7, "b": -0.3}, "sum", how="dare", rank=4, density=0.6)
    compare(model, their)


def test_our_combined_set_loads_in_peft_with_the_same_outputs(both, tmp_path):
    model, their = both
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    peft.combine(model, {"a": 0.7, "b": -0.3}, "sum")
    peft.save(model, tmp_path / "sum", "sum")
    their.load_adapter(tmp_path / "sum", "sum")
    their.set_adapter("sum")
    torch.testing.assert_close(model(ids), their(ids).logits, rtol=0, atol=1e-5)
