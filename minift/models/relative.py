"""Relative positions as a learned bias: how far behind or ahead a key lies decides what is added to its score (Raffel et al. 2019, arXiv:1910.10683).

    score = q k + table[bucket(key place - query place), head]          table: (R, H), one for all blocks of a stack

Near distances have a bucket each; further ones share buckets that widen with their logarithm, and from `furthest` on all are one. So a text longer than
any in training asks for no row that was never trained. With R = 32 buckets and furthest = 128:

    a decoder looks back:       0 1 2 ... 15 | 16-18 ... | 113 and more        16 buckets of one distance, 16 that widen
    an encoder both ways:       8 of one distance and 8 that widen for what lies at or behind the token, as many again for what lies ahead

The text's places are the only ones there are: nothing is added to the embeddings.
Proved in tests/models/test_t5.py, equal to transformers in tests/parity/test_t5.py. Left out: a table for each block (umT5)."""

import math

import torch
from torch import Tensor, nn

from minift.models.config import ModelConfig


def bucket(distance: Tensor, both_ways: bool, buckets: int, furthest: int) -> Tensor:
    """Key place minus query place, int64 of any shape -> the row of the table. One way: whatever lies ahead is in the bucket of distance 0."""
    first = 0
    if both_ways:
        buckets //= 2
        first = buckets * (distance > 0).long()                        # the second half of the table is for what lies ahead
        back = distance.abs()
    else:
        back = (-distance).clamp(min=0)
    near = buckets // 2
    # In float32 and in this order, as the published models were trained: where a bucket begins, the last bit decides.
    wider = torch.log(back.clamp(min=1).float() / near) / math.log(furthest / near) * (buckets - near)
    return first + torch.where(back < near, back, (near + wider.long()).clamp(max=buckets - 1))


def relative_bias(config: ModelConfig, table: nn.Module, queries: Tensor, keys: Tensor, seen: Tensor | None) -> Tensor:
    """What every block of the stack adds to its scores, (B or 1, H, T, S): the table's entry, and -inf where a query may not look.

    queries (B, T) and keys (B, S): places; 1 in place of B if they are the same in all rows. seen: attention.visibility's bool."""
    distance = keys[:, None, :] - queries[:, :, None]                                                          # (B or 1, T, S)
    bias = table(bucket(distance, not config.causal, config.relative_buckets, config.relative_furthest))       # (B or 1, T, S, H)
    bias = bias.permute(0, 3, 1, 2)
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))
