"""Folders with quantized weights against transformers + bitsandbytes on the CPU, both ways: tensors, config.json, weights, logits.

Weights that both sides compute from the same bytes are compared to the bit (int8: two roundings apart, they multiply by 1/127 as a float), so
logits differ by the order of float32 sums only and have the bound of tests/parity/test_families.py.
Their models run in training mode, without dropout: in eval mode bitsandbytes rounds on the CPU what it computes with, scales to bfloat16 where
AVX-512 has that, activations to int8 for LLM.int8(). The widths are no multiples of 16, or multiples of 64: for others (32, 48, 80, 96, 160)
bitsandbytes 0.50.2 dequantizes wrongly on a CPU with AVX-512, which the last test shows against its own plain implementation."""

import json

import bitsandbytes
import pytest
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file

from minift.models.folder import write_model as write_full
from minift.models.transformer import Transformer
from minift.quant import QuantizedLinear, dequantize, quantize, quantize_model
from minift.quant.folder import read_model, write_model
from minift_kernels.codes import four_bit_map
from tests.models.small import BIASED, GPT, ModelConfig, randomised, tokens

SHAPE = dict(vocab_size=31, layers=2, max_positions=64)
CONFIGS = {
    "llama": ModelConfig(**SHAPE, hidden_size=36, heads=3, kv_heads=3, head_dim=12, mlp_size=55, tie_embeddings=False),    # blocks across rows, odd K
    "llama_tied": ModelConfig(**SHAPE, hidden_size=64, heads=4, kv_heads=2, head_dim=16, mlp_size=128),
    "gpt2": ModelConfig(
        **SHAPE, hidden_size=36, heads=3, kv_heads=3, head_dim=12, mlp_size=100, **GPT, family="gpt2", activation="gelu_tanh",
        position="learned", qkv="joined",
    ),
    "qwen2": ModelConfig(**SHAPE, hidden_size=64, heads=4, kv_heads=2, head_dim=16, mlp_size=192, family="qwen2", qkv_bias=True),
    "llama_biased": ModelConfig(**SHAPE, **{**BIASED, "attention_out_bias": True}, hidden_size=36, heads=3, kv_heads=1, head_dim=12, mlp_size=72),
}  # fmt: skip
SCHEMES = [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("int8", False)]
IDS = tokens(2, 9)


