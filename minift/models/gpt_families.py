"""The GPT line: families with LayerNorm, an MLP without a gate, and q, k, v in one joined linear.

GPT-2 (positions are learned), GPT-NeoX and Pythia (part of each head is rotated), BLOOM (ALiBi), Falcon (rotary; three layouts).
For each: config.json -> ModelConfig, and `_back` the other way; families.py puts them together.
Left out: Falcon with ALiBi, whose bias is rounded to bfloat16 and divided by sqrt(D), unlike BLOOM's.
Proved in tests/models/test_families.py and, against transformers, in tests/parity/test_families.py."""

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.hf_fields import HF_ACTIVATION, REQUIRED, activation, check, head_width, read_rope, rope_fields, special_ids, take


def gpt2(hf: dict) -> ModelConfig:
    """Radford et al. 2019: learned positions, LayerNorm, biases everywhere."""
    for option, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("reorder_and_upcast_attn", False)):
        check(hf, option, wanted)
    C, heads = take(hf, ("n_embd", "hidden_size"), REQUIRED), take(hf, ("n_head", "num_attention_heads"), REQUIRED)
    vocab_size = take(hf, ("vocab_size",), REQUIRED)
    return ModelConfig(
        family="gpt2",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("n_layer", "num_hidden_layers"), REQUIRED),
        heads=heads,
        kv_heads=heads,
        head_dim=head_width(C, heads),
        mlp_size=take(hf, ("n_inner",), None) or 4 * C,
        max_positions=take(hf, ("n_positions", "max_position_embeddings", "n_ctx"), 1024),
        norm="layernorm",
        norm_eps=take(hf, ("layer_norm_epsilon",), 1e-5),
        position="learned",
        activation=activation(hf, "activation_function", "gelu_new"),
        gated=False,
        qkv="joined",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tie_embeddings=take(hf, ("tie_word_embeddings",), True),
        dropout=take(hf, ("resid_pdrop",), 0.1),
        **special_ids(hf, vocab_size, bos=50256, eos=50256, pad=None),
    )


def gpt2_back(c: ModelConfig) -> dict:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": c.hidden_size,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.mlp_size,
        "n_positions": c.max_positions,
        "n_ctx": c.max_positions,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else c.activation,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": 0.0,
    }


def gpt_neox(hf: dict) -> ModelConfig:
    """Black et al. 2022 (arXiv:2204.06745), also Pythia: part of each head is rotated, attention and MLP side by side."""
    C, heads = take(hf, ("hidden_size",), REQUIRED), take(hf, ("num_attention_heads",), REQUIRED)
    vocab_size, max_positions = take(hf, ("vocab_size",), REQUIRED), take(hf, ("max_position_embeddings",), 2048)
    old = {"rope_theta": take(hf, ("rotary_emb_base", "rope_theta"), 10000.0), "partial_rotary_factor": take(hf, ("rotary_pct",), 0.25)}
    theta, part, scaling = read_rope({**hf, **old}, max_positions)
    D = head_width(C, heads)
    bias = take(hf, ("attention_bias",), True)
    return ModelConfig(
        family="gpt_neox",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("num_hidden_layers",), REQUIRED),
        heads=heads,
        kv_heads=heads,
        head_dim=D,
        mlp_size=take(hf, ("intermediate_size",), REQUIRED),
        max_positions=max_positions,
        norm="layernorm",
        norm_eps=take(hf, ("layer_norm_eps",), 1e-5),
        rope_theta=theta,
        rope_dim=int(D * part) if part != 1.0 else None,
        rope_scaling=scaling,
        activation=activation(hf, "hidden_act", "gelu"),
        gated=False,
        qkv="grouped",
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=True,
        parallel=take(hf, ("use_parallel_residual",), True),
        tie_embeddings=take(hf, ("tie_word_embeddings",), False),
        dropout=take(hf, ("hidden_dropout",), 0.0),
        **special_ids(hf, vocab_size, bos=0, eos=2, pad=None),
    )


def gpt_neox_back(c: ModelConfig) -> dict:
    fields = rope_fields(c)
    part = (c.rope_dim or c.head_dim) / c.head_dim
    fields["rope_parameters"]["partial_rotary_factor"] = part
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_size,
        "max_position_embeddings": c.max_positions,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": HF_ACTIVATION[c.activation],
        "attention_bias": c.qkv_bias,
        "use_parallel_residual": c.parallel,
        "hidden_dropout": c.dropout,
        "attention_dropout": 0.0,
        "rotary_pct": part,
        "rotary_emb_base": c.rope_theta,
        **fields,
    }


