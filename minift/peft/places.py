"""Where the parts of a Transformer block are, for the methods that stand between them: bottleneck adapters and ReFT.

    ours                            attention.out      mlp.down         norm2 (norm1 where a parallel block shares it)
    ours, norms after (BERT)        attention.out      mlp.down         mlp.up, and the last norm norm2
    LLaMA, Mistral, Qwen2, Qwen3    self_attn.o_proj   mlp.down_proj    post_attention_layernorm
    GPT-2                           attn.c_proj        mlp.c_proj       ln_2
    BERT, RoBERTa (post-LN)         attention.output.dense   output.dense   intermediate, and the last norm output.LayerNorm

The others are transformers' modules. A block is known by the names of its children, all of them: a family with one more norm
(Gemma 2) or a cross-attention is another block, and not guessed at. For any other model name the modules themselves (`targets`).
Proved in tests/peft/test_bottleneck.py and tests/parity/test_adapters_library.py."""

from typing import NamedTuple

from torch import nn

from minift.errors import InputError
from minift.models.block import Block
from minift.peft.targets import published_names
from minift.peft.wrapper import base_modules


class Places(NamedTuple):
    """Paths of one block's parts, and what the `adapters` library calls the two places for bottleneck adapters."""

    block: str
    attention: str
    """The linear that ends the attention branch."""
    mlp: str
    """The linear that ends the MLP branch."""
    before_mlp: str
    """The module whose input is the stream the MLP branch starts from, before any norm."""
    last_norm: str | None
    """The norm over the whole block's sum, if the norms come last (post-LN); else None."""
    attention_key: str
    output_key: str
    layer_key: str
    """The block's own path in files."""


KNOWN = {
    frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}): ("self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"),
    frozenset({"ln_1", "attn", "ln_2", "mlp"}): ("attn.c_proj", "mlp.c_proj", "ln_2"),
    frozenset({"attention", "intermediate", "output"}): ("attention.output.dense", "output.dense", "intermediate"),
}
"""Names of a block's children in transformers -> the ends of `attention`, `mlp` and `before_mlp`."""


def blocks(model: nn.Module) -> list[Places]:
    """The blocks of a model, first to last; InputError if it has none that is known."""
    modules, names, found = base_modules(model), published_names(model), []
    for path, module in modules.items():
        at = f"{path}." if path else ""
        if isinstance(module, Block):
            parts = ("attention.out", "mlp.down", "mlp.up" if module.norm_after else "norm1" if module.norm2 is None else "norm2")
            layer = names[f"{at}mlp.down"].rsplit(".", 2)[0]                   # model.layers.0.mlp.down_proj without its last two
        else:
            parts, layer = KNOWN.get(frozenset(dict(module.named_children()))), path
        if parts is None or any(f"{at}{part}" not in modules for part in parts):
            continue
        last_norm = next((f"{at}{norm}" for norm in _after(module) if f"{at}{norm}" in modules), None)
        bert = last_norm is not None and names[f"{at}{parts[1]}"].endswith("output.dense")      # DistilBERT's places are called as LLaMA's
        keys = (f"{layer}.attention.output", f"{layer}.output") if bert else (f"{layer}.attention_adapters", f"{layer}.output_adapters")
        found.append(Places(path, *(f"{at}{part}" for part in parts), last_norm, *keys, layer))
    if not found:
        raise InputError(
            "this model has no blocks that minift knows (its own, and transformers' LLaMA, Mistral, Qwen2, Qwen3, GPT-2, BERT, RoBERTa):"
            " say where with targets=[...], names of its modules"
        )
    return found


def _after(block: nn.Module) -> tuple[str, ...]:
    """What the norm over a block's sum may be called."""
    if isinstance(block, Block):
        return ("norm2",) if block.norm_after else ()
    return ("output.LayerNorm",)
