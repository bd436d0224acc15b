"""BERT and its kin: encoders with LayerNorm after each residual sum, learned positions, and three linears for q, k and v.

BERT (two token types), RoBERTa and XLM-RoBERTa (positions begin behind the pad's number), DistilBERT (no types, other names).
For each: config.json -> ModelConfig, and `_back` the other way; families.py puts them together. What stands on the body is read off
`architectures`: ...ForMaskedLM, ...ForSequenceClassification, or the bare model.
Proved in tests/models/test_families.py and, against transformers, in tests/parity/test_encoders.py."""

import dataclasses

from minift.models.config import ModelConfig
from minift.models.hf_fields import HF_ACTIVATION, REQUIRED, activation, check, head_width, special_ids, take


def _top(hf: dict, bare: str) -> str:
    """The top that `architectures` names; `bare`: that of a model without a task."""
    named = " ".join(map(str, hf.get("architectures") or []))
    return "mask" if "ForMaskedLM" in named or "ForPreTraining" in named else "pooler" if "ForSequenceClassification" in named else bare


def _architecture(c: ModelConfig, name: str) -> list[str]:
    return [f"{name}ForSequenceClassification" if c.labels else f"{name}ForMaskedLM" if c.top == "mask" else f"{name}Model"]


def bert(hf: dict) -> ModelConfig:
    """Devlin et al. 2018 (arXiv:1810.04805)."""
    check(hf, "is_decoder", False)
    check(hf, "position_embedding_type", "absolute")
    check(hf, "tie_word_embeddings", True)
    C, heads = take(hf, ("hidden_size",), REQUIRED), take(hf, ("num_attention_heads",), REQUIRED)
    vocab_size = take(hf, ("vocab_size",), REQUIRED)
    return ModelConfig(
        family="bert",
        vocab_size=vocab_size,
        hidden_size=C,
        layers=take(hf, ("num_hidden_layers",), REQUIRED),
        heads=heads,
        kv_heads=heads,
        head_dim=head_width(C, heads),
        mlp_size=take(hf, ("intermediate_size",), REQUIRED),
        max_positions=take(hf, ("max_position_embeddings",), 512),
        causal=False,
        norm="layernorm",
        norm_eps=take(hf, ("layer_norm_eps",), 1e-12),
        norm_after=True,
        embed_norm=True,
        position="learned",
        token_types=take(hf, ("type_vocab_size",), 2),
        activation=activation(hf, "hidden_act", "gelu"),
        gated=False,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        dropout=take(hf, ("hidden_dropout_prob",), 0.1),
        top=_top(hf, "pooler"),
        **special_ids(hf, vocab_size, bos=None, eos=None, pad=0),
    )


def bert_back(c: ModelConfig) -> dict:
    return {
        "architectures": _architecture(c, "Bert"),
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_size,
        "max_position_embeddings": c.first_position + c.max_positions,
        "type_vocab_size": c.token_types,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": HF_ACTIVATION[c.activation],
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "absolute",
    }


def roberta(hf: dict) -> ModelConfig:
    """Liu et al. 2019 (arXiv:1907.11692): BERT whose first token has position pad_token_id + 1."""
    config = bert({"type_vocab_size": 2, **hf})
    ids = special_ids(hf, config.vocab_size, bos=0, eos=2, pad=1)
    first = (ids["pad_token_id"] or 0) + 1
    return dataclasses.replace(config, family="roberta", first_position=first, max_positions=config.max_positions - first, **ids)


def roberta_back(c: ModelConfig) -> dict:
    return {**bert_back(c), "architectures": _architecture(c, "Roberta")}


def xlm_roberta(hf: dict) -> ModelConfig:
    """Conneau et al. 2019 (arXiv:1911.02116): RoBERTa in a hundred languages."""
    return dataclasses.replace(roberta(hf), family="xlm-roberta")


def xlm_roberta_back(c: ModelConfig) -> dict:
    return {**bert_back(c), "architectures": _architecture(c, "XLMRoberta")}


def distilbert(hf: dict) -> ModelConfig:
    """Sanh et al. 2019 (arXiv:1910.01108): BERT with half its blocks and no token types."""
    check(hf, "tie_word_embeddings", True)
    other = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
             "hidden_dropout_prob": "dropout", "hidden_act": "activation"}    # fmt: skip
    named = {ours: hf[theirs] for ours, theirs in other.items() if theirs in hf}
    config = bert({**hf, **named, "layer_norm_eps": 1e-12})
    return dataclasses.replace(config, family="distilbert", token_types=0, top=_top(hf, "none"))


def distilbert_back(c: ModelConfig) -> dict:
    return {
        "architectures": _architecture(c, "DistilBert"),
        "dim": c.hidden_size,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "hidden_dim": c.mlp_size,
        "max_position_embeddings": c.max_positions,
        "activation": HF_ACTIVATION[c.activation],
        "dropout": c.dropout,
        "seq_classif_dropout": c.dropout,
        "attention_dropout": 0.0,
        "sinusoidal_pos_embds": False,
    }
