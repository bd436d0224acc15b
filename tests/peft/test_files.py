"""Adapter folders: what is written, what comes back, and every way a folder can be wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.encoder import Encoder
from tests.models.test_encoder import ENCODERS
from tests.peft.small import filled, gpt2, llama

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
METHOD = peft.LoRA(
    rank=3, alpha=5, dropout=0.1, targets=["q", "mlp.down", "embed", "head"], rank_pattern={"q_proj": 2}, alpha_pattern={"lm_head": 7}
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """(a bare model, the output it must have with the adapter, the adapter's folder)."""
    model = llama().eval()
    peft.attach(model, METHOD, "mine")
    after = filled(model)(IDS)
    peft.save(model, tmp_path / "adapter", "mine")
    peft.remove(model, "mine")
    return model, after, tmp_path / "adapter"


def test_an_encoders_adapter_is_for_features(tmp_path):
    encoder = Encoder(ENCODERS["bert"])
    peft.attach(encoder, peft.LoRA(targets="all-linear"))
    peft.save(encoder, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def refused(model, folder, words):
    """Loading fails with these words and leaves the model bare."""
    with pytest.raises(InputError, match=words):
        peft.load(model, folder)
    assert peft.names(model) == [] and all(p.requires_grad for p in model.parameters())


def test_the_files_are_the_documented_ones(saved):
    _, _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["fan_in_fan_out"] is False
    assert config["target_modules"] == ["down_proj", "embed_tokens", "lm_head", "q_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_rslora"]) == (3, 5, 0.1, False)
    shapes = {key: tuple(tensor.shape) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    assert len(shapes) == 12
    assert shapes["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"] == (2, 12)
    assert shapes["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"] == (12, 3)
    assert shapes["base_model.model.model.embed_tokens.lora_embedding_A"] == (3, 11)
    assert shapes["base_model.model.lm_head.lora_A.weight"] == (3, 12)


def test_gpt2_is_marked_as_transposed_and_partial_targets_by_their_full_paths(tmp_path):
    model = gpt2()
    peft.attach(model, peft.LoRA(rank=2, targets=["attention.out"]))       # c_proj alone would name mlp.c_proj too
    peft.save(model, tmp_path / "adapter", base_model="a/b")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True and config["base_model_name_or_path"] == "a/b"
    assert config["target_modules"] == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]


def test_a_loaded_adapter_gives_the_same_outputs_and_goes_on_learning(saved):
    model, after, folder = saved
    peft.load(model, folder, "again")
    assert torch.equal(model(IDS), after)
    assert peft.names(model) == ["again"] and not model.training
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 12 and all(".adapters.again." in name for name in trained)


def test_any_module_without_published_names_uses_its_own(tmp_path):
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 6)
    peft.attach(model, peft.LoRA(rank=2, rslora=True, targets=["2"]))
    after = filled(model)(x)
    peft.save(model, tmp_path / "adapter")
    assert "base_model.model.2.lora_A.weight" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    peft.remove(model, "default")
    peft.load(model, tmp_path / "adapter")
    assert torch.equal(model(x), after)


