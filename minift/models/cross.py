"""Cross-attention: each token of the answer asks all tokens of the prompt (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3).

    q = x Wq   k = m Wk   v = m Wv          x: (B, T, C) the answer so far      m: (B, S, C) what the encoder made of the prompt
    out = softmax(scale q kT + seen) v Wo   seen: -inf at a prompt's pads

No place counts here: no bias of distance, no causality, since the whole prompt is there before the answer begins. So k and v are the same at every step
of an answer, and are kept (`Memory.kept`).
Proved in tests/models/test_t5.py, equal to transformers in tests/parity/test_t5.py. Left out: dropout on attention weights, as in attention.py."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.config import ModelConfig
from minift.models.linear import Linear


@dataclass
class Memory:
    """What the encoder made of B prompts, for the decoder to read."""

    stream: Tensor
    """(B, S, C)."""
    seen: Tensor | None = None
    """(B, 1, 1, S) bool, False at pads; None: there are none."""
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    """Of each block that has read it, its k and v (B, H, S, D); None, while training: every forward makes them anew."""

    def rows(self, rows: Tensor | list[int]) -> "Memory":
        """Another one, whose row i is row rows[i] of this one."""
        kept = None if self.kept is None else {layer: (k[rows], v[rows]) for layer, (k, v) in self.kept.items()}
        return Memory(self.stream[rows], None if self.seen is None else self.seen[rows], kept)


class CrossAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.layer, self.width, self.scale = layer, D, config.attention_scale
        self.q = Linear(C, config.heads * D, bias=config.qkv_bias)
        self.k = Linear(C, config.heads * D, bias=config.qkv_bias)
        self.v = Linear(C, config.heads * D, bias=config.qkv_bias)
        self.out = Linear(config.heads * D, C, bias=config.attention_out_bias)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        k, v = self.keys_values(memory)                                                              # (B, H, S, D)
        mixed = F.scaled_dot_product_attention(self.heads(self.q(x)), k, v, attn_mask=memory.seen, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def keys_values(self, memory: Memory) -> tuple[Tensor, Tensor]:
        if memory.kept is not None and self.layer in memory.kept:
            return memory.kept[self.layer]
        made = self.heads(self.k(memory.stream)), self.heads(self.v(memory.stream))
        if memory.kept is not None:
            memory.kept[self.layer] = made
        return made

    def heads(self, x: Tensor) -> Tensor:                                                            # (B, T, H D) -> (B, H, T, D)
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)
