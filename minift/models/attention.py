"""Attention: every token asks all tokens before it, and takes a weighted mean of their answers (Vaswani et al. 2017, arXiv:1706.03762).

    q = x Wq   k = x Wk   v = x Wv        x: (B, T, C)      q: (B, H, T, D)      k, v: (B, H/G, S, D)
    out = softmax(q kT / sqrt(D) + bias) v Wo               bias: 0 where a query may look, -inf where not

G query heads share one key/value head (grouped-query attention, arXiv:2305.13245). S = T without a cache, more with one.
Who may look where is decided once per forward, in `visibility`, for all blocks together: causality, documents in one row,
padding, a sliding window and ALiBi are all the same kind of thing, a bias on the scores; so are learned relative positions, which relative.py adds to
it. Encoders look both ways. Keys and values of V virtual tokens
(prefix tuning, virtual.py) may stand in front of the others: S = V + T.
Left out: dropout on attention weights (it slows the fused kernels and no recent family uses it).
Proved in tests/models/test_transformer.py and tests/parity/test_families.py."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.cache import KVCache
from minift.models.config import ModelConfig
from minift.models.cross import Memory
from minift.models.linear import Linear
from minift.models.ragged import Ragged
from minift.models.rope import alibi_slopes, rotate


SHORT = 192 * 64
"""Numbers in one head's keys, S D, up to which attention itself is float32 on a CPU where autocast makes the rest bfloat16: torch's fused backward pass for
bfloat16 takes up to 10 times as long there. Without gradients too, though nothing is gained then, so that a text scored twice has one score. Beyond
that bfloat16 is as fast, or faster."""


class Context(NamedTuple):
    """What a block is told beside its input x (B, T, C)."""

    positions: Tensor
    """(B, T) int64, virtual tokens counted: `positions - virtual` is a token's place in its own text."""
    rotation: tuple[Tensor, Tensor] | None = None
    """rope.rotation's cos and sin; None without rotary positions."""
    bias: Tensor | None = None
    """From `visibility`; None: a token sees all before it, in an encoder all."""
    prefix: tuple[Tensor, Tensor] | None = None
    """This block's k and v of virtual tokens, (kv heads, V, D), where no cache holds them."""
    cache: KVCache | None = None
    capture: dict | None = None
    virtual: int = 0
    """V: how many virtual tokens stand in front of each text, whatever their kind."""
    ragged: Ragged | None = None
    """How the texts of one row lie, where they are looked at one by one (ragged.py)."""
    biases: tuple[Tensor | None, ...] = ()
    """In place of `bias`, one for each of its runs."""
    memory: Memory | None = None
    """What a decoder with cross-attention reads (cross.py)."""


