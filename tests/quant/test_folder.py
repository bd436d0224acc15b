"""Folders with quantized weights: quantizing while reading, writing and reading back, what is refused, and what it costs in memory."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minift as package
from minift.errors import InputError
from minift.generate import generate
from minift.models import folder as full
from minift.models.config import ModelConfig
from minift.models.parameters import Parameters
from minift.models.transformer import Transformer
from minift.quant import Linear4bit, QuantizedLinear, dequantize_model, folder, quantize_model
from minift.quant.folder import read_model, write_model
from minift.quant.tensor import tensors
from tests.models.small import CONFIGS, model, tokens

SCHEMES = ("nf4", "fp4", "int8", "int4")
UP = "model.layers.0.mlp.up_proj"                                                          # (28, 24): 672 numbers, 11 blocks of 64
STATE = f"{UP}.weight.quant_state.bitsandbytes__nf4"


def change(path, edit) -> None:
    """Rewrite the weight file after edit(tensors)."""
    held = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    edit(held)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})


def reconfigure(path, **fields) -> None:
    """Change fields of quantization_config."""
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {**config["quantization_config"], **fields}
    (path / "config.json").write_text(json.dumps(config))


def restate(path, **fields) -> None:
    """Change fields of the JSON beside UP's weight; None removes one."""
    def edit(held):
        state = {**json.loads(bytes(held[STATE].tolist())), **fields}
        held[STATE] = torch.tensor(list(json.dumps({k: v for k, v in state.items() if v is not None}).encode()), dtype=torch.uint8)

    change(path, edit)


def quantized_folder(path, scheme="nf4", name="llama", **options):
    decoder = model(name)
    quantize_model(decoder, scheme, **options)
    write_model(decoder, path)
    return path


@pytest.fixture
def nf4(tmp_path):
    return quantized_folder(tmp_path / "nf4")


def quantized(decoder) -> dict[str, QuantizedLinear]:
    return {path: module for path, module in decoder.named_modules() if isinstance(module, QuantizedLinear)}


