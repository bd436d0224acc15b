"""Every family against transformers: random tiny models with odd shapes, none of whose numbers is 0 or 1.

Logits of a float32 model of width 16-64 and 2-3 blocks differ by rounding only: about 1e-6 for logits of size 1, bounded here by 1e-4.
Gradients are compared per tensor, relative to its largest entry, after renaming (and transposing GPT-2's) to transformers' names."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from minift.models.folder import read_model, write_model
from minift.models.names import is_transposed, module_names

LLAMA = dict(
    vocab_size=97, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=5,
    max_position_embeddings=512, rms_norm_eps=1e-4, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)
GQA = {**LLAMA, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
GPT2 = dict(vocab_size=97, n_embd=36, n_layer=3, n_head=3, n_positions=300, layer_norm_epsilon=1e-4, bos_token_id=1, eos_token_id=2)
NEOX = dict(
    vocab_size=97, hidden_size=60, intermediate_size=70, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=512,
    layer_norm_eps=1e-4,
)
FALCON = dict(vocab_size=97, hidden_size=40, num_hidden_layers=3, num_attention_heads=5, layer_norm_epsilon=1e-4)
FALCON40 = {**FALCON, "hidden_size": 48, "num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True}
BLOOM = dict(vocab_size=97, hidden_size=40, n_layer=3, n_head=5, layer_norm_epsilon=1e-4)

CASES = {                                                                  # name: (model_type, config, T)
    "gpt2": ("gpt2", GPT2, 23),
    "gpt2_long": ("gpt2", GPT2, 300),
    "gpt2_untied_narrow_erf": ("gpt2", {**GPT2, "tie_word_embeddings": False, "n_inner": 50, "activation_function": "gelu"}, 23),
    "llama": ("llama", LLAMA, 23),
    "llama_long": ("llama", LLAMA, 400),
    "llama_tied_gqa": ("llama", {**GQA, "tie_word_embeddings": True}, 23),
    "llama_wide_heads": ("llama", {**GQA, "head_dim": 12}, 23),
    "llama_multi_query": ("llama", {**GQA, "num_key_value_heads": 1}, 23),
    "llama_biases": ("llama", {**GQA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}, 23),
    "llama_theta": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 300),
    "llama_linear": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}, 300),
    "llama_dynamic_short": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}}, 23),
    "llama_dynamic_long": (
        "llama",
        {**LLAMA, "max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}},
        301,
    ),
    "llama3": ("llama", {**GQA, "rope_parameters": {**LLAMA3, "rope_theta": 500.0}}, 300),
    "mistral_full": ("mistral", {**GQA, "sliding_window": None}, 23),
    "mistral_window": ("mistral", {**GQA, "sliding_window": 7}, 23),
    "mistral_window_long": ("mistral", {**GQA, "sliding_window": 100, "head_dim": 10}, 300),
    "qwen2": ("qwen2", GQA, 23),
    "qwen2_window": ("qwen2", {**GQA, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, 23),
    "qwen3": ("qwen3", {**GQA, "head_dim": 12}, 23),
    "qwen3_tied_biased": ("qwen3", {**LLAMA, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}, 300),
    "qwen3_window": (
        "qwen3",
        {
            **GQA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        23,
    ),
    "falcon_7b": ("falcon", {**FALCON, "multi_query": True}, 23),
    "falcon_7b_untied_biased": ("falcon", {**FALCON, "multi_query": True, "bias": True, "tie_word_embeddings": False}, 300),
    "falcon_40b": ("falcon", FALCON40, 23),
    "falcon_40b_one_norm": ("falcon", {**FALCON40, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 50}, 23),
    "falcon_per_head": ("falcon", {**FALCON, "multi_query": False}, 23),
    "falcon_sequential": ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True}, 23),
    "bloom": ("bloom", BLOOM, 23),
    "bloom_eight_heads_long": ("bloom", {**BLOOM, "n_head": 8}, 300),
    "gpt_neox": ("gpt_neox", {**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.3}}, 300),
    "gpt_neox_sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False}, 23),
    "gpt_neox_tied": ("gpt_neox", {**NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_fast"}, 23),
    "gpt_neox_linear": (
        "gpt_neox",
        {**NEOX, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        300,
    ),
    "gemma": ("gemma", {**GQA, "head_dim": 12, "tie_word_embeddings": True, "pad_token_id": None}, 23),
    "gemma_multi_query": ("gemma", {**LLAMA, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": None}, 300),
}


def peer_of(model_type: str, fields: dict) -> transformers.PreTrainedModel:
    """A transformers model in which no tensor is trivial: norms near 1 but not 1, biases not 0, attention far from uniform."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    peer = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in peer.named_parameters():
        if parameter.ndim == 1:
            centre = 0.0 if name.endswith("bias") or model_type == "gemma" else 1.0
            parameter.data = centre + 0.3 * torch.randn_like(parameter)
        else:
            parameter.data = torch.randn_like(parameter) * (0.5 if "emb" in name or "wte" in name or "wpe" in name else 0.2)
    peer.tie_weights()
    return peer


