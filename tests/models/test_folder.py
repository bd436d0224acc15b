"""Checkpoint folders: what is written reads back to the bit, what does not fit is refused by name, loading costs no second copy."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minift.errors import InputError
from minift.models import stored as files
from minift.models.config import ModelConfig
from minift.models.folder import read_config, read_model, write_model
from minift.models.parameters import Parameters
from minift.models.transformer import Transformer
from tests.models.small import CONFIGS, SHAPE, model, tokens


def change(folder, edit) -> None:
    """Rewrite the weight file with edit(tensors) -> tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(edit(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def llama(tmp_path):
    write_model(model("llama"), tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_written_model_reads_back_to_the_bit(name, tmp_path):
    before = model(name)
    write_model(before, tmp_path / "m")
    after = read_model(tmp_path / "m")
    assert after.config == before.config and not after.training
    assert [n for n, _ in after.named_parameters()] == [n for n, _ in before.named_parameters()]
    for (_, one), (_, other) in zip(before.named_parameters(), after.named_parameters()):
        assert torch.equal(one, other) and other.requires_grad
    assert torch.equal(before(tokens(2, 9)), after(tokens(2, 9)))


def test_files_have_the_family_names_and_say_pt(llama):
    assert sorted(file.name for file in llama.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(llama / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "model.layers.1.mlp.gate_proj.weight" in file.keys() and "lm_head.weight" in file.keys()


def test_gpt2_weights_are_stored_transposed_worked_by_hand(tmp_path):
    before = model("gpt2")
    write_model(before, tmp_path / "m")
    stored = load_file(tmp_path / "m/model.safetensors")
    qkv = before.blocks[0].attention.qkv.weight                                              # (3 C, C)
    assert stored["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    assert stored["transformer.h.0.attn.c_attn.weight"][5, 70] == qkv[70, 5]
    assert torch.equal(stored["transformer.wte.weight"], before.embed.weight)


def test_a_large_model_is_written_in_shards_with_an_index(tmp_path):
    before = model("gpt2")
    write_model(before, tmp_path / "m", max_shard_bytes=10_000)
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == 4 * index["metadata"]["total_parameters"] == 4 * sum(p.numel() for p in before.parameters())
    for file in files:
        held = load_file(tmp_path / "m" / file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 10_000 or len(held) == 1
        assert all(index["weight_map"][name] == file for name in held)
    assert torch.equal(read_model(tmp_path / "m")(tokens(1, 9)), before(tokens(1, 9)))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_every_float_dtype_is_cast_as_it_is_read(stored, wanted, tmp_path):
    before = model("gpt2").to(stored)
    write_model(before, tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    after = read_model(tmp_path / "m", dtype=wanted)
    for (_, one), (_, other) in zip(before.named_parameters(), after.named_parameters()):
        assert other.dtype == wanted and torch.equal(one.to(wanted), other)


def test_slices_smaller_than_a_tensor_give_the_same_model(tmp_path, monkeypatch):
    write_model(model("gpt2"), tmp_path / "m")
    monkeypatch.setattr(files, "SLICE_BYTES", 500)                                         # 5 rows of 24 floats: 31 and 64 do not divide
    assert torch.equal(read_model(tmp_path / "m")(tokens(1, 9)), model("gpt2")(tokens(1, 9)))


@pytest.mark.parametrize("name", ["gpt2", "bloom", "falcon_7b", "mistral"])
def test_tied_embeddings_are_read_under_either_name_or_both(name, tmp_path):
    before = model(name)
    write_model(before, tmp_path / "m")
    embed = before.module_names()["embed"] + ".weight"
    assert "lm_head.weight" not in load_file(tmp_path / "m/model.safetensors")               # stored once
    change(tmp_path / "m", lambda t: {**t, "lm_head.weight": t[embed].clone()})
    both = read_model(tmp_path / "m")
    change(tmp_path / "m", lambda t: {name: tensor for name, tensor in t.items() if name != embed})
    head_only = read_model(tmp_path / "m")
    for after in (both, head_only):
        assert after.head.weight is after.embed.weight
        assert torch.equal(after(tokens(1, 9)), before(tokens(1, 9)))


def test_two_different_matrices_under_a_tied_config_are_refused(tmp_path):
    write_model(model("gpt2"), tmp_path / "m")
    change(tmp_path / "m", lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"] + 1})
    with pytest.raises(InputError, match="ties lm_head.weight to transformer.wte.weight.*different values.*tie_word_embeddings to false"):
        read_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["gpt2", "bloom", "falcon_40b", "mistral"])
def test_a_base_model_without_the_prefix_is_read(name, tmp_path):
    before = model(name)
    write_model(before, tmp_path / "m")
    change(tmp_path / "m", lambda t: {name.partition(".")[2]: tensor for name, tensor in t.items()})
    assert torch.equal(read_model(tmp_path / "m")(tokens(1, 9)), before(tokens(1, 9)))


def test_masks_and_rotary_frequencies_of_old_files_are_passed_over(tmp_path, llama):
    write_model(model("gpt2"), tmp_path / "gpt2")
    mask = torch.ones(1, 1, 64, 64).tril()
    change(tmp_path / "gpt2", lambda t: {**t, "transformer.h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)})
    assert torch.equal(read_model(tmp_path / "gpt2")(tokens(1, 9)), model("gpt2")(tokens(1, 9)))
    change(llama, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    read_model(llama)


# -- what is refused -----------------------------------------------------------------------------------------------------------------


def refused(folder, text) -> None:
    with pytest.raises(InputError, match=text):
        read_model(folder)


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "no such folder: .*nowhere")


def test_a_file_is_no_folder(llama):
    refused(llama / "config.json", "is a file: name the checkpoint folder")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, r"is not a checkpoint: it has no config.json \(found: notes.txt\)")


def test_config_without_weights(llama):
    (llama / "model.safetensors").unlink()
    refused(llama, "no weights: wanted model.safetensors or model.safetensors.index.json")


def test_pickled_weights_are_refused_and_never_opened(llama):
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")           # would run a program if unpickled
    refused(llama, r"pickled weights only \(pytorch_model.bin\).*can run any program.*save_pretrained")


@pytest.mark.parametrize("text, named", [("{not json", "is not JSON"), ("[1]", "holds a list: wanted a JSON object"), ("\xff", "not JSON")])
def test_a_broken_config(llama, text, named):
    (llama / "config.json").write_bytes(text.encode("latin-1"))
    refused(llama, f"config.json.*{named}")


def test_a_config_with_a_byte_order_mark_is_read(llama):
    (llama / "config.json").write_bytes(b"\xef\xbb\xbf" + (llama / "config.json").read_bytes())
    assert read_config(llama) == CONFIGS["llama"]


def test_an_unknown_family_names_the_file_and_the_known_ones(llama):
    reconfigure(llama, model_type="mamba")
    refused(llama, "config.json: model_type is 'mamba': known families are gpt2, llama")


@pytest.mark.parametrize("keep", [0, 5, 200, -1, -1000])
def test_a_truncated_file(llama, keep):
    whole = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(whole[:keep])
    refused(llama, "model.safetensors is cut short or damaged.*download or copy it again")


def test_a_tampered_header(llama):
    whole = (llama / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"] = [0, 10**12]                                # points outside the file
    forged = json.dumps(header).encode()
    (llama / "model.safetensors").write_bytes(struct.pack("<Q", len(forged)) + forged + whole[8 + length :])
    refused(llama, "cut short or damaged")
    (llama / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + whole[8:])          # a header of exabytes
    refused(llama, "cut short or damaged")


def test_missing_tensors_are_named(llama):
    change(llama, lambda t: {name: tensor for name, tensor in t.items() if "layers.1.mlp" not in name})
    refused(llama, "missing: model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight")


def test_trap27_a_renamed_tensor_is_both_missing_and_left_over(llama):
    change(llama, lambda t: {name.replace("layers.0.mlp.up_proj", "layers.0.mlp.up"): tensor for name, tensor in t.items()})
    refused(llama, "missing: model.layers.0.mlp.up_proj.weight; left over: model.layers.0.mlp.up.weight")


def test_a_checkpoint_of_more_layers_is_refused(llama):
    reconfigure(llama, num_hidden_layers=1)
    refused(llama, "left over: model.layers.1.input_layernorm.weight, .* and 3 more")


def test_a_wrong_shape_names_both_shapes(llama):
    reconfigure(llama, vocab_size=32)
    refused(llama, r"wrong shape: lm_head.weight is \(31, 24\), wanted \(32, 24\), model.embed_tokens.weight is \(31, 24\)")


def test_a_missing_head_suggests_the_tie(llama):
    change(llama, lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"})
    refused(llama, "missing: lm_head.weight; if the head is the embedding matrix, set tie_word_embeddings to true")


def test_integer_weights_are_refused(llama):
    change(llama, lambda t: {**t, "model.norm.weight": t["model.norm.weight"].to(torch.int8)})
    refused(llama, "not a float: model.norm.weight is I8; wanted F64, F32, F16, BF16")


def test_a_tensor_stored_with_and_without_its_prefix(llama):
    change(llama, lambda t: {**t, "norm.weight": t["model.norm.weight"].clone()})
    refused(llama, "is there twice")


def test_a_missing_shard_and_a_confused_index(tmp_path):
    write_model(model("gpt2"), tmp_path / "m", max_shard_bytes=20_000)
    path = tmp_path / "m/model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]

    name = next(name for name, file in index["weight_map"].items() if file == first)
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: second}}))
    refused(tmp_path / "m", f"{first} holds {name}, but model.safetensors.index.json puts it in {second}")
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "x.weight": first}}))
    refused(tmp_path / "m", f"{first} lacks x.weight")
    path.write_text(json.dumps({"weight_map": {name: "../other.safetensors"}}))              # no way out of the folder
    refused(tmp_path / "m", "no weight_map from tensor names to files of this folder")
    path.write_text(json.dumps(index))
    (tmp_path / "m" / second).unlink()
    refused(tmp_path / "m", f"{second} is missing, but model.safetensors.index.json names it")


def test_a_used_folder_is_not_written_to_unless_told(llama):
    before = (llama / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="in use.*--overwrite"):
        write_model(model("gpt2"), llama)
    assert (llama / "model.safetensors").read_bytes() == before
    write_model(model("gpt2"), llama, overwrite=True)
    assert read_config(llama) == CONFIGS["gpt2"]


def test_a_model_that_is_not_what_its_config_says_is_not_written(tmp_path):
    strange = model("llama")
    strange.blocks[1].attention.q.A = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="too many: blocks.1.attention.q.A; missing: none.*merge or remove adapters"):
        write_model(strange, tmp_path / "m")
    wide = model("llama")
    wide.embed.weight = torch.nn.Parameter(torch.ones(40, 24))
    with pytest.raises(InputError, match=r"embed.weight is \(40, 24\), but config wants \(31, 24\)"):
        write_model(wide, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_trap25_a_model_whose_tie_was_cut_is_not_written_as_tied(tmp_path):
    cut = model("mistral")
    cut.head.weight = torch.nn.Parameter(cut.head.weight + 1)
    with pytest.raises(InputError, match="too many: head.weight.*tie_embeddings"):
        write_model(cut, tmp_path / "m")


# -- memory --------------------------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys, torch
from minift.models.folder import read_model
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
model = read_model(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""
"""Prints the peak of a load in units of the model. VmHWM starts afresh in a new program; ru_maxrss remembers its parent's peak."""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A GPT-2 of 60 million numbers, 240 MB: its embedding alone is a third."""
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 30000, "hidden_size": 768, "layers": 5, "heads": 12, "kv_heads": 12, "head_dim": 64, "mlp_size": 3072}
    config = ModelConfig(**{**CONFIGS["gpt2"].__dict__, **shape})
    path = tmp_path_factory.mktemp("big") / "m"
    write_model(Transformer(config), path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc, which is Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_peaks_at_the_model_and_a_slice(big, dtype):
    """On 1 GB checkpoints 1.02 in float32 and 1.05 cast to bfloat16 were measured (the limit is 1.15). This model is a quarter of that,
    so its slice weighs more: (240 + 32) / 240 = 1.13, and cast (120 + 32) / 120 = 1.27. A second copy would show as 2, or cast as 3."""
    command = [sys.executable, "-c", MEASURE, str(big), dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ratio < {"float32": 1.15, "bfloat16": 1.3}[dtype]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_parameters_are_those_of_the_model_read_one_at_a_time(name, tmp_path):
    before = model(name)
    write_model(before, tmp_path / "m")
    found, wanted = Parameters(tmp_path / "m"), dict(before.named_parameters(remove_duplicate=False))      # gpt2 is tied, llama is not
    assert set(found) == set(wanted) and len(found) == len(wanted) and "head.weight" in found and "embed.weights" not in found
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
