import json
import os

import pytest
import torch

from minift import folder as folders
from minift import peft
from minift.errors import InputError
from minift.folder import bundled, load, locate, save
from tests.conftest import random_model


def test_what_is_saved_is_loaded_to_the_bit(small_tokenizer, tmp_path):
    model = random_model(small_tokenizer, tie_embeddings=False)
    save(model, small_tokenizer, tmp_path / "model")
    again, tokenizer = load(tmp_path / "model")
    assert again.config == model.config and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer.encode("The naïve 😀 café\n") == small_tokenizer.encode("The naïve 😀 café\n")


def test_a_saved_folder_is_a_hugging_face_checkpoint(small_model):
    assert {file.name for file in small_model.iterdir()} == {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    assert json.loads((small_model / "config.json").read_text())["model_type"] == "llama"


def test_a_saved_folder_keeps_the_template_it_was_given(small_model, tmp_path):
    model, tokenizer = load(small_model)
    tokenizer.chat_template = "{{ messages[0].content }}"
    save(model, tokenizer, tmp_path / "model")
    assert load(tmp_path / "model")[1].chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_in_the_dtype_asked_for(small_model, dtype):
    assert {parameter.dtype for parameter in load(small_model, dtype)[0].parameters()} == {dtype}


def test_a_name_is_a_folder_first_and_a_bundled_model_else(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ASSETS", small_model.parent)
    assert bundled() == ["small"] and locate("small") == small_model
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert locate("small").resolve() == tmp_path / "small"
    with pytest.raises(InputError, match=r"no such folder: huge \(bundled models: small\)"):
        locate("huge")
    monkeypatch.setattr(folders, "ASSETS", tmp_path)
    with pytest.raises(InputError, match=r"\(bundled models: none\)"):
        locate("huge")


def test_an_adapter_and_a_run_are_no_models_and_the_error_says_what_to_name(small_model, tmp_path):
    model, _ = load(small_model)
    peft.attach(model, peft.LoRA(rank=2, alpha=4))
    peft.save(model, tmp_path / "adapter")
    with pytest.raises(InputError, match="holds an adapter, not a model: name the base model as the model and pass this folder with --adapter"):
        load(tmp_path / "adapter")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="is the folder of a run, not a model: name its subfolder 'model'"):
        load(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta:x"])
def test_a_device_that_is_not_there(small_model, device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used here .*: cpu always can"):
        load(small_model, device=device)


def test_a_model_with_an_adapter_attached_is_not_saved_as_a_plain_one(small_model, tmp_path):
    model, tokenizer = load(small_model)
    peft.attach(model, peft.LoRA(rank=2, alpha=4))
    with pytest.raises(InputError, match="merge or remove adapters"):
        save(model, tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_kept_unless_told(small_model, tmp_path):
    model, tokenizer = load(small_model)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine").write_text("mine")
    with pytest.raises(InputError, match="pass --overwrite to replace it"):
        save(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model/mine").read_text() == "mine"
    save(model, tokenizer, tmp_path / "model", overwrite=True)
    assert not (tmp_path / "model/mine").exists() and locate(tmp_path / "model")


def test_a_full_disk_while_the_tokenizer_is_written_keeps_the_old_model(small_model, tmp_path, monkeypatch):
    model, tokenizer = load(small_model)
    save(model, tokenizer, tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with torch.no_grad():
        model.embed.weight += 1

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(model, tokenizer, tmp_path / "model", overwrite=True)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_folder_whose_replacement_was_killed_half_way_is_found_again(small_model, tmp_path):
    model, tokenizer = load(small_model)
    save(model, tokenizer, tmp_path / "model")
    os.replace(tmp_path / "model", tmp_path / ".model.old")                        # the first of the two renames of a swap
    assert load(tmp_path / "model")[0].config == model.config


def test_the_tokenizer_must_fit_the_embedding(small_tokenizer, tmp_path):
    save(random_model(small_tokenizer), small_tokenizer, tmp_path / "model")
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**config, "additional_special_tokens": ["<a>", "<b>"]}))
    with pytest.raises(InputError, match=r"402 tokens but the model's embedding has 400 rows \(no row for '<a>', '<b>'"):
        load(tmp_path / "model")