def full_model(name: str, scheme: str) -> Transformer:
    """Random weights; for int8 such that float16 holds them, to which bitsandbytes rounds before it quantizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomised(Transformer(CONFIGS[name]))
    return model.half().float() if scheme == "int8" else model


def theirs(folder, scheme=None, double=False, dtype=torch.float32, **options):
    """Their model of a folder, quantized if a scheme is named; and what it says of missing and unexpected keys."""
    how = {}
    if scheme == "int8":
        how = dict(quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True, **options))
    elif scheme is not None:
        how = dict(quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=scheme, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype, **options
        ))    # fmt: skip
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", output_loading_info=True, **how)
    assert not any(info.values()), info
    return model.train()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    found = model(IDS)
    return found if torch.is_tensor(found) else found.logits


def method(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.fixture
def folders(request, tmp_path):
    """(their quantized model, the folder they wrote, our quantized model, the folder we wrote), all of the same full weights."""
    name, (scheme, double) = request.param
    write_full(full_model(name, scheme), tmp_path / "full")
    peer = theirs(tmp_path / "full", scheme, double)
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "full")
    quantize_model(ours, scheme, double_quant=double)
    write_model(ours, tmp_path / "ours")
    return peer, tmp_path / "theirs", ours, tmp_path / "ours"


EACH = pytest.mark.parametrize(
    "folders", [(name, scheme) for name in CONFIGS for scheme in SCHEMES], indirect=True, ids=lambda case: f"{case[0]}-{case[1][0]}-{case[1][1]}"
)


@EACH
def test_both_write_the_same_and_read_each_other(folders):
    peer, their_folder, ours, our_folder = folders

    want, have = load_file(their_folder / "model.safetensors"), load_file(our_folder / "model.safetensors")
    assert set(have) == set(want)
    for name in want:
        assert have[name].dtype == want[name].dtype and have[name].shape == want[name].shape and torch.equal(have[name], want[name]), name
    want, have = method(their_folder), method(our_folder)
    assert have.pop("llm_int8_skip_modules") == ["lm_head"] and want.pop("llm_int8_skip_modules") is None      # None: found by looking at the model
    assert have == {field: value for field, value in want.items() if not field.startswith("_")}

    read, wanted = read_model(their_folder), logits(peer)
    modules = dict(peer.named_modules())
    for path, module in read.named_modules():
        if isinstance(module, QuantizedLinear):
            their_weight = full_weight(modules[read.module_names()[path]])
            torch.testing.assert_close(module.weight, their_weight, rtol=2**-22 if module.q.scheme == "int8" else 0, atol=0)
    torch.testing.assert_close(logits(read), wanted, rtol=0, atol=1e-4)
    assert torch.equal(logits(read), logits(ours))
    torch.testing.assert_close(logits(theirs(our_folder)), wanted, rtol=0, atol=1e-4)


def full_weight(linear) -> torch.Tensor:
    """(N, K) of a bitsandbytes linear."""
    if isinstance(linear, bitsandbytes.nn.Linear4bit):
        return dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    scales = linear.weight.SCB if getattr(linear.weight, "SCB", None) is not None else linear.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(linear.weight.data, scales)


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_quantizing_while_reading_gives_their_weights_too(scheme, tmp_path):
    write_full(full_model("qwen2", scheme), tmp_path / "full")
    peer, ours = theirs(tmp_path / "full", scheme, True), read_model(tmp_path / "full", quantize=scheme)
    torch.testing.assert_close(logits(ours), logits(peer), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_bfloat16_weights_are_theirs_to_the_bit(scheme, tmp_path):
    """Short numbers often lie exactly between two codes."""
    write_full(full_model("llama_tied", scheme), tmp_path / "full")
    peer = theirs(tmp_path / "full", scheme, True, torch.bfloat16)
    peer.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs/config.json").read_text())["dtype"] == "bfloat16"
    ours, modules = read_model(tmp_path / "theirs", dtype=torch.bfloat16), dict(peer.named_modules())
    again = read_model(tmp_path / "full", dtype=torch.bfloat16, quantize=scheme)
    for path, module in ours.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(module.weight, full_weight(modules[ours.module_names()[path]]))
            assert module.weight.dtype == torch.bfloat16 and torch.equal(module.weight, again.get_submodule(path).weight)


def test_what_they_skip_stays_full_and_what_we_skip_too(tmp_path):
    write_full(full_model("llama", "nf4"), tmp_path / "full")
    skip = ["lm_head", "gate_proj"]
    peer = theirs(tmp_path / "full", "nf4", True, llm_int8_skip_modules=skip)
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs")
    assert not isinstance(ours.blocks[1].mlp.gate, QuantizedLinear) and isinstance(ours.blocks[1].mlp.up, QuantizedLinear)
    torch.testing.assert_close(logits(ours), logits(peer), rtol=0, atol=1e-4)
    write_model(ours, tmp_path / "ours")
    assert method(tmp_path / "ours")["llm_int8_skip_modules"] == ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj", "lm_head"]
    again = theirs(tmp_path / "ours")
    assert type(again.model.layers[1].mlp.gate_proj) is torch.nn.Linear
    torch.testing.assert_close(logits(again), logits(peer), rtol=0, atol=1e-4)


def test_shards_whose_borders_run_through_a_weight_are_read_both_ways(tmp_path):
    write_full(full_model("llama_tied", "nf4"), tmp_path / "full")
    peer = theirs(tmp_path / "full", "nf4", True)
    peer.save_pretrained(tmp_path / "theirs", max_shard_size=4_000)
    ours = read_model(tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(peer), rtol=0, atol=1e-4)
    write_model(ours, tmp_path / "ours", max_shard_bytes=4_000)
    files = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())["weight_map"]
    weight = "model.layers.0.mlp.up_proj.weight"
    assert len({file for name, file in files.items() if name.startswith(weight)}) > 1
    torch.testing.assert_close(logits(theirs(tmp_path / "ours")), logits(peer), rtol=0, atol=1e-4)


@pytest.mark.parametrize("K", [28, 48, 64, 96])
def test_where_their_cpu_dequantization_is_wrong_their_plain_one_agrees_with_ours(K):
    weight = torch.randn(24, K, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    plain = _dequantize_4bit_compute(packed.reshape(-1), state.absmax, four_bit_map("nf4"), 64, weight.shape, torch.float32)
    assert torch.equal(dequantize(quantize(weight, "nf4", double_quant=False)), plain)
    if K % 16 or K % 64 == 0:
        assert torch.equal(dequantize_4bit(packed, state), plain)
