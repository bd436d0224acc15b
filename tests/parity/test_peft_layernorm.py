"""LayerNorm tuning's files, outputs and gradients, both ways, against Hugging Face peft; BitFit and it on models peft has no word for.

Tolerance 1e-5 absolute: logits of size ~1, float32."""

import warnings

import pytest
import torch
import transformers
from peft import LNTuningConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.files import tensors
from tests.parity.test_peft_lora import IDS, base_folder, close, theirs

CASES = [
    ("llama", "all-norms", None), ("llama", ["post_attention_layernorm"], ["post_attention_layernorm"]), ("llama", ["norm"], ["norm"]),
    ("gpt2", "all-norms", None), ("gpt2", r".*\.1\.ln_[12]", r".*\.1\.ln_[12]"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def trained(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def small_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}


@pytest.mark.parametrize("family, ours, theirs_", CASES)
def test_our_adapter_loads_in_peft_with_the_same_outputs(family, ours, theirs_, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    peft.attach(model, peft.LayerNormTuning(targets=ours))
    assert torch.equal(model(IDS), read_model(base)(IDS))
    after = trained(model)(IDS)
    assert (after - theirs(base)(IDS).logits).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    close(after, loaded(IDS).logits)
    peft.merge(model)
    assert torch.equal(model(IDS), after)
    close(after, loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family, ours, theirs_", CASES)
def test_pefts_adapter_loads_in_ours_with_the_same_outputs_and_gradients(family, ours, theirs_, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = trained(get_peft_model(theirs(base), LNTuningConfig(target_modules=theirs_, task_type="CAUSAL_LM")).eval())
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
    grads = {key: parameter.grad for key, parameter in tensors(model, state_of(model).sets["default"], small_of(model)).items()}
    found = {name.replace(".default", ""): p.grad for name, p in their.named_parameters() if p.requires_grad}
    assert grads.keys() == found.keys()
    for key in grads:
        torch.testing.assert_close(grads[key], found[key], rtol=1e-4, atol=1e-5)
    if ours == "all-norms":                                                # and peft's default for the family is every norm
        counted, total = their.get_nb_trainable_parameters()
        fresh = read_model(base)
        peft.attach(fresh, peft.LayerNormTuning())
        mine = peft.trainable(fresh)
        assert mine.trained == counted and mine.total == total


OTHERS = {
    "bert": transformers.BertConfig(vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20),
    "t5": transformers.T5Config(vocab_size=31, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, decoder_start_token_id=0),
    "qwen3": transformers.Qwen3Config(vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                                      head_dim=6, intermediate_size=20),
    "gpt2": transformers.GPT2Config(vocab_size=31, n_embd=12, n_layer=2, n_head=2, n_positions=32),
}  # fmt: skip


@pytest.mark.parametrize("family, method, modules, numbers", [
    ("bert", peft.LayerNormTuning(), 5, 5 * 24), ("t5", peft.LayerNormTuning(), 12, 12 * 12), ("qwen3", peft.LayerNormTuning(), 9, 5 * 12 + 4 * 6),
    ("gpt2", peft.LayerNormTuning(), 5, 5 * 24), ("bert", peft.BitFit(), 18, 2 * (4 * 12 + 20 + 12 + 24) + 12 + 12),
    ("gpt2", peft.BitFit(), 13, 2 * (36 + 12 + 48 + 12 + 24) + 12), ("t5", peft.BitFit(add_missing=True), 32, 2 * (4 * 12 + 32) + 2 * (8 * 12 + 32)),
])  # fmt: skip
@torch.no_grad()                                       # T5's attention takes another kernel when its position bias has a gradient
def test_on_any_transformers_model_object_every_norm_and_every_bias_is_found(family, method, modules, numbers, tmp_path):
    model = transformers.AutoModel.from_config(OTHERS[family]).eval()
    batch = dict(input_ids=IDS, **(dict(decoder_input_ids=IDS) if family == "t5" else {}))
    before = model(**batch).last_hidden_state
    peft.attach(model, method)
    assert len(state_of(model).wrappers) == modules and peft.trainable(model).trained == numbers
    assert torch.equal(model(**batch).last_hidden_state, before)
    after = trained(model)(**batch).last_hidden_state
    assert (after - before).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    peft.merge(model)
    assert torch.equal(model(**batch).last_hidden_state, after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(**batch).last_hidden_state, before)
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(**batch).last_hidden_state, after)