def tokens(T: int) -> torch.Tensor:
    return torch.randint(3, 97, (2, T), generator=torch.Generator().manual_seed(1))


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("case", CASES)
def test_trap36_logits_and_gradients_equal_transformers_for_every_family(case, tmp_path):
    model_type, fields, T = CASES[case]
    peer, ids = peer_of(model_type, fields), tokens(T)
    peer.save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs")

    theirs_logits, our_logits = peer(ids).logits, ours(ids)
    assert theirs_logits.std() > 0.5                                       # the comparison would mean little on flat logits
    assert (our_logits - theirs_logits).abs().max() < 1e-4

    loss_of(theirs_logits, ids).backward()
    loss_of(our_logits, ids).backward()
    theirs = {name.replace("lm_head", "embed_out") if model_type == "gpt_neox" else name: p for name, p in peer.named_parameters()}
    names = module_names(ours.config)
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        wanted = theirs.pop(f"{names[module]}.{kind}").grad
        wanted = wanted.T if kind == "weight" and is_transposed(ours.config, module) else wanted
        assert (parameter.grad - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-7, name
    assert not theirs                                                      # no parameter of theirs was left uncompared

    write_model(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad():
        assert (again(ids).logits - theirs_logits).abs().max() < 1e-4
    assert set(load_file(tmp_path / "ours/model.safetensors")) == set(load_file(tmp_path / "theirs/model.safetensors"))
    assert again.config.eos_token_id == peer.config.eos_token_id and again.config.bos_token_id == peer.config.bos_token_id


@pytest.mark.parametrize("case", ["gpt2", "llama3", "qwen3_window", "falcon_40b", "bloom", "gpt_neox", "gemma"])
def test_a_config_written_by_transformers_4_reads_the_same(case, tmp_path):
    model_type, fields, T = CASES[case]
    peer = peer_of(model_type, fields)
    peer.save_pretrained(tmp_path)
    new = read_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters", None)
    if rope and model_type == "gpt_neox":
        config["rotary_emb_base"], config["rotary_pct"] = rope.pop("rope_theta"), rope.pop("partial_rotary_factor")
        config["rope_scaling"] = None
    elif rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else {**rope, "type": rope.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = read_model(tmp_path)
    assert old.config == new.config
    assert torch.equal(old(tokens(T)), new(tokens(T)))



@pytest.mark.parametrize("case", ["llama", "gpt2", "bloom", "mistral_window"])
def test_trap09_left_padded_rows_equal_transformers_run_alone(case, tmp_path):
    model_type, fields, _ = CASES[case]
    peer, ids = peer_of(model_type, fields), tokens(23)
    peer.save_pretrained(tmp_path)
    ours = read_model(tmp_path)
    segments = torch.tensor([[0] * 9 + [1] * 14, [1] * 23])               # row 0 begins with 9 pads
    logits = ours(ids, segments=segments)
    with torch.no_grad():
        alone = peer(ids[:1, 9:]).logits
    assert logits.isfinite().all()
    assert (logits[:1, 9:] - alone).abs().max() < 1e-4
