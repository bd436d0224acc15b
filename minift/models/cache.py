"""The key/value cache: what attention has already computed for the tokens so far.

Without it, each new token would run the whole text through the model again; with it, a step costs one token.
Slot s of a row holds the key and value of the token at position s, so a row's length is also the position of its next token.
Ragged prompts are padded on the RIGHT: the pads' slots lie beyond the row's length, where no query may look, and the
following tokens overwrite them. So nothing is shifted, and no row ever has an empty view (traps 9 and 10).
Virtual tokens (virtual.py) lie in the first V slots of every row: a row that holds n tokens of text has length V + n.
Proved in tests/models/test_transformer.py and tests/test_generate.py."""

import copy

import torch
from torch import Tensor

from minift.errors import InputError
from minift.models.config import ModelConfig


class KVCache:
    """Room for `capacity` tokens in each of B rows, for every block of the model."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype=torch.float32, device="cpu"):
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)            # (layers, B, kv heads, slots, D)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)   # (B,): tokens each row holds
        self.capacity = capacity
        self.virtual = 0                                                      # V: how many of them are virtual
        self.filled = 0                                                       # slots in use by the longest row, pads included
        self.even = False                                                     # do all rows hold as many, before this forward?

    def reserve(self, new: int) -> int:
        """Called once per forward: how many slots attention has to look at when each row gets `new` tokens."""
        shortest, longest = torch.stack(self.lengths.aminmax()).tolist()
        self.filled, self.even = longest + new, shortest == longest
        if self.filled > self.capacity:
            raise InputError(f"the KV cache has room for {self.capacity} tokens a row, {self.filled} are wanted: make a larger one")
        return self.filled

    def begin(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Put virtual tokens, k and v (kv heads, V, D) for each block, into the first slots of every row; whatever was there is forgotten."""
        self.lengths = torch.zeros_like(self.lengths)
        self.virtual = self.reserve(keys_values[0][0].shape[1])
        for layer, (keys, values) in enumerate(keys_values):
            self.keys[layer][:, :, : self.virtual] = keys.to(self.keys.dtype)           # the same for all rows
            self.values[layer][:, :, : self.virtual] = values.to(self.values.dtype)
        self.lengths = self.lengths + self.virtual

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, kv heads, T, D) after each row's tokens; returns all keys and values so far, (B, kv heads, slots in use, D)."""
        new = keys.shape[2]
        if self.even:                                                                   # the same slots in every row, which come last
            self.keys[layer][:, :, self.filled - new : self.filled] = keys
            self.values[layer][:, :, self.filled - new : self.filled] = values
        else:
            self._scatter(layer, keys, values)
        return self.keys[layer][:, :, : self.filled], self.values[layer][:, :, : self.filled]

    def _scatter(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """To the slots behind each row's own tokens."""
        new = keys.shape[2]
        slots = self.lengths[:, None] + torch.arange(new, device=keys.device)           # (B, T)
        rows = torch.arange(len(slots), device=keys.device)[:, None]
        self.keys[layer][rows, :, slots] = keys.transpose(1, 2).to(self.keys.dtype)     # an advanced index puts (B, T) first
        self.values[layer][rows, :, slots] = values.transpose(1, 2).to(self.values.dtype)

    def copies(self, rows: list[int], capacity: int) -> "KVCache":
        """Another cache, with room for `capacity` tokens a row, whose row i holds what row rows[i] of this one holds: one text goes on in several ways."""
        other, shape = copy.copy(self), list(self.keys.shape)
        shape[1], shape[3] = len(rows), capacity
        other.keys, other.values = self.keys.new_zeros(shape), self.keys.new_zeros(shape)
        for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer in range(len(ours)):
                theirs[layer, :, :, : self.filled] = ours[layer, rows, :, : self.filled]
        other.lengths, other.capacity = self.lengths[rows], capacity
        return other

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these (int64 indices): the finished ones cost nothing from here on. What is kept moves up inside the same memory."""
        n = len(rows)
        for stored in (self.keys, self.values):
            for layer in range(len(stored)):
                stored[layer, :n, :, : self.filled] = stored[layer, rows, :, : self.filled]
        self.keys, self.values, self.lengths = self.keys[:, :n], self.values[:, :n], self.lengths[rows]
