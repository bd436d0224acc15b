"""T5 and its kin: an encoder-decoder with relative positions, or its encoder alone (Raffel et al. 2019, arXiv:1910.10683).

    T5 v1.0           down(relu(up(x)))                  the head is the embedding, and reads the stream times 1 / sqrt(C)
    T5 v1.1, FLAN-T5  down(gelu(gate(x)) * up(x))        a head of its own, which reads the stream as it is
    mT5               as v1.1, in a hundred languages (arXiv:2010.11934)

RMSNorm before each branch, no bias in any linear, and scores that are not divided by sqrt(D). Which of the two a folder holds `architectures` says:
...ForConditionalGeneration or ...EncoderModel. Whether the head is the embedding, the weights say (folder.as_stored), as transformers 5 reads them: its
own folders say tie_word_embeddings where nothing is tied, and keep the scale apart, in scale_decoder_outputs.
Proved in tests/models/test_t5.py and, against transformers, in tests/parity/test_t5.py. Left out: umT5, classifiers and taggers on T5."""

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.hf_fields import REQUIRED, activation, special_ids, take

FORWARD = {("gelu_tanh", True): "gated-gelu", ("silu", True): "gated-silu", ("relu", True): "gated-relu", ("gelu", False): "gelu", ("silu", False): "silu",
           ("relu", False): "relu", ("gelu_tanh", False): "gelu_new"}    # fmt: skip
"""(activation, gated) -> feed_forward_proj. "gated-gelu" means the tanh form, "gelu" alone does not; so has it always been."""


def t5(hf: dict, forward: str = "relu") -> ModelConfig:
    """feed_forward_proj is `forward` where the file is silent."""
    kind, vocab_size = hf["model_type"], take(hf, ("vocab_size",), REQUIRED)
    ids = special_ids(hf, vocab_size, bos=None, eos=1, pad=0)
    act, gated = _forward(hf, forward)
    alone = _alone(hf)
    scaled = kind == "t5" and take(hf, ("scale_decoder_outputs",), take(hf, ("tie_word_embeddings",), True))
    C, layers, heads = (take(hf, names, REQUIRED) for names in (("d_model", "hidden_size"), ("num_layers",), ("num_heads",)))
    start = hf.get("decoder_start_token_id")
    return ModelConfig(
        family=kind,
        vocab_size=vocab_size,
        hidden_size=C,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=take(hf, ("d_kv",), 64),
        mlp_size=take(hf, ("d_ff",), REQUIRED),
        max_positions=take(hf, ("n_positions",), 512),
        causal=not alone,
        norm_eps=take(hf, ("layer_norm_epsilon",), 1e-6),
        position="relative",
        relative_buckets=take(hf, ("relative_attention_num_buckets",), 32),
        relative_furthest=take(hf, ("relative_attention_max_distance",), 128),
        attention_scale=1.0,
        activation=act,
        gated=gated,
        tie_embeddings=True if alone else take(hf, ("tie_word_embeddings",), True),
        head_scale=C**-0.5 if scaled and not alone else 1.0,
        dropout=float(take(hf, ("dropout_rate",), 0.1)),
        top="none" if alone else "next",
        decoder_layers=0 if alone else take(hf, ("num_decoder_layers",), layers),
        start_token_id=None if alone else ids["pad_token_id"] if start is None else start,
        **ids,
    )


def mt5(hf: dict) -> ModelConfig:
    return t5(hf, "gated-gelu")


def t5_back(c: ModelConfig) -> dict:
    if c.labels:
        raise InputError(f"a {c.family} folder has no place for scores: choose another family for a classifier")
    name, pair = {"t5": "T5", "mt5": "MT5"}[c.family], c.decoder_layers > 0
    return {
        "architectures": [f"{name}{'ForConditionalGeneration' if pair else 'EncoderModel'}"],
        "is_encoder_decoder": pair,
        "d_model": c.hidden_size,
        "num_layers": c.layers,
        "num_decoder_layers": c.decoder_layers or c.layers,
        "num_heads": c.heads,
        "d_kv": c.head_dim,
        "d_ff": c.mlp_size,
        "n_positions": c.max_positions,
        "layer_norm_epsilon": c.norm_eps,
        "relative_attention_num_buckets": c.relative_buckets,
        "relative_attention_max_distance": c.relative_furthest,
        "feed_forward_proj": FORWARD.get((c.activation, c.gated), "gated-gelu"),
        "scale_decoder_outputs": c.head_scale != 1.0,
        "dropout_rate": c.dropout,
        "decoder_start_token_id": c.start_token_id,
    }


def _forward(hf: dict, default: str) -> tuple[str, bool]:
    """(our name of the activation, gated) of feed_forward_proj."""
    said = take(hf, ("feed_forward_proj",), default)
    gate, _, act = said.rpartition("-")
    if gate not in ("", "gated"):
        raise InputError(f"feed_forward_proj is {said!r}: wanted an activation, or gated- and an activation")
    act = activation({"feed_forward_proj": "gelu_new" if said == "gated-gelu" else act}, "feed_forward_proj", "relu")
    if hf.get("dense_act_fn") is not None and activation(hf, "dense_act_fn", "relu") != act:
        raise InputError(f"feed_forward_proj is {said!r} and dense_act_fn {hf['dense_act_fn']!r}: the two name different activations, set one right")
    return act, gate == "gated"


def _alone(hf: dict) -> bool:
    """Whether the folder holds an encoder alone; raises for what is neither that nor an encoder-decoder that writes."""
    named = [str(name) for name in hf.get("architectures") or []]
    if not named:
        return hf.get("is_encoder_decoder") is False
    if any(name.endswith("EncoderModel") for name in named):
        return True
    if not any(name.endswith(("ForConditionalGeneration", "WithLMHeadModel")) for name in named):
        raise InputError(f"architectures is {named}: of T5, minift reads ...ForConditionalGeneration and ...EncoderModel")
    return False
