"""DoRA files, outputs and gradients, both ways, against Hugging Face peft on transformers models with the same weights.

Tolerance 1e-5 absolute: logits of size ~1, sums of at most 64 float32 products, two blocks."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from minift import peft
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.dora import DoRALinear
from minift.peft.files import tensors
from tests.parity.test_peft_lora import CONFIGS, HEAD_AND_EMBEDDING, IDS, base_folder, close, theirs

CASES = [
    ("llama", "all-linear", {}), ("llama", ["q_proj", "v_proj"], dict(rslora=True)), ("llama", "embeddings", {}),
    ("gpt2", "all-linear", {}), ("gpt2", ["c_attn"], dict(rslora=True)), ("gpt2", ["wte", "wpe", "c_attn"], {}),
    ("llama", "all-linear", dict(rank_pattern={"self_attn.q_proj": 5, r"layers\.1\.mlp\.up_proj": 1}, alpha_pattern={"v_proj": 2})),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def trained_like(model):
    """A and B random, lengths off those of the base."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".A", ".B")) or "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                nn.init.normal_(parameter, std=0.3)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model


def their_model(base, family, targets, options, dropout=0.0):
    chosen = HEAD_AND_EMBEDDING[family] if targets == "embeddings" else targets
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=chosen, use_dora=True, use_rslora=options.get("rslora", False), task_type="CAUSAL_LM",
        rank_pattern=options.get("rank_pattern", {}), alpha_pattern=options.get("alpha_pattern", {}), lora_dropout=dropout,
    )  # fmt: skip
    return get_peft_model(theirs(base), config)


@pytest.mark.parametrize("family, targets, options", CASES)
def test_our_adapter_loads_in_peft_with_the_same_outputs(family, targets, options, tmp_path, recwarn):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    before = model(IDS)
    peft.attach(model, peft.DoRA(rank=3, alpha=5, targets=HEAD_AND_EMBEDDING[family] if targets == "embeddings" else targets, **options))
    assert torch.equal(model(IDS), before)                                 # step 0
    ours = trained_like(model)(IDS)
    assert (ours - before).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    assert "missing" not in " ".join(str(warning.message) for warning in recwarn)
    close(ours, loaded(IDS).logits)
    placed = sum(1 for name, _ in loaded.named_parameters() if "lora_" in name)
    assert placed == len(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    peft.merge(model)
    close(model(IDS), ours)
    if targets != "embeddings" and "wte" not in targets:                   # peft writes through the tie (trap 25)
        close(model(IDS), loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family, targets, options", CASES)
def test_pefts_adapter_loads_in_ours_with_the_same_outputs(family, targets, options, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = trained_like(their_model(base, family, targets, options)).eval()
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    before = model(IDS)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    assert (model(IDS) - before).abs().max() > 0.1
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    lora = {key: tensor for key, tensor in one.items() if "base_layer" not in key}
    assert lora.keys() == two.keys() and all(torch.equal(lora[key], two[key]) for key in two)


def test_our_start_is_pefts_start(tmp_path):
    base = base_folder("gpt2", tmp_path / "base")
    their = their_model(base, "gpt2", ["wte", "c_attn", "c_fc"], {})
    model = theirs(base)
    before = model(IDS).logits
    peft.attach(model, peft.DoRA(rank=3, targets=["wte", "c_attn", "c_fc"]))      # on a transformers object, its Conv1D included
    assert torch.equal(model(IDS).logits, before)
    ours = {path: wrapper.adapters["default"].magnitude for path, wrapper in state_of(model).wrappers.items()}
    found = {name: p for name, p in their.named_parameters() if "magnitude" in name}
    assert len(ours) == len(found) == 5
    for name, parameter in found.items():
        torch.testing.assert_close(next(m for path, m in ours.items() if f".{path}." in name), parameter)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_transformers_model_object_answers_as_pefts(family, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = trained_like(their_model(base, family, "all-linear", {})).eval()
    their.save_pretrained(tmp_path / "adapter")
    model = theirs(base)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS).logits, their(IDS).logits)
    peft.merge(model)
    close(model(IDS).logits, their(IDS).logits)


@pytest.mark.parametrize("family, targets", [("llama", "embeddings"), ("gpt2", ["wte", "c_attn", "c_proj"])])
def test_gradients_equal_pefts(family, targets, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = trained_like(their_model(base, family, targets, {}))
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
            key = name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            largest = parameter.grad.abs().max().item()                    # float32 rounds sums in which such terms stand
            torch.testing.assert_close(grads[key], parameter.grad, rtol=0, atol=1e-5 * largest)
            compared += 1
    assert compared == len(grads) == {"llama": 12, "gpt2": 21}[family]


@pytest.mark.parametrize("bias", [True, False])
def test_trap29_dropout_gives_pefts_outputs_and_gradients(bias):
    plain = nn.Sequential(nn.Linear(40, 5, bias=bias))
    their = trained_like(get_peft_model(plain, LoraConfig(r=3, lora_alpha=5, use_dora=True, lora_dropout=0.5, target_modules=["0"])))
    layer, x, weigh = their.base_model.model[0], torch.randn(6, 40), torch.randn(6, 5)
    ours = DoRALinear(layer.base_layer, 3, 5 / 3, dropout=0.5)
    with torch.no_grad():
        ours.A.copy_(layer.lora_A["default"].weight), ours.B.copy_(layer.lora_B["default"].weight)
        ours.magnitude.copy_(layer.lora_magnitude_vector["default"].weight)
    results = []
    for run in (lambda: their(x), lambda: ours(layer.base_layer, x)):
        torch.manual_seed(7)
        results.append(run())
    torch.testing.assert_close(*results)
    for y in results:
        (y * weigh).sum().backward()
    torch.testing.assert_close(ours.A.grad, layer.lora_A["default"].weight.grad)
    torch.testing.assert_close(ours.B.grad, layer.lora_B["default"].weight.grad)
    torch.testing.assert_close(ours.magnitude.grad, layer.lora_magnitude_vector["default"].weight.grad)
