"""The door for virtual tokens: learned numbers that stand in front of every text, as if V tokens had been read before it.

    embeds        (V, C)                  rows in front of the embedded tokens, at positions 0..V-1; every block reads and writes them
    keys_values   per block k, v          (kv heads, V, D) each: what such tokens would have left in the cache; no rotation is applied

`Transformer.virtual` is a NoVirtual; a method that has virtual tokens (prompt tuning, prefix tuning, P-tuning) answers in its place.
It is asked once, when a text begins: real tokens then stand at positions V, V+1, ..., and of packed texts each begins at V behind the
same virtual tokens. Left out: virtual tokens inside or behind a text.
Proved in tests/models/test_virtual.py."""

from typing import NamedTuple

from torch import Tensor, nn


class Virtual(NamedTuple):
    """V virtual tokens, of one kind or the other."""

    embeds: Tensor | None = None
    """(V, C), in the scale of embedded tokens as the first block reads them: `embed_scale` is not applied to them (nor by transformers 5)."""
    keys_values: list[tuple[Tensor, Tensor]] | None = None
    """For each block k and v, (kv heads, V, D)."""

    @property
    def count(self) -> int:
        """V."""
        return len(self.embeds) if self.keys_values is None else self.keys_values[0][0].shape[1]


class NoVirtual(nn.Module):
    """No parameters, no virtual tokens: the place where a method comes in."""

    def forward(self) -> Virtual | None:
        return None
