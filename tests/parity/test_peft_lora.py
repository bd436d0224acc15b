"""LoRA files and outputs, both ways, against Hugging Face peft on transformers models with the same weights.

Tolerance 1e-5 absolute: logits of size ~1, sums of at most 64 float32 products, two blocks."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

from minift import peft
from minift.models.folder import read_model, write_model
from minift.peft.attach import state_of
from minift.peft.files import tensors
from minift.train.optim import adamw
from tests.peft.small import filled

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SHAPE = dict(vocab_size=31, initializer_range=0.2)
CONFIGS = {
    "llama": transformers.LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
                                      num_key_value_heads=1, max_position_embeddings=32, **SHAPE),
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, **SHAPE),
}  # fmt: skip
HEAD_AND_EMBEDDING = {"llama": ["embed_tokens", "q_proj", "lm_head"], "gpt2": ["wte", "wpe", "c_attn", "lm_head"]}
CASES = [
    ("llama", "all-linear", {}), ("llama", ["q_proj", "v_proj"], dict(rslora=True)), ("llama", "embeddings", {}),
    ("gpt2", "all-linear", {}), ("gpt2", ["c_attn"], dict(rslora=True)), ("gpt2", "embeddings", {}), ("gpt2", ["wte"], {}), ("gpt2", ["lm_head"], {}),
    ("llama", "all-linear", dict(rank_pattern={"self_attn.q_proj": 5, r"layers\.1\.mlp\.up_proj": 1}, alpha_pattern={"v_proj": 2})),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def base_folder(family: str, folder: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family])
    model.save_pretrained(folder)
    return folder


def theirs(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def close(ours, their):
    """1e-5 of the largest number, at least of 1: products are summed in another order."""
    torch.testing.assert_close(ours, their, rtol=0, atol=1e-5 * max(1.0, their.abs().max().item()))


def peft_config(family, targets, options):
    targets = HEAD_AND_EMBEDDING[family] if targets == "embeddings" else targets
    return LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_rslora=options.get("rslora", False), rank_pattern=options.get("rank_pattern", {}),
        alpha_pattern=options.get("alpha_pattern", {}), task_type="CAUSAL_LM", init_lora_weights=False,
    )  # fmt: skip


@pytest.mark.parametrize("family, targets, options", CASES)
def test_our_adapter_loads_in_peft_with_the_same_outputs(family, targets, options, tmp_path, recwarn):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    close(model(IDS), theirs(base)(IDS).logits)
    chosen = HEAD_AND_EMBEDDING[family] if targets == "embeddings" else targets
    peft.attach(model, peft.LoRA(rank=3, alpha=5, targets=chosen, **options))
    ours = filled(model)(IDS)
    assert (ours - theirs(base)(IDS).logits).abs().max() > 0.1            # the adapter says something
    peft.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    said = " ".join(str(warning.message) for warning in recwarn)
    assert "missing" not in said and ("lm_head" in chosen or "fan_in_fan_out" not in said)     # one flag cannot fit Conv1D and the head
    close(ours, loaded(IDS).logits)
    placed = sum(1 for name, _ in loaded.named_parameters() if "lora_" in name)
    assert placed == len(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    peft.merge(model)
    close(model(IDS), ours)
    if not (set(chosen) & {"lm_head", "wte"}):                             # peft writes through the tie of GPT-2 (trap 25)
        close(model(IDS), loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family, targets, options", CASES)
def test_pefts_adapter_loads_in_ours_with_the_same_outputs(family, targets, options, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = get_peft_model(theirs(base), peft_config(family, targets, options)).eval()
    their.save_pretrained(tmp_path / "adapter")                            # for embeddings it adds the base's own weights
    model = read_model(base)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    assert (model(IDS) - theirs(base)(IDS).logits).abs().max() > 1e-3
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    lora = {key: tensor for key, tensor in one.items() if "base_layer" not in key}
    assert lora.keys() == two.keys() and all(torch.equal(lora[key], two[key]) for key in two)


def test_all_linear_takes_the_same_modules_as_peft(tmp_path):
    for family in CONFIGS:
        base = base_folder(family, tmp_path / family)
        their = get_peft_model(theirs(base), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
        their.save_pretrained(tmp_path / f"{family}-adapter")
        model = read_model(base)
        peft.attach(model, peft.LoRA(rank=8))
        peft.save(model, tmp_path / f"{family}-ours")
        one, two = (load_file(tmp_path / f"{family}-{name}" / "adapter_model.safetensors") for name in ("adapter", "ours"))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
        trained, total = their.get_nb_trainable_parameters()
        assert (peft.trainable(model).trained, peft.trainable(model).total) == (trained, total)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("targets", ["all-linear", "embeddings"])
def test_our_peft_works_on_a_transformers_model_object(family, targets, tmp_path):
    base = base_folder(family, tmp_path / "base")
    model, chosen = theirs(base), HEAD_AND_EMBEDDING[family] if targets == "embeddings" else targets
    before = model(IDS).logits
    peft.attach(model, peft.LoRA(rank=3, alpha=5, targets=chosen))
    assert torch.equal(model(IDS).logits, before)
    after = filled(model)(IDS).logits
    peft.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is (family == "gpt2")
    close(after, PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()(IDS).logits)
    ours = read_model(base)
    peft.load(ours, tmp_path / "adapter")
    close(ours(IDS), after)
    peft.merge(model)                                                      # GPT-2's Conv1D weights are transposed
    close(model(IDS).logits, after)
    peft.unmerge(model)
    peft.remove(model, "default")
    assert torch.equal(model(IDS).logits, before)


def test_gradients_equal_pefts(tmp_path):
    base = base_folder("llama", tmp_path / "base")
    their = get_peft_model(theirs(base), peft_config("llama", "embeddings", {}))
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    peft.load(model, tmp_path / "adapter")
    weigh = torch.randn(*IDS.shape, 31)
    (model(IDS) * weigh).sum().backward()
    (their(IDS).logits * weigh).sum().backward()
    small = {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}
    grads = {key: parameter.grad for key, parameter in tensors(model, state_of(model).sets["default"], small).items()}
    compared = 0
    for name, parameter in their.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name.replace(".default", "")], parameter.grad, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared == len(grads) == 8


def test_a_step_of_lora_plus_is_pefts(tmp_path):
    base = base_folder("llama", tmp_path / "base")
    their = get_peft_model(theirs(base), peft_config("llama", "all-linear", {}))
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    peft.load(model, tmp_path / "adapter")
    start = {key: value.clone() for key, value in stored(model).items()}
    peft.remove(model, "default")
    peft.attach(model, peft.LoRA(rank=3, alpha=5, lr_ratio=16))
    for key, value in stored(model).items():
        value.copy_(start[key])
    optimizers = (*adamw(model, 1e-3, 0.0, (0.9, 0.999)), create_loraplus_optimizer(their, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16))
    weigh = torch.randn(*IDS.shape, 31)
    for optimizer, loss in zip(optimizers, ((model(IDS) * weigh).sum(), (their(IDS).logits * weigh).sum())):
        loss.backward()
        optimizer.step()
    ours, compared = stored(model), 0
    for name, parameter in their.named_parameters():
        if parameter.requires_grad:
            key = name.replace(".default", "")
            # Adam's first step is lr g / (|g| + 1e-8): 1e-5 off in g leaves a thousandth of the step where |g| > 0.01
            sure = parameter.grad.abs() > 0.01
            torch.testing.assert_close((ours[key] - start[key])[sure], (parameter.detach() - start[key])[sure], rtol=1e-3, atol=1e-6)
            compared += 1
    assert compared == len(ours) == 28


def stored(model):
    """Key in the file -> the parameter's own numbers."""
    small = {path: wrapper.adapters["default"] for path, wrapper in state_of(model).wrappers.items()}
    return {key: parameter.detach() for key, parameter in tensors(model, state_of(model).sets["default"], small).items()}


def test_trap25_a_merged_tied_head_loads_in_transformers(tmp_path):
    config = transformers.LlamaConfig(**{**CONFIGS["llama"].to_dict(), "tie_word_embeddings": True})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = read_model(tmp_path / "base")
    peft.attach(model, peft.LoRA(rank=3, targets=["head"]))
    after = filled(model)(IDS)
    peft.merge(model)
    peft.remove(model, "default")
    write_model(model, tmp_path / "merged")
    close(after, theirs(tmp_path / "merged")(IDS).logits)


def test_trap25_a_merged_tied_head_of_a_transformers_object_is_saved_by_transformers(tmp_path):
    base = base_folder("gpt2", tmp_path / "base")
    model = theirs(base)
    assert model.lm_head.weight is model.transformer.wte.weight
    peft.attach(model, peft.LoRA(rank=3, targets=["lm_head"]))
    after = filled(model)(IDS).logits
    peft.merge(model)
    peft.remove(model, "default")
    model.save_pretrained(tmp_path / "merged")
    close(after, theirs(tmp_path / "merged")(IDS).logits)