def test_a_merged_set_can_still_be_saved(saved, tmp_path):
    model, after, folder = saved
    peft.load(model, folder)
    peft.merge(model)
    peft.save(model, tmp_path / "twin")
    one, two = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "twin"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_trap26_a_fresh_process_gives_the_same_outputs(saved, tmp_path):
    model, after, folder = saved
    torch.save(dict(weights=model.state_dict(), ids=IDS, after=after.detach()), tmp_path / "expected.pt")
    script = (
        "import sys, torch; from minift import peft; from tests.peft.small import llama\n"
        "expected = torch.load(sys.argv[1]); model = llama().eval(); model.load_state_dict(expected['weights'])\n"
        "peft.load(model, sys.argv[2]); assert torch.equal(model(expected['ids']), expected['after'])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "expected.pt", folder], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_trap27_one_renamed_key_is_refused(saved):
    model, _, folder = saved
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    renamed = key.replace("q_proj", "query")
    change_weights(folder, lambda t: {renamed if name == key else name: tensor for name, tensor in t.items()})
    refused(model, folder, f"1 missing: {key}. 1 left over: {renamed}")


def test_trap27_a_stripped_prefix_is_refused(saved):
    model, _, folder = saved
    change_weights(folder, lambda t: {name.removeprefix("base_model.model."): v for name, v in t.items()})
    refused(model, folder, "12 missing: .* and 9 more. 12 left over")


def test_missing_extra_and_misshapen_tensors_are_refused(saved):
    model, _, folder = saved
    whole = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    change_weights(folder, lambda t: {name: v for name, v in t.items() if name != key})
    refused(model, folder, f"1 missing: {key}")
    change_weights(folder, lambda t: {**whole, "base_model.model.more": torch.ones(1)})
    refused(model, folder, "1 left over: base_model.model.more")
    change_weights(folder, lambda t: {**whole, key: whole[key][:, :-1].contiguous()})
    refused(model, folder, r"down_proj.lora_A.weight has shape \(3, 19\), but .* call for \(3, 20\)")
    change_weights(folder, lambda t: {**whole, key: whole[key] / 0})
    refused(model, folder, "down_proj.lora_A.weight contains NaN or infinity")


def test_a_rank_that_the_tensors_do_not_have_is_refused(saved):
    model, _, folder = saved
    change_config(folder, r=4)
    refused(model, folder, r"has shape \(3, .*call for \(4, .*rank in the config is another")


@pytest.mark.parametrize("field", [dict(r=6, lora_alpha=10), dict(lora_alpha=6)])
def test_the_scale_of_the_file_counts(saved, field):
    model, after, folder = saved
    if "r" in field:                                   # A and B padded with zeros to rank 6, alpha doubled: the same function
        change_config(folder, rank_pattern={}, r=6, lora_alpha=10, alpha_pattern={"lm_head": 14, "q_proj": 15})
        wide = lambda name, t: nn.functional.pad(t, (0, 0, 0, 6 - len(t)) if "_A" in name else (0, 6 - t.shape[1]))
        change_weights(folder, lambda tensors: {name: wide(name, t) for name, t in tensors.items()})
        peft.load(model, folder)
        torch.testing.assert_close(model(IDS), after)
    else:
        change_config(folder, **field)
        peft.load(model, folder)
        assert not torch.allclose(model(IDS), after)


def test_an_adapter_for_another_model_is_refused(saved):
    _, _, folder = saved
    change_config(folder, base_model_name_or_path="small/llama")
    refused(llama(hidden_size=24), folder, r"has shape .*, but .* call for .*made for small/llama; this model is a llama of 2 blocks, 24 wide")
    refused(llama(layers=3), folder, "missing: .*layers.2.*; this model is a llama of 3 blocks")
    refused(gpt2(), folder, "'down_proj' matches no linear or embedding of this model.*made for small/llama; this model is a gpt2 of 2 blocks, 12 wide")
    refused(nn.Sequential(nn.Linear(3, 2)), folder, "matches no linear.* this model is a Sequential")


def test_the_bases_own_rows_that_peft_adds_are_checked_and_not_loaded(saved):
    model, after, folder = saved
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    change_weights(folder, lambda t: {**t, key: model.embed.weight.detach().to(torch.bfloat16)})
    peft.load(model, folder)
    assert torch.equal(model(IDS), after)
    peft.remove(model, "default")
    change_weights(folder, lambda t: {**t, key: model.embed.weight.detach() + 1})
    refused(model, folder, "embed_tokens.base_layer.weight is not this model's own weight")


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(use_dora=True), "6 missing: .*lora_magnitude_vector"),
        (dict(lora_bias=True), "does not implement lora_bias = True"),
        (dict(modules_to_save=["score"]), r"comes with a score head .modules_to_save = \['score'\]"),
        (dict(layers_to_transform=[1]), "layers_to_transform"),
        (dict(some_new_option=3), "some_new_option = 3"),
        (dict(bias="all"), "bias is 'all'"),
        (dict(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
        (dict(peft_type="LOHA"), "peft_type is 'LOHA'; minift reads LORA"),
        (dict(peft_type=None), "peft_type is None"),
        (dict(target_modules=None), "target_modules is None"),
        (dict(target_modules=["query"]), "'query' matches no linear"),
        (dict(r="3"), "rank is '3'"),
        (dict(lora_alpha="a"), "adapter_config.json: "),
        (dict(rank_pattern=[2]), "adapter_config.json: "),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_name(saved, fields, words):
    model, _, folder = saved
    change_config(folder, **fields)
    refused(model, folder, words)


def test_options_that_are_off_or_say_nothing_are_accepted(saved):
    model, after, folder = saved
    off = dict(use_dora=False, modules_to_save=None, eva_config=None, loftq_config={})
    change_config(folder, **off, megatron_core="megatron.core", peft_version="9")
    peft.load(model, folder)
    assert torch.equal(model(IDS), after)


def test_folders_that_are_no_adapter_are_refused(saved, tmp_path):
    model, _, folder = saved
    refused(model, tmp_path / "nowhere", "no such folder")
    refused(model, tmp_path, "has no adapter_config.json")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    for part in (whole[:-4], whole[:5], b""):
        weights.write_bytes(part)
        refused(model, folder, "adapter_model.safetensors is damaged or cut short")
    weights.unlink()
    refused(model, folder, "has no adapter_model.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04\x95 a pickle")
    refused(model, folder, "only a pickled adapter_model.bin")
    config.write_text("{")
    refused(model, folder, "not valid JSON")
    config.write_text("[]")
    refused(model, folder, "must hold a JSON object, not a list")


def test_saving_never_replaces_a_folder_unasked(saved):
    model, after, folder = saved
    peft.load(model, folder)
    with pytest.raises(InputError, match="is in use"):
        peft.save(model, folder)
    peft.save(model, folder, overwrite=True)
    with pytest.raises(InputError, match=r"no set named 'other'; it has \['default'\]"):
        peft.save(model, folder, "other", overwrite=True)
    peft.remove(model, "default")
    peft.load(model, folder)
    assert torch.equal(model(IDS), after)


@pytest.mark.parametrize("change", [dict(lora_alpha=None), dict(lora_dropout="x"), dict(rank_pattern=[1]), dict(peft_type=["LORA"])])
def test_a_field_of_a_wrong_kind_is_an_input_error_that_names_the_file(tmp_path, change):
    model = llama()
    peft.attach(model, peft.LoRA(rank=2))
    peft.save(model, tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(InputError, match="adapter_config.json: "):
        peft.load(llama(), tmp_path / "a")


def test_an_adapter_with_half_a_pair_cannot_be_inspected(tmp_path):
    from minift.peft.changes import changes

    with pytest.raises(InputError, match="q has lora_A.weight but no lora_B.weight: the file is not whole"):
        changes(peft.LoRA(rank=2), {"base_model.model.q.lora_A.weight": torch.ones(2, 3)})