def same(one: Transformer, other: Transformer) -> None:
    """Every tensor, codes and scales too, equal to the bit; and which of them learn."""
    assert [(n, p.requires_grad) for n, p in one.named_parameters()] == [(n, p.requires_grad) for n, p in other.named_parameters()]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert quantized(one).keys() == quantized(other).keys()
    for path, module in quantized(one).items():
        q, r = module.q, other.get_submodule(path).q
        assert (q.scheme, q.shape, q.dtype, type(module)) == (r.scheme, r.shape, r.dtype, type(other.get_submodule(path)))
        assert all(torch.equal(tensor, tensors(r)[name]) and tensor.dtype == tensors(r)[name].dtype for name, tensor in tensors(q).items())
    assert torch.equal(one(tokens(2, 9)), other(tokens(2, 9)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gpt_neox", "falcon_40b"])
def test_quantizing_while_reading_writing_and_reading_are_quantize_model_to_the_bit(name, scheme, tmp_path):
    full.write_model(model(name), tmp_path / "full")
    wanted = full.read_model(tmp_path / "full")
    quantize_model(wanted, scheme)
    streamed = read_model(tmp_path / "full", quantize=scheme)
    assert not streamed.training and "blocks.0.mlp.up" in quantized(streamed) and "head" not in quantized(streamed)
    same(streamed, wanted)
    write_model(streamed, tmp_path / "quantized")
    same(read_model(tmp_path / "quantized"), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pieces_and_slices_smaller_than_a_matrix_give_the_same_codes(name, scheme, tmp_path, monkeypatch):
    torch.manual_seed(0)
    wide = Transformer(ModelConfig(**{**CONFIGS[name].__dict__, "mlp_size": 333}))              # 333 = 5 * 64 + 13 rows of 24
    full.write_model(wide, tmp_path / "full")
    quantize_model(wide.eval(), scheme)
    monkeypatch.setattr(folder, "PIECE", 24 * 64)                                              # 64 rows of gpt2's and llama's 24 columns
    monkeypatch.setattr("minift.models.stored.SLICE_BYTES", 4 * 24 * 150)                      # 150 rows, so 128
    same(read_model(tmp_path / "full", quantize=scheme), wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_before_they_are_quantized_and_what_stays_full_is_in_that_dtype(dtype, tmp_path):
    full.write_model(model("qwen2"), tmp_path / "full")
    wanted = full.read_model(tmp_path / "full", dtype)
    quantize_model(wanted, "nf4")
    streamed = read_model(tmp_path / "full", dtype, quantize="nf4")
    same(streamed, wanted)
    assert {p.dtype for p in streamed.parameters()} == {streamed.blocks[0].mlp.up.weight.dtype} == {dtype}
    write_model(streamed, tmp_path / "quantized")
    assert json.loads((tmp_path / "quantized/config.json").read_text())["quantization_config"]["bnb_4bit_compute_dtype"] == str(dtype)[6:]
    same(read_model(tmp_path / "quantized", dtype), wanted)
    as_float = read_model(tmp_path / "quantized")                                              # as .to(torch.float32) makes it
    assert {p.dtype for p in as_float.parameters()} == {as_float.blocks[0].mlp.up.weight.dtype} == {torch.float32}


def test_the_tensors_of_a_4_bit_weight_worked_by_hand(tmp_path):
    single = quantized_folder(tmp_path / "m", "fp4", double_quant=False)
    held = load_file(single / "model.safetensors")
    shapes = {name.removeprefix(UP): (tuple(tensor.shape), tensor.dtype) for name, tensor in held.items() if name.startswith(UP)}
    state = ".weight.quant_state.bitsandbytes__fp4"
    assert shapes.pop(state)[1] == torch.uint8
    assert shapes == {
        ".weight": ((336, 1), torch.uint8), ".weight.absmax": ((11,), torch.float32), ".weight.quant_map": ((16,), torch.float32)
    }    # fmt: skip
    text = '{"quant_type": "fp4", "blocksize": 64, "dtype": "float32", "shape": [28, 24]}'
    assert bytes(held[UP + state].tolist()).decode() == text
    assert held[UP + ".weight.absmax"][10] == model("llama").blocks[0].mlp.up.weight.flatten()[640:].abs().max()      # the short last block
    assert held["lm_head.weight"].dtype == held["model.norm.weight"].dtype == held["model.embed_tokens.weight"].dtype == torch.float32


def test_gpt2_matrices_are_packed_turned_so_that_the_output_comes_first(tmp_path):
    path = quantized_folder(tmp_path / "m", "int8", "gpt2")
    stored = load_file(path / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    qkv = model("gpt2").blocks[0].attention.qkv.weight                                         # (72, 24); full, it lies in files as (24, 72)
    assert stored.shape == (72, 24) and (stored.argmax(dim=1) == qkv.argmax(dim=1)).float().mean() > 0.9


@pytest.mark.parametrize("double, bits", [(False, 4.5), (True, 4.127)])
def test_bits_per_weight_on_the_disk(double, bits, tmp_path):
    """4 + 32 / 64, and 4 + 8 / 64 + 32 / (64 * 256) = 4.12695. Beside them each weight has its maps and JSON: at most 1,300 bytes."""
    torch.manual_seed(0)
    decoder = Transformer(ModelConfig(**{**CONFIGS["llama"].__dict__, "hidden_size": 512, "head_dim": 128, "heads": 4, "kv_heads": 4, "mlp_size": 1024, "layers": 1}))
    numbers = sum(m.weight.numel() for path, m in decoder.named_modules() if isinstance(m, torch.nn.Linear) and path != "head")
    full_bytes = sum(p.nbytes for p in decoder.parameters()) - 4 * numbers
    quantize_model(decoder, "nf4", double_quant=double)
    write_model(decoder, tmp_path / "m")
    held = {n: t for n, t in load_file(tmp_path / "m/model.safetensors").items() if "_proj" in n}
    codes = sum(t.nbytes for n, t in held.items() if not n.endswith("_map") and "quant_state" not in n)
    assert abs(8 * codes / numbers - bits) < 0.0005
    beside = (tmp_path / "m/model.safetensors").stat().st_size - full_bytes - codes
    assert beside < 7 * (1300 + 8 * 160)                                                       # 7 linears; a header of 160 bytes for a tensor


def test_a_half_quantized_model_is_written_and_read(tmp_path):
    decoder = model("qwen2")
    quantize_model(decoder, "nf4", skip=("head", "down", "blocks.0.attention.q"))
    write_model(decoder, tmp_path / "m")
    method = json.loads((tmp_path / "m/config.json").read_text())["quantization_config"]
    assert method["llm_int8_skip_modules"] == [
        "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"
    ]    # fmt: skip
    same(read_model(tmp_path / "m"), decoder)


def test_a_quantized_base_model_without_the_prefix_is_read(tmp_path):
    path = quantized_folder(tmp_path / "m", name="gpt2")
    wanted = read_model(path)

    def strip(held):
        for name in list(held):
            held[name.removeprefix("transformer.")] = held.pop(name)

    change(path, strip)
    same(read_model(path), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_load_and_save_do_all_of_it_and_the_loaded_model_generates(scheme, small_model, tmp_path):
    decoder, tokenizer = package.load(small_model, quantize=scheme)
    package.save(decoder, tokenizer, tmp_path / "m")
    again, tokenizer = package.load(tmp_path / "m")
    assert generate(again, tokenizer, ["Return the"], 8) == generate(decoder, tokenizer, ["Return the"], 8)
    dequantize_model(again)
    package.save(again, tokenizer, tmp_path / "plain")
    plain, _ = package.load(tmp_path / "plain")
    assert not quantized(plain) and torch.equal(plain(tokens(1, 5)), again(tokens(1, 5)))
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())


def test_shards_are_written_and_read(tmp_path):
    decoder = model("llama")
    quantize_model(decoder, "nf4")
    write_model(decoder, tmp_path / "m", max_shard_bytes=2_000)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    same(read_model(tmp_path / "m"), decoder)


# -- what is refused -----------------------------------------------------------------------------------------------------------------


def refused(path, text, **options) -> None:
    with pytest.raises(InputError, match=text):
        read_model(path, **options)


def test_quantizing_twice(nf4):
    refused(nf4, "is in nf4 already: quantizing twice would add the errors. Leave out quantize, or start from the full weights", quantize="nf4")


def test_an_unknown_scheme(tmp_path):
    full.write_model(model(), tmp_path / "m")
    refused(tmp_path / "m", "no scheme is called 'nf3': choose one of nf4, fp4, int8, int4", quantize="nf3")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_place(bad, tmp_path, monkeypatch):
    for name, weight in (("llama", f"{UP}.weight"), ("gpt2", "transformer.h.0.mlp.c_fc.weight")):
        decoder = model(name)
        decoder.blocks[0].mlp.up.weight.data[27, 5] = bad
        full.write_model(decoder, tmp_path / name)
        refused(tmp_path / name, rf"model.safetensors: {weight} holds {bad} in torch.float32 at row 27, column 5 of \(output, input\)", quantize="nf4")


def test_full_weights_are_asked_for_and_the_folder_is_quantized(nf4):
    for read in (full.read_model, Parameters):
        with pytest.raises(InputError, match="the weights are quantized, and full ones are wanted here.*dequantize_model and minift.save"):
            read(nf4)


METHODS = {
    "quant_method is 'gptq': minift reads bitsandbytes and its own int4": {"quant_method": "gptq"},
    "load_in_4bit is True and load_in_8bit is True: one of them must be true": {"load_in_8bit": True},
    "load_in_4bit is None and load_in_8bit is False": {"load_in_4bit": None},
    "bnb_4bit_quant_type is 'nf5': minift reads nf4 or fp4": {"bnb_4bit_quant_type": "nf5"},
    "bnb_4bit_quant_storage is 'bfloat16': minift reads uint8": {"bnb_4bit_quant_storage": "bfloat16"},
    "bnb_4bit_compute_dtype is 'int8': minift reads float32 or bfloat16 or float16": {"bnb_4bit_compute_dtype": "int8"},
    "llm_int8_has_fp16_weight is True: minift reads False": {"llm_int8_has_fp16_weight": True},
    "quant_type is None with 4 bits: minift's own form is int4 with 4 bits": {"quant_method": "minift", "bits": 4},
    "group_size is 4: wanted a whole number of columns, at least 8": {"quant_method": "minift", "quant_type": "int4", "bits": 4, "group_size": 4},
}


@pytest.mark.parametrize("text", METHODS)
def test_a_method_that_is_not_implemented(nf4, text):
    reconfigure(nf4, **METHODS[text])
    refused(nf4, f"config.json: quantization_config: {text}")


def test_a_config_that_says_fp4_of_nf4_weights(nf4):
    reconfigure(nf4, bnb_4bit_quant_type="fp4")
    refused(nf4, "found model.layers.0.*bitsandbytes__nf4, but config.json says fp4: files of two checkpoints")


STATES = {
    "quant_type is 'fp4', wanted nf4": {"quant_type": "fp4"},
    r"shape is \[24, 28\], wanted \[28, 24\]": {"shape": [24, 28]},
    "blocksize is 63, wanted 32 or 64 or 128": {"blocksize": 63},
    "dtype is 'int4', wanted float32 or bfloat16 or float16": {"dtype": "int4"},
    "nested_blocksize is 128, wanted 256": {"nested_blocksize": 128},
    "nested_blocksize is None, wanted 256": {"nested_blocksize": None},
    "nested_dtype is 'float16', wanted float32": {"nested_dtype": "float16"},
    "nested_offset is nan, wanted a finite number": {"nested_offset": math.nan},
    "nested_offset is None, wanted a finite number": {"nested_offset": None},
    r"nested_offset is 1e\+300, wanted a finite number": {"nested_offset": 1e300},
    "nested_offset is True, wanted a finite number": {"nested_offset": True},
    "blocksize is 64.0, wanted 32 or 64 or 128": {"blocksize": 64.0},
}


@pytest.mark.parametrize("text", STATES)
def test_a_quant_state_that_does_not_fit(nf4, text):
    restate(nf4, **STATES[text])
    refused(nf4, f"{STATE}: {text}.*; copy or write the folder again")


def test_a_block_size_that_the_scales_do_not_fit(nf4):
    restate(nf4, blocksize=128)
    refused(nf4, rf"{UP}.weight.absmax is U8 \(11,\), wanted U8 \(6,\)")


@pytest.mark.parametrize("content, text", [(b"{nf4", "is not JSON"), (b"\xff", "is not JSON"), (b"[1]", r"holds \[1\]: wanted a JSON object")])
def test_a_quant_state_that_is_no_json(nf4, content, text):
    change(nf4, lambda held: held.update({STATE: torch.tensor(list(content), dtype=torch.uint8)}))
    refused(nf4, f"{STATE} {text}")


NESTED, NEST_MAP = f"{UP}.weight.nested_absmax", f"{UP}.weight.nested_quant_map"
EDITS = {
    f"does not have the tensors it needs; missing: {UP}.weight.absmax": lambda h: h.pop(f"{UP}.weight.absmax"),
    f"missing: {NEST_MAP}": lambda h: h.pop(NEST_MAP),
    f"missing: {STATE}, without which nobody knows block size and shape": lambda h: h.pop(STATE),
    f"missing: {UP}.weight; left over: {UP}.weight.absmax, {NESTED}": lambda h: h.pop(f"{UP}.weight"),
    f"left over: {UP}.SCB": lambda h: h.update({f"{UP}.SCB": torch.ones(28)}),
    "left over: model.layers.7.mlp.up_proj.weight, model.layers.7.mlp.up_proj.weight.absmax": lambda h: h.update(
        {name.replace("layers.0", "layers.7"): t.clone() for name, t in h.items() if name.startswith(UP)}
    ),
    rf"{UP}.weight is U8 \(335, 1\), wanted U8 \(336, 1\)": lambda h: h.update({f"{UP}.weight": h[f"{UP}.weight"][:-1].clone()}),
    rf"{UP}.weight is F32 \(28, 24\), wanted U8 \(336, 1\)": lambda h: h.update({f"{UP}.weight": torch.ones(28, 24)}),
    rf"{NESTED} is F32 \(2,\), wanted F32 \(1,\)": lambda h: h.update({NESTED: torch.ones(2)}),
    rf"{NEST_MAP} is F32 \(255,\), wanted F32 \(256,\)": lambda h: h.update({NEST_MAP: h[NEST_MAP][1:].clone()}),
    rf"{NEST_MAP} holds 0 at \[126\], wanted -5.5e-07: not the map we know": lambda h: h[NEST_MAP].__setitem__(126, 0.0),
    rf"{UP}.weight.quant_map holds 0.5 at \[3\], wanted -0.3949175: not the map we know": lambda h: h[f"{UP}.weight.quant_map"].__setitem__(3, 0.5),
    rf"{NESTED} holds nan at \[0\]: a scale must be a finite number": lambda h: h[NESTED].fill_(math.nan),
    "not a float: model.layers.0.mlp.up_proj.weight is U8": lambda h: [h.pop(name) for name in list(h) if name.startswith(f"{UP}.weight.")],
    "embed_tokens.weight is quantized, but it is no linear": lambda h: h.update({"model.embed_tokens.weight.absmax": torch.ones(3)}),
}


@pytest.mark.parametrize("text", EDITS)
def test_tensors_that_do_not_fit(nf4, text):
    change(nf4, EDITS[text])
    refused(nf4, text)


OTHERS = {
    ("fp4", rf"{UP}.weight.absmax holds inf at \[10\]"): lambda h: h[f"{UP}.weight.absmax"].__setitem__(10, math.inf),
    ("fp4", f"left over: {NESTED}"): lambda h: h.update({NESTED: torch.ones(1)}),
    ("int8", rf"{UP}.SCB holds nan at \[27\]"): lambda h: h[f"{UP}.SCB"].__setitem__(27, math.nan),
    ("int8", rf"{UP}.SCB is F32 \(24,\), wanted F32 \(28,\)"): lambda h: h.update({f"{UP}.SCB": torch.ones(24)}),
    ("fp4", rf"{UP}.weight.absmax holds -1 at \[10\]: a scale is not below zero"): lambda h: h[f"{UP}.weight.absmax"].__setitem__(10, -1.0),
    ("nf4", rf"{NESTED} holds -0.5 at \[0\]: a scale is not below zero"): lambda h: h[NESTED].fill_(-0.5),
    ("int8", rf"{UP}.SCB holds -1 at \[27\]: a scale is not below zero"): lambda h: h[f"{UP}.SCB"].__setitem__(27, -1.0),
    ("int8", rf"{UP}.weight holds -128 at \[3, 5\]: codes go from -127 to 127"): lambda h: h[f"{UP}.weight"].__setitem__((3, 5), -128),
    ("int4", rf"{UP}.weight.scale holds -1 at \[3, 0\]: a scale is not below zero"): lambda h: h[f"{UP}.weight.scale"].__setitem__((3, 0), -1.0),
    ("int8", f"{UP}.weight_format is 2: minift reads 0"): lambda h: h[f"{UP}.weight_format"].fill_(2),
    ("int8", f"missing: {UP}.weight_format"): lambda h: h.pop(f"{UP}.weight_format"),
    ("int4", rf"{UP}.weight.scale holds nan at \[3, 0\]"): lambda h: h[f"{UP}.weight.scale"].__setitem__((3, 0), math.nan),
    ("int4", f"{UP}.weight.zero holds 16: zero points are codes from 0 to 15"): lambda h: h[f"{UP}.weight.zero"].__setitem__((3, 0), 16),
    ("int4", f"missing: {UP}.weight.zero"): lambda h: h.pop(f"{UP}.weight.zero"),
}


@pytest.mark.parametrize("scheme, text", OTHERS)
def test_tensors_of_other_schemes_that_do_not_fit(scheme, text, tmp_path):
    path = quantized_folder(tmp_path / "m", scheme, **({"double_quant": False} if scheme == "fp4" else {}))
    change(path, OTHERS[scheme, text])
    refused(path, text)


def test_an_offset_that_json_writes_without_a_point(nf4):
    restate(nf4, nested_offset=0)
    assert read_model(nf4).blocks[0].mlp.up.q.absmax.offset.item() == 0.0


def test_a_config_that_says_nf4_of_full_weights(nf4, tmp_path):
    full.write_model(model(), tmp_path / "full")
    (tmp_path / "full/config.json").write_text((nf4 / "config.json").read_text())
    refused(tmp_path / "full", "config.json says nf4, but every weight is full: remove quantization_config from it")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("options", [{}, {"quantize": "nf4"}])
def test_quantized_weights_of_which_config_says_nothing(scheme, options, tmp_path):
    path = quantized_folder(tmp_path / "m", scheme)
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    refused(path, r"these are quantized weights \(.*\), but config.json lacks quantization_config", **options)


def test_numbers_too_large_for_the_scheme_are_named_while_reading(tmp_path):
    decoder = model()
    decoder.blocks[0].mlp.up.weight.data[27, 5] = 2e37
    full.write_model(decoder, tmp_path / "int4")
    refused(tmp_path / "int4", f"{UP}.weight: from row 0 on: row 27, group 0 of the weight goes from .* to 2e.37: int4's scales", quantize="int4")
    decoder.blocks[0].mlp.up.weight.data[:, :] = 3.4e38
    full.write_model(decoder, tmp_path / "nf4")
    refused(tmp_path / "nf4", f"{UP}.weight: numbers this large become an infinity in nf4 and torch.float32", quantize="nf4")


def test_a_group_size_that_the_scales_do_not_fit(tmp_path):
    path = quantized_folder(tmp_path / "m", "int4", block_size=16)
    reconfigure(path, group_size=8)
    refused(path, r"weight.scale is F16 \(\d+, 2\), wanted F16 \(\d+, 3\)")


def test_models_in_several_schemes_and_with_adapters_are_not_written(tmp_path):
    mixed = model()
    quantize_model(mixed, "nf4", skip=("head", "up"))
    mixed.blocks[0].mlp.up = QuantizedLinear.of(mixed.blocks[0].mlp.up, "int8")
    with pytest.raises(InputError, match="weights in int8 and in nf4: a folder can hold one kind. Quantize all of them alike"):
        write_model(mixed, tmp_path / "m")
    groups = model()
    for block, size in zip(groups.blocks, (8, 16)):
        block.mlp.up = QuantizedLinear.of(block.mlp.up, "int4", size)
    with pytest.raises(InputError, match="int4 in groups of 16 and in int4 in groups of 8"):
        write_model(groups, tmp_path / "m")
    strange = model()
    quantize_model(strange, "nf4")
    strange.blocks[0].mlp.up.A = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="too many: blocks.0.mlp.up.A; missing: none.*merge or remove adapters"):
        write_model(strange, tmp_path / "m")
    wrong = model()
    wrong.blocks[0].mlp.up = QuantizedLinear.of(torch.nn.Linear(24, 30, bias=False), "nf4")
    with pytest.raises(InputError, match=r"blocks.0.mlp.up.weight is \(30, 24\), but config wants \(28, 24\): mend model.config"):
        write_model(wrong, tmp_path / "m")
    assert not (tmp_path / "m").exists() and isinstance(wrong.blocks[0].mlp.up, Linear4bit)


# -- memory --------------------------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys, torch
from minift.models import stored
from minift.quant import quantize
from minift.quant.folder import QuantizedLinear, read_model, tensors
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
quantize(torch.ones(64, 64), "nf4")
stored.SLICE_BYTES = 4 * 2**20
before = peak()
model = read_model(sys.argv[1], quantize="nf4")
size = sum(p.nbytes for p in model.parameters())
size += sum(t.nbytes for m in model.modules() if isinstance(m, QuantizedLinear) for t in tensors(m.q).values())
print(peak() - before - size)
"""
"""Prints how far the peak of a load is above the loaded model. VmHWM starts afresh in a new program; ru_maxrss remembers its parent's peak."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc, which is Linux's")
def test_quantizing_while_reading_peaks_at_the_quantized_model_a_slice_and_a_piece(tmp_path):
    """The largest matrices have 34 MB, read in slices of 4 MB. The work on a piece, 2^18 numbers, takes at most 64 bytes each: 17 MB. With tiny
    slices and pieces 8 to 11 MB were measured: the skeleton, and what torch allocates at first use. One of the matrices whole would be 34 MB
    more than the last two. benchmarks/quant_load.py measures a checkpoint of 1 GB."""
    config = ModelConfig(**{**CONFIGS["gpt_neox"].__dict__, "hidden_size": 1024, "head_dim": 16, "heads": 64, "kv_heads": 64, "mlp_size": 8192, "layers": 1})
    plan = full.wanted_tensors(config, full.skeleton(config))
    full.write_tensors(full.to_hf(config), {w.name: torch.full(w.shape, 0.01) for w in plan.values()}, tmp_path / "m")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "m")]
    over = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert over < 4 * 2**20 + 64 * 2**18 + 11e6
