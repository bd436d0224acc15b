"""PiSSA files and outputs, both ways, against Hugging Face peft, which takes the principal part out of the base itself.

Tolerance 1e-5 absolute: logits of size ~1, sums of at most 64 float32 products, two blocks; peft's residual is rounded once more."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from minift import peft
from minift.errors import InputError
from minift.models.folder import read_model
from tests.parity.test_peft_lora import IDS, base_folder, close, theirs

CASES = [
    ("llama", "all-linear", {}), ("llama", ["q_proj", "v_proj"], dict(rslora=True)), ("gpt2", "all-linear", {}), ("gpt2", ["c_attn"], dict(rslora=True)),
    ("llama", "all-linear", dict(rank_pattern={"self_attn.q_proj": 5, r"layers\.1\.mlp\.up_proj": 1}, alpha_pattern={"v_proj": 2})),
]  # fmt: skip


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def moved(model):
    """A and B off their start, as after some training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name or "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def their_config(targets, options, start="pissa"):
    return LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_rslora=options.get("rslora", False), task_type="CAUSAL_LM", init_lora_weights=start,
        rank_pattern=options.get("rank_pattern", {}), alpha_pattern=options.get("alpha_pattern", {}),
    )  # fmt: skip


@pytest.mark.parametrize("as_lora", [True, False])
@pytest.mark.parametrize("family, targets, options", CASES)
def test_our_folder_loads_in_peft_with_the_same_outputs(family, targets, options, as_lora, tmp_path, recwarn):
    base = base_folder(family, tmp_path / "base")
    model = read_model(base)
    before = model(IDS)
    peft.attach(model, peft.PiSSA(rank=3, alpha=5, targets=targets, as_lora=as_lora, **options))
    assert torch.equal(model(IDS), before)
    ours = moved(model)(IDS)
    assert (ours - before).abs().max() > 0.1
    peft.save(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    assert "missing" not in " ".join(str(warning.message) for warning in recwarn)
    close(ours, loaded(IDS).logits)
    if as_lora:                                                            # theirs is a plain LoRA: its base is the base
        with loaded.disable_adapter():
            close(before, loaded(IDS).logits)
    close(ours, loaded.merge_and_unload()(IDS).logits)


@pytest.mark.parametrize("family, targets, options", CASES)
def test_trap30_pefts_folder_loads_in_ours_and_the_base_stays_the_base(family, targets, options, tmp_path):
    base = base_folder(family, tmp_path / "base")
    their = moved(get_peft_model(theirs(base), their_config(targets, options))).eval()
    their.save_pretrained(tmp_path / "adapter")
    model = read_model(base)
    before = model(IDS)
    peft.load(model, tmp_path / "adapter")
    close(model(IDS), their(IDS).logits)
    assert (model(IDS) - before).abs().max() > 0.1
    with peft.disabled(model):
        assert torch.equal(model(IDS), before)
    with their.disable_adapter():
        assert (their(IDS).logits - before).abs().max() > 0.1              # theirs is the residual only
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


def test_the_start_and_the_gradients_are_pefts(tmp_path):
    base = base_folder("gpt2", tmp_path / "base")
    their = get_peft_model(theirs(base), their_config("all-linear", {}))
    model = theirs(base)                                                   # a transformers object, with its Conv1D
    peft.attach(model, peft.PiSSA(rank=3, alpha=5))
    weigh = torch.randn(*IDS.shape, 31)
    for either in (model, their):
        (either(IDS).logits * weigh).sum().backward()
    found, compared = dict(their.named_parameters()), 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, end = name.removesuffix(".A").removesuffix(".B").removesuffix(".adapters.default"), name[-1]
            theirs_there = found[f"base_model.model.{path}.lora_{end}.default.weight"]
            torch.testing.assert_close(parameter, theirs_there, rtol=0, atol=1e-5)
            torch.testing.assert_close(parameter.grad, theirs_there.grad, rtol=1e-3, atol=1e-4)
            compared += 1
    assert compared == 16


def test_pefts_own_conversion_to_plain_lora_and_ours_are_the_same_change(tmp_path):
    base = base_folder("llama", tmp_path / "base")
    their = get_peft_model(theirs(base), their_config(["q_proj", "down_proj"], {}))
    their.peft_config["default"].init_lora_weights = True
    their.save_pretrained(tmp_path / "start")
    their.peft_config["default"].init_lora_weights = "pissa"
    moved(their).eval().save_pretrained(tmp_path / "pissa")
    their.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    converted, ours = read_model(base), read_model(base)
    peft.load(converted, tmp_path / "converted")
    peft.load(ours, tmp_path / "pissa")
    close(converted(IDS), their(IDS).logits)
    close(ours(IDS), converted(IDS))


def test_a_folder_that_peft_split_at_random_is_refused(tmp_path):
    base = base_folder("llama", tmp_path / "base")
    get_peft_model(theirs(base), their_config(["q_proj"], {}, "pissa_niter_4")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="'pissa_niter_4': the base was split with random numbers"):
        peft.load(read_model(base), tmp_path / "adapter")


def test_a_folder_of_peft_on_a_tied_head_is_refused(tmp_path):
    base = base_folder("gpt2", tmp_path / "base")
    get_peft_model(theirs(base), their_config(["lm_head"], {})).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(InputError, match="lm_head shares its weight with transformer.wte"):
        peft.load(read_model(base), tmp_path / "adapter")