def visibility(
    config: ModelConfig,
    places: Tensor,
    segments: Tensor | None,
    cache: KVCache | None,
    window: int | None,
    slots: int,
    virtual: int = 0,
    branches: Tensor | None = None,
) -> Tensor | None:
    """The bias every head of a block adds to its scores: None (plain causal, or all), bool (B, 1, T, S), or with ALiBi float (B, H, T, S).

    places (B, T): where each query stands, counted from the first virtual token; slots = S; segments (B, T) of the queries, or None.
    A query sees a key at or before it, in its own segment or among the V virtual tokens, at most window - 1 tokens back; with branches
    (B, T), in its own branch or the segment's trunk (branch 0). In an encoder it also sees what follows, in its own segment. Every query sees at
    least itself, so no row of the softmax is empty (trap 9)."""
    T, device = places.shape[1], places.device
    if not config.causal:
        if segments is None:
            return None
        return F.pad(segments[:, None, :, None] == segments[:, None, None, :], (slots - T, 0), value=True)
    alone = T == 1 and cache is not None and cache.even                 # one more token in each row, behind all the others
    if (cache is None and slots == T or alone) and segments is None and config.position not in ("alibi", "relative") and (window is None or window >= slots):
        return None
    if cache is None:                                                  # slots in the row, not places: packing restarts those
        query_slot = torch.arange(slots - T, slots, device=device)[None]           # (1, T)
    else:
        query_slot = cache.lengths[:, None] + torch.arange(T, device=device)       # (B, T): the slot each new token goes to
    key_slot = torch.arange(slots, device=device)                      # (S,): the V virtual tokens come first
    back = query_slot[:, :, None] - key_slot                           # (B or 1, T, S): how far behind the query a key lies
    if segments is not None and virtual:                               # every packed text has them right before its own first token
        back = torch.where(key_slot < virtual, places[:, :, None] - key_slot, back)
    seen = back >= 0
    if branches is not None:                                           # what lies between a branch and its trunk is not in the text
        own = branches[:, :, None] == branches[:, None, :]             # (B, T, T)
        seen = seen & F.pad(own | (branches == 0)[:, None], (slots - T, 0), value=True)
        back = places[:, :, None] - torch.cat([key_slot[: slots - T].expand(len(places), -1), places], dim=1)[:, None]
    if window is not None:
        seen = seen & (back < window)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]            # (B, T, T)
        same = F.pad(same, (slots - T, 0), value=True)                 # (B, T, S)
        seen = seen & (same | (key_slot < virtual))
    seen = seen[:, None]                                               # (B, 1, T, S)
    if config.position != "alibi":
        return seen
    distance = -back[:, None].float() * alibi_slopes(config.heads, device)[:, None, None]   # (B or 1, H, T, S)
    return distance.masked_fill(~seen, float("-inf"))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        C, D = config.hidden_size, config.head_dim
        queries, keys = config.heads * D, config.kv_heads * D
        if config.qkv == "separate":
            self.q = Linear(C, queries, bias=config.qkv_bias)
            self.k = Linear(C, keys, bias=config.qkv_bias)
            self.v = Linear(C, keys, bias=config.qkv_bias)
        else:
            self.qkv = Linear(C, queries + 2 * keys, bias=config.qkv_bias)
        self.out = Linear(queries, C, bias=config.attention_out_bias)
        self.q_norm = nn.RMSNorm(D, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(D, eps=config.norm_eps) if config.qk_norm else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> q (B, H, T, D), k and v (B, kv heads, T, D)."""
        B, T, _ = x.shape
        H, K, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        if self.config.qkv == "separate":
            q, k, v = self.q(x), self.k(x), self.v(x)
        elif self.config.qkv == "joined":                                        # rows: all Q, all K, all V
            q, k, v = self.qkv(x).split([H * D, K * D, K * D], dim=-1)
        else:                                                                    # rows: for each kv head its H/K Qs, its K, its V
            groups = self.qkv(x).view(B, T, K, H // K + 2, D)
            q, k, v = groups.split([H // K, 1, 1], dim=3)
        return tuple(part.reshape(B, T, -1, D).transpose(1, 2) for part in (q, k, v))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = self.project(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rotation is not None:
            q, k = rotate(q, *context.rotation), rotate(k, *context.rotation)
        if context.ragged is not None:
            return self.out(self.text_by_text(q, k, v, context))
        if context.prefix is not None:
            before = [part.to(k.dtype).expand(B, -1, -1, -1) for part in context.prefix]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)        # (B, kv heads, V+T, D)
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)                        # (B, kv heads, S, D)
        bias = context.bias
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(q.dtype)
        if context.capture is not None:
            context.capture[f"blocks.{self.layer}.attention.weights"] = explicit_weights(q, k, bias, self.config.causal, self.config.attention_scale)
        return self.out(self.mix(q, k, v, bias).transpose(1, 2).reshape(B, T, -1))          # (B, T, H D) -> (B, T, C)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """q (B, H, T, D), k and v (B, kv heads, S, D) -> (B, H, T, D)."""
        if wants_float32(q, k.shape[2]):
            with torch.autocast("cpu", enabled=False):
                return self.mix(q.float(), k.float(), v.float(), bias if bias is None or bias.dtype == torch.bool else bias.float()).to(q.dtype)
        causal = bias is None and self.config.causal and q.shape[2] > 1           # a single query is the last token, and sees all
        options = dict(is_causal=causal, enable_gqa=q.shape[1] != k.shape[1], scale=self.config.attention_scale)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, **options)

    def text_by_text(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q (1, H, N, D), k and v (1, kv heads, N, D) of texts laid end to end -> (1, N, H D): texts of one length at a time."""
        if wants_float32(q, context.virtual + max(length for _, length in context.ragged.runs)):      # once for the row, not once for each length
            with torch.autocast("cpu", enabled=False):
                return self.text_by_text(q.float(), k.float(), v.float(), context).to(q.dtype)
        runs = zip(*(context.ragged.batches(part[0].transpose(0, 1)) for part in (q, k, v)), context.biases)
        mixed = []
        for *run, bias in runs:                                                              # (texts, length, heads, D)
            q, k, v = (part.transpose(1, 2) for part in run)
            if context.prefix is not None:
                before = [part.to(k.dtype).expand(len(k), -1, -1, -1) for part in context.prefix]
                k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
            mixed.append(self.mix(q, k, v, bias if bias is None or bias.dtype == torch.bool else bias.to(q.dtype)).transpose(1, 2))
        return context.ragged.row(mixed).flatten(1)[None]


def wants_float32(q: Tensor, keys: int) -> bool:
    """Queries (..., D) that look at so many keys: see SHORT."""
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and keys * q.shape[-1] <= SHORT and torch.is_autocast_enabled("cpu")


def explicit_weights(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool = True, scale: float | None = None) -> Tensor:
    """softmax(scale q kT + bias), scale 1 / sqrt(D) unless said, (B, H, T, S): what the fused kernel never writes down; for lessons and tests."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                     # each kv head serves H/K query heads
    scores = q.float() @ k.float().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)         # (B, H, T, S)
    if bias is None and not causal:
        return scores.softmax(-1)
    if bias is None:
        T, S = scores.shape[-2:]
        bias = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)       # the queries are the last T of S
    if bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias, float("-inf"))
    else:
        scores = scores + bias
    return scores.softmax(-1)
