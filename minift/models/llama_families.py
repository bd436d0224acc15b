"""LLaMA and its children: RMSNorm, rotary positions, a gated MLP, and three linears for q, k and v.

LLaMA 1-3, Mistral (a sliding window), Qwen2 (q, k, v biases), Qwen3 (q and k are normed), Gemma 1 (norm weights stored as w - 1).
For each: config.json -> ModelConfig, and `_back` the other way; families.py puts them together.
Proved in tests/models/test_families.py and, against transformers, in tests/parity/test_families.py."""

import dataclasses

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.hf_fields import HF_ACTIVATION, REQUIRED, activation, check, head_width, read_rope, rope_fields, special_ids, take


def llama(hf: dict) -> ModelConfig:
    """Touvron et al. 2023 (arXiv:2302.13971): RoPE, RMSNorm, SwiGLU. Mistral, Qwen and Gemma below are this with changes."""
    C, heads = take(hf, ("hidden_size",), REQUIRED), take(hf, ("num_attention_heads",), REQUIRED)
    vocab_size, max_positions = take(hf, ("vocab_size",), REQUIRED), take(hf, ("max_position_embeddings",), 2048)
    theta, part, scaling = read_rope(hf, max_positions)
    if part != 1.0:
        raise InputError(f"partial_rotary_factor is {part}: the {hf['model_type']} family rotates whole heads, so it must be 1")
    bias = take(hf, ("attention_bias",), False)
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("num_hidden_layers",), REQUIRED),
        heads=heads,
        kv_heads=take(hf, ("num_key_value_heads",), None) or heads,
        head_dim=take(hf, ("head_dim",), None) or head_width(C, heads),
        mlp_size=take(hf, ("intermediate_size",), REQUIRED),
        max_positions=max_positions,
        norm="rmsnorm",
        norm_eps=take(hf, ("rms_norm_eps",), 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=activation(hf, "hidden_act", "silu"),
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=take(hf, ("mlp_bias",), False),
        tie_embeddings=take(hf, ("tie_word_embeddings",), False),
        dropout=take(hf, ("hidden_dropout",), 0.0),
        **special_ids(hf, vocab_size, bos=1, eos=2, pad=None),
    )


def llama_back(c: ModelConfig) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_size,
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": HF_ACTIVATION[c.activation],
        "attention_bias": c.qkv_bias,
        "mlp_bias": c.mlp_bias,
        **({"hidden_dropout": c.dropout} if c.dropout else {}),           # transformers has no such field here and leaves it alone
        **rope_fields(c),
    }


def _windows(kinds: list[str], width: int | None) -> tuple[int | None, ...]:
    """ModelConfig.windows: `width` where the layer slides, None where it sees everything, () if none slides."""
    if "sliding_attention" not in kinds:
        return ()
    return tuple(width if kind == "sliding_attention" else None for kind in kinds)


def mistral(hf: dict) -> ModelConfig:
    """Jiang et al. 2023 (arXiv:2310.06825): LLaMA whose tokens see the last `sliding_window` tokens only."""
    check(hf, "attention_bias", False)
    check(hf, "mlp_bias", False)
    config = llama({"max_position_embeddings": 131072, "num_key_value_heads": 8, **hf})
    width = take({"sliding_window": 4096, **hf}, ("sliding_window",), None)                  # absent: 4096; null: every token
    kinds = ["sliding_attention" if width else "full_attention"] * config.layers
    if hf.get("layer_types") not in (None, kinds):
        raise InputError(f"layer_types is {hf['layer_types']!r}: in Mistral every layer has the sliding_window ({width})")
    return dataclasses.replace(config, family="mistral", windows=_windows(kinds, width))


def mistral_back(c: ModelConfig) -> dict:
    return {**llama_back(c), "architectures": ["MistralForCausalLM"], "sliding_window": c.window(0)}


def qwen2(hf: dict) -> ModelConfig:
    """Qwen 2024 (arXiv:2407.10671): LLaMA with biases on q, k and v; a sliding window in the upper blocks if switched on."""
    check(hf, "mlp_bias", False)
    config = llama({"max_position_embeddings": 32768, "num_key_value_heads": 32, "bos_token_id": None, "eos_token_id": None, **hf})
    width = take({"sliding_window": 4096, **hf}, ("sliding_window",), None) if take(hf, ("use_sliding_window",), False) else None
    first = hf.get("max_window_layers", 28)
    kinds = ["sliding_attention" if width and layer >= first else "full_attention" for layer in range(config.layers)]
    kinds = hf.get("layer_types") or kinds
    if len(kinds) != config.layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise InputError(f"layer_types is {kinds!r}: wanted full_attention or sliding_attention for each of {config.layers} layers")
    if width is None and "sliding_attention" in kinds:
        raise InputError("layer_types has sliding_attention, but use_sliding_window is off or sliding_window is null")
    return dataclasses.replace(config, family="qwen2", qkv_bias=True, attention_out_bias=False, windows=_windows(kinds, width))


def qwen2_back(c: ModelConfig) -> dict:
    wide = [c.window(layer) for layer in range(c.layers)]
    sliding = [layer for layer in range(c.layers) if wide[layer] is not None]
    fields = llama_back(c)
    del fields["attention_bias"]                                          # Qwen2 has its biases without asking
    return {
        **fields,
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": bool(sliding),
        "sliding_window": wide[sliding[0]] if sliding else None,
        "max_window_layers": sliding[0] if sliding else c.layers,
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in wide],
    }


def qwen3(hf: dict) -> ModelConfig:
    """Qwen 2025 (arXiv:2505.09388): Qwen2 without its biases, and an RMSNorm over each head of q and k."""
    config = qwen2({"head_dim": 128, **hf})
    bias = take(hf, ("attention_bias",), False)
    return dataclasses.replace(config, family="qwen3", qkv_bias=bias, attention_out_bias=bias, qk_norm=True)


def qwen3_back(c: ModelConfig) -> dict:
    return {**qwen2_back(c), "architectures": ["Qwen3ForCausalLM"], "attention_bias": c.qkv_bias}


def gemma(hf: dict) -> ModelConfig:
    """Gemma 1, 2024 (arXiv:2403.08295): wide heads, GeGLU, norms that store w - 1, an embedding scaled by sqrt(C)."""
    check(hf, "use_bidirectional_attention", False)
    check(hf, "mlp_bias", False)
    act = take(hf, ("hidden_activation", "hidden_act"), "gelu_pytorch_tanh")
    act = "gelu_pytorch_tanh" if act == "gelu" else act                   # the first release said "gelu" and meant the tanh form
    defaults = {"max_position_embeddings": 8192, "num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True}
    config = llama({**defaults, **hf, "hidden_act": act})
    ids = special_ids(hf, config.vocab_size, bos=2, eos=1, pad=0)
    return dataclasses.replace(config, family="gemma", norm_offset=1.0, embed_scale=config.hidden_size**0.5, **ids)


def gemma_back(c: ModelConfig) -> dict:
    fields = llama_back(c)
    return {**fields, "architectures": ["GemmaForCausalLM"], "hidden_activation": fields["hidden_act"]}
