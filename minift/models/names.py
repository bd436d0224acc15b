"""What each family's checkpoints call the modules of our transformer: one table per family, nothing else.

A table maps our module path to the Hugging Face one; {} stands for the block's number. The `.weight` and `.bias` at the end are
the same on both sides. GPT-2 stores its linears as Conv1D, (in, out): those weights are transposed on the way in and out.
Adapters (peft/) use the same tables for their keys. Proved in tests/models/test_families.py and tests/parity/test_families.py."""

from minift.models.config import ModelConfig

GPT2 = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "blocks.{}.norm1": "transformer.h.{}.ln_1",
    "blocks.{}.attention.qkv": "transformer.h.{}.attn.c_attn",
    "blocks.{}.attention.out": "transformer.h.{}.attn.c_proj",
    "blocks.{}.norm2": "transformer.h.{}.ln_2",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.mlp.down": "transformer.h.{}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}

LLAMA = {                                                      # Mistral, Qwen2, Qwen3 and Gemma use the same names
    "embed": "model.embed_tokens",
    "blocks.{}.norm1": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.out": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.q_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.k_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.norm2": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}

FALCON = {                                                     # its norms have three sets of names: see `table`
    "embed": "transformer.word_embeddings",
    "blocks.{}.attention.qkv": "transformer.h.{}.self_attention.query_key_value",
    "blocks.{}.attention.out": "transformer.h.{}.self_attention.dense",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.down": "transformer.h.{}.mlp.dense_4h_to_h",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}

BLOOM = {
    **FALCON,
    "embed_norm": "transformer.word_embeddings_layernorm",
    "blocks.{}.norm1": "transformer.h.{}.input_layernorm",
    "blocks.{}.norm2": "transformer.h.{}.post_attention_layernorm",
}

GPT_NEOX = {
    "embed": "gpt_neox.embed_in",
    "blocks.{}.norm1": "gpt_neox.layers.{}.input_layernorm",
    "blocks.{}.attention.qkv": "gpt_neox.layers.{}.attention.query_key_value",
    "blocks.{}.attention.out": "gpt_neox.layers.{}.attention.dense",
    "blocks.{}.norm2": "gpt_neox.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}

BERT = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "blocks.{}.attention.q": "bert.encoder.layer.{}.attention.self.query",
    "blocks.{}.attention.k": "bert.encoder.layer.{}.attention.self.key",
    "blocks.{}.attention.v": "bert.encoder.layer.{}.attention.self.value",
    "blocks.{}.attention.out": "bert.encoder.layer.{}.attention.output.dense",
    "blocks.{}.norm1": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "blocks.{}.mlp.up": "bert.encoder.layer.{}.intermediate.dense",
    "blocks.{}.mlp.down": "bert.encoder.layer.{}.output.dense",
    "blocks.{}.norm2": "bert.encoder.layer.{}.output.LayerNorm",
    "pooler": "bert.pooler.dense",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",                                 # its bias; its weight is the embedding
    "score": "classifier",
}

ROBERTA = {
    **{ours: theirs.replace("bert.", "roberta.") for ours, theirs in BERT.items()},
    "transform": "lm_head.dense",
    "transform_norm": "lm_head.layer_norm",
    "head": "lm_head",
}

DISTILBERT = {
    "embed": "distilbert.embeddings.word_embeddings",
    "positions": "distilbert.embeddings.position_embeddings",
    "embed_norm": "distilbert.embeddings.LayerNorm",
    "blocks.{}.attention.q": "distilbert.transformer.layer.{}.attention.q_lin",
    "blocks.{}.attention.k": "distilbert.transformer.layer.{}.attention.k_lin",
    "blocks.{}.attention.v": "distilbert.transformer.layer.{}.attention.v_lin",
    "blocks.{}.attention.out": "distilbert.transformer.layer.{}.attention.out_lin",
    "blocks.{}.norm1": "distilbert.transformer.layer.{}.sa_layer_norm",
    "blocks.{}.mlp.up": "distilbert.transformer.layer.{}.ffn.lin1",
    "blocks.{}.mlp.down": "distilbert.transformer.layer.{}.ffn.lin2",
    "blocks.{}.norm2": "distilbert.transformer.layer.{}.output_layer_norm",
    "pooler": "pre_classifier",
    "transform": "vocab_transform",
    "transform_norm": "vocab_layer_norm",
    "head": "vocab_projector",
    "score": "classifier",
}

T5 = {                                                         # of one stack; see `_t5`
    "relative": "block.0.layer.0.SelfAttention.relative_attention_bias",    # lies in the first block, serves all
    "blocks.{}.norm1": "block.{}.layer.0.layer_norm",
    "blocks.{}.attention.q": "block.{}.layer.0.SelfAttention.q",
    "blocks.{}.attention.k": "block.{}.layer.0.SelfAttention.k",
    "blocks.{}.attention.v": "block.{}.layer.0.SelfAttention.v",
    "blocks.{}.attention.out": "block.{}.layer.0.SelfAttention.o",
    "blocks.{}.cross_norm": "block.{}.layer.1.layer_norm",
    "blocks.{}.cross.q": "block.{}.layer.1.EncDecAttention.q",
    "blocks.{}.cross.k": "block.{}.layer.1.EncDecAttention.k",
    "blocks.{}.cross.v": "block.{}.layer.1.EncDecAttention.v",
    "blocks.{}.cross.out": "block.{}.layer.1.EncDecAttention.o",
    "blocks.{}.norm2": "block.{}.layer.LAST.layer_norm",
    "blocks.{}.mlp.gate": "block.{}.layer.LAST.DenseReluDense.wi_0",
    "blocks.{}.mlp.up": "block.{}.layer.LAST.DenseReluDense.wi_1",
    "blocks.{}.mlp.down": "block.{}.layer.LAST.DenseReluDense.wo",
    "norm": "final_layer_norm",
}

SPARE = {
    "bert": ("cls.", "bert.pooler.", "classifier."),
    "roberta": ("lm_head.", "roberta.pooler.", "classifier."),
    "xlm-roberta": ("lm_head.", "roberta.pooler.", "classifier."),
    "distilbert": ("vocab_", "pre_classifier.", "classifier."),
    "t5": ("decoder.", "lm_head."),
    "mt5": ("decoder.", "lm_head."),
}
"""What an encoder's file may hold beside what is wanted: tops for other tasks than the one its config.json names. They are left where they are."""

COPIES = {family: ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") for family in ("t5", "mt5")}
"""Other names under which files hold the embedding too, or instead."""

CONV1D = (".attention.qkv", ".attention.out", ".mlp.up", ".mlp.down")
"""The modules whose weights GPT-2 stores as (in, out)."""

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq", "embeddings.position_ids",
           "EncDecAttention.relative_attention_bias.weight")    # fmt: skip
"""Endings of stored tensors that are no weights: causal masks and rotary frequencies, which we compute, and a table of the first T5s that nothing reads.
Skipped when reading."""


def table(config: ModelConfig) -> dict[str, str]:
    """The family's table: our module path with {} for the block -> the Hugging Face path with {} for the block."""
    if config.family == "falcon":
        block = "transformer.h.{}."
        if config.shared_norm:                                                             # 7B
            return {**FALCON, "blocks.{}.norm1": block + "input_layernorm"}
        if config.parallel:                                                                # 40B
            return {**FALCON, "blocks.{}.norm1": block + "ln_attn", "blocks.{}.norm2": block + "ln_mlp"}
        return {**BLOOM, "blocks.{}.norm1": block + "input_layernorm", "blocks.{}.norm2": block + "post_attention_layernorm"}
    if config.family in ("roberta", "xlm-roberta"):
        return {**ROBERTA, "pooler": "classifier.dense", "score": "classifier.out_proj"} if config.labels else ROBERTA
    if config.family in ("t5", "mt5"):
        stacks = {"encoder.": _t5("encoder.", config, False), "decoder.": _t5("decoder.", config, True)}
        one = {"embed": "shared", "head": "lm_head"}
        if not config.decoder_layers:
            return {**one, **stacks["encoder."]}
        return {**one, **{stack + ours: theirs for stack, table in stacks.items() for ours, theirs in table.items()}}
    tables = {"gpt2": GPT2, "bloom": BLOOM, "gpt_neox": GPT_NEOX, "bert": BERT, "distilbert": DISTILBERT}
    return tables.get(config.family, LLAMA)


def _t5(stack: str, config: ModelConfig, cross: bool) -> dict[str, str]:
    """T5's table for one stack: without a gate its one linear is "wi", and the MLP comes behind the cross-attention, if there is one."""
    named = {ours: stack + theirs.replace("LAST", "2" if cross else "1") for ours, theirs in T5.items() if cross or ".cross" not in ours}
    if not config.gated:
        del named["blocks.{}.mlp.gate"]
        named["blocks.{}.mlp.up"] = named["blocks.{}.mlp.up"].replace("wi_1", "wi")
    return named


def module_names(config: ModelConfig) -> dict[str, str]:
    """Every module with weights: our path -> Hugging Face path ("blocks.0.attention.q" -> "model.layers.0.self_attn.q_proj").

    The head is named even if it is tied, for adapters that sit on it. Modules this config does not have are left out; a scorer has a
    head called "score", as in every ...ForSequenceClassification."""
    absent = {
        "head": config.labels > 0 or config.top not in ("next", "mask"),
        "transform": config.top != "mask",
        "transform_norm": config.top != "mask",
        "pooler": config.top != "pooler",
        "score": not config.labels,
        "types": not config.token_types,
        "positions": config.position != "learned",
        "embed_norm": not config.embed_norm,
        "blocks.{}.norm2": config.shared_norm,
        "blocks.{}.attention.q_norm": not config.qk_norm,
        "blocks.{}.attention.k_norm": not config.qk_norm,
        "blocks.{}.mlp.gate": not config.gated,
    }
    names = {}
    for ours, theirs in table(config).items():
        if absent.get(ours, False):
            continue
        if "{}" not in ours:
            names[ours] = theirs
        layers = config.decoder_layers if ours.startswith("decoder.") else config.layers
        for layer in range(layers if "{}" in ours else 0):
            names[ours.format(layer)] = theirs.format(layer)
    return {**names, "score": names.get("score", "score")} if config.labels else names


def is_transposed(config: ModelConfig, module: str) -> bool:
    """Whether the checkpoint stores this module's weight as (in, out): GPT-2's Conv1D."""
    return config.family == "gpt2" and module.endswith(CONV1D)