def bloom(hf: dict) -> ModelConfig:
    """BigScience 2022 (arXiv:2211.05100): ALiBi instead of positions, and a LayerNorm after the embedding."""
    check(hf, "apply_residual_connection_post_layernorm", False)
    C, heads = take(hf, ("hidden_size", "n_embed"), REQUIRED), take(hf, ("n_head", "num_attention_heads"), REQUIRED)
    vocab_size = take(hf, ("vocab_size",), REQUIRED)
    return ModelConfig(
        family="bloom",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("n_layer", "num_hidden_layers"), REQUIRED),
        heads=heads,
        kv_heads=heads,
        head_dim=head_width(C, heads),
        mlp_size=4 * C,
        max_positions=take(hf, ("seq_length",), 2048),
        norm="layernorm",
        norm_eps=take(hf, ("layer_norm_epsilon",), 1e-5),
        position="alibi",
        activation="gelu_tanh",
        gated=False,
        qkv="grouped",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        embed_norm=True,
        tie_embeddings=take(hf, ("tie_word_embeddings",), True),
        dropout=take(hf, ("hidden_dropout",), 0.0),
        **special_ids(hf, vocab_size, bos=1, eos=2, pad=None),
    )


def bloom_back(c: ModelConfig) -> dict:
    return {
        "architectures": ["BloomForCausalLM"],
        "hidden_size": c.hidden_size,
        "n_layer": c.layers,
        "n_head": c.heads,
        "seq_length": c.max_positions,
        "layer_norm_epsilon": c.norm_eps,
        "hidden_dropout": c.dropout,
        "attention_dropout": 0.0,
    }


def falcon(hf: dict) -> ModelConfig:
    """Almazrouei et al. 2023 (arXiv:2311.16867): attention and MLP side by side. Three layouts of the joined q, k, v rows:
    7B (multi_query) all Q, one K, one V; 40B (new_decoder_architecture) per key/value head; neither flag: per head."""
    check(hf, "alibi", False)
    C, heads = take(hf, ("hidden_size", "n_embed"), REQUIRED), take(hf, ("num_attention_heads", "n_head"), REQUIRED)
    new, multi_query = take(hf, ("new_decoder_architecture",), False), take(hf, ("multi_query",), True)
    parallel = take(hf, ("parallel_attn",), True)
    norms = take(hf, ("num_ln_in_parallel_attn",), None) or (2 if new else 1)
    if (norms == 2 and not new) or norms > 2 or (new and not parallel):
        raise InputError(
            f"num_ln_in_parallel_attn {norms} with new_decoder_architecture {new} and parallel_attn {parallel} is no Falcon layout: "
            "two norms go with the new architecture, which is always parallel"
        )
    vocab_size, max_positions = take(hf, ("vocab_size",), REQUIRED), take(hf, ("max_position_embeddings",), 2048)
    theta, part, scaling = read_rope(hf, max_positions)
    if part != 1.0:
        raise InputError(f"partial_rotary_factor is {part}: the falcon family rotates whole heads, so it must be 1")
    bias = take(hf, ("bias",), False)
    return ModelConfig(
        family="falcon",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("num_hidden_layers", "n_layer"), REQUIRED),
        heads=heads,
        kv_heads=(take(hf, ("num_kv_heads", "n_head_kv"), None) or heads) if new else 1 if multi_query else heads,
        head_dim=head_width(C, heads),
        mlp_size=take(hf, ("ffn_hidden_size",), None) or 4 * C,
        max_positions=max_positions,
        norm="layernorm",
        norm_eps=take(hf, ("layer_norm_epsilon",), 1e-5),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=activation(hf, "activation", "gelu"),
        gated=False,
        qkv="joined" if multi_query and not new else "grouped",
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        parallel=parallel,
        shared_norm=parallel and norms == 1,
        tie_embeddings=take(hf, ("tie_word_embeddings",), True),
        dropout=take(hf, ("hidden_dropout",), 0.0),
        **special_ids(hf, vocab_size, bos=11, eos=11, pad=None),
    )


def falcon_back(c: ModelConfig) -> dict:
    new = c.qkv == "grouped" and c.parallel and (not c.shared_norm or c.kv_heads != c.heads)
    return {
        "architectures": ["FalconForCausalLM"],
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_kv_heads": c.kv_heads,
        "ffn_hidden_size": c.mlp_size,
        "max_position_embeddings": c.max_positions,
        "layer_norm_epsilon": c.norm_eps,
        "activation": HF_ACTIVATION[c.activation],
        "bias": c.mlp_bias,
        "alibi": False,
        "new_decoder_architecture": new,
        "multi_query": c.qkv == "joined",
        "parallel_attn": c.parallel,
        "num_ln_in_parallel_attn": 2 if c.parallel and not c.shared_norm else 1 if new else None,
        "hidden_dropout": c.dropout,
        "attention_dropout": 0.0,
        **rope_fields(c),
    }
