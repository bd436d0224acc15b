"""ReFT: leave the weights alone and edit what flows between the blocks, in a small subspace, at a few positions
(LoReFT: Wu et al. 2024, arXiv:2404.03592).

    h <- h + RT (W h + b - R h)        R, W: (r, C)     b: (r,)     R RT = I: the rows of R are orthonormal

Inside the r directions of R, what h says is replaced by W h + b; outside of them h stays as it is. It happens at the end of every
chosen block, at the first `prefix` positions of each text, and later tokens feel it through attention. Decoding beyond the prefix
costs nothing but the look at the positions.
R is a product of r Householder reflections, I - tau v vT, whose vectors are the trained numbers: orthonormal after any step.
Step 0 is not the base model: the paper starts W as any linear and R as any rotation, so h is edited from the first step on.
An edit depends on the position, so no weight can hold it: merging is refused.
Left out: the last positions of the prompt (the paper edits first and last ones; a model is not told where a prompt ends), one edit
shared by all layers, and writing the `adapters` library's LoReFT folders. Those are read (adapter_folders.py), but they hold a (C, C)
matrix per layer, 64 MB at C = 4096, where the edit has 3 r C numbers at most.
Proved in tests/peft/test_reft.py; equal to the `adapters` library in tests/parity/test_adapters_library.py."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.attention import Context
from minift.peft.bottleneck import output_width
from minift.peft.places import blocks
from minift.peft.quantized import new_like
from minift.peft.targets import find, published_names
from minift.peft.wrapper import base_at


@dataclass(frozen=True)
class LoReFT:
    """Which blocks' outputs are edited, where, and in how many directions."""

    rank: int = 8
    """r: directions that are edited; the paper's choice for commonsense reasoning with LLaMA."""
    prefix: int = 7
    """How many of the first positions of each text are edited; likewise."""
    layers: str | tuple[int, ...] = "all"
    """"all", or the numbers of the blocks, counted from 0."""
    dropout: float = 0.0
    """On the whole edited h, only while training, as in the authors' code."""
    targets: str | list[str] | tuple[str, ...] | None = None
    """None: the ends of blocks. Else the outputs (B, T, C) of linears and embeddings by name (targets.py)."""

    peft_type = "LOREFT"

    def __post_init__(self):
        for what, number in (("rank", self.rank), ("prefix", self.prefix)):
            if not isinstance(number, int) or number < 1:
                raise InputError(f"LoReFT {what} is {number!r}: it must be a whole number, at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoReFT dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if self.layers != "all":
            if isinstance(self.layers, str) or not self.layers or not all(isinstance(n, int) for n in self.layers):
                raise InputError(f"LoReFT layers is {self.layers!r}: it must be 'all' or numbers of blocks such as (3, 9)")
            object.__setattr__(self, "layers", tuple(self.layers))

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        if self.targets is not None:
            names = published_names(model)
            return {path: self._edit(base, names[path]) for path, base in find(model, self.targets).items()}
        found = blocks(model)
        chosen = range(len(found)) if self.layers == "all" else self.layers
        outside = [n for n in chosen if not 0 <= n < len(found)]
        if outside:
            raise InputError(f"LoReFT layers names {outside}, and this model has blocks 0 to {len(found) - 1}")
        return {found[n].block: self._edit(base_at(model, found[n].mlp), found[n].layer_key) for n in chosen}

    def _edit(self, like: nn.Module, place: str) -> "Edit":
        C = output_width(like)
        if self.rank > C:
            raise InputError(f"LoReFT rank is {self.rank}, but {place} gives {C} numbers: there are no more than {C} orthonormal directions")
        return Edit(C, self.rank, self.prefix, self.dropout, like, place)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return {"r": self.rank, "prefix_positions": self.prefix, "layers": self.layers, "dropout": self.dropout, "target_modules": self.targets}

    @classmethod
    def from_file(cls, fields: dict) -> "LoReFT":
        targets = fields.pop("target_modules", None)
        return cls(fields.pop("r"), fields.pop("prefix_positions"), fields.pop("layers", "all"), fields.pop("dropout", 0.0), targets)

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        """A block has no weight of its own, so its path in files is not in the usual table (places.py has it)."""
        return {f"base_model.model.{module.place}.{module.file_names[key]}": p for module in small.values() for key, p in module.named_parameters()}


class Edit(nn.Module):
    """One place's edit. W, b and X (R's reflections) are at least float32 (trap 34); products run in the dtype of h."""

    file_names = {"W": "reft_W", "b": "reft_b", "X": "reft_X"}

    def __init__(self, C: int, rank: int, prefix: int, dropout: float, like: nn.Module, place: str):
        super().__init__()
        self.prefix, self.dropout, self.place = prefix, dropout, place
        new = lambda *shape: nn.Parameter(torch.empty(shape, **new_like(like)))
        self.W, self.b, self.X = new(rank, C), new(rank), new(C, rank)
        nn.init.uniform_(self.W, -(C**-0.5), C**-0.5)                                # as nn.Linear starts
        nn.init.uniform_(self.b, -(C**-0.5), C**-0.5)
        if self.X.device.type != "meta":
            self.X.data.copy_(reflections(torch.randn_like(self.X))[0])              # all subspaces are equally likely

    def R(self) -> Tensor:                                                           # (r, C)
        return orthonormal(self.X)

    def forward(self, base: nn.Module, *inputs, **named):
        y = base(*inputs, **named)
        h = y if isinstance(y, Tensor) else y[0]                                     # (B, T, C)
        if h.ndim != 3:
            raise InputError(f"LoReFT edits the first positions of texts, (B, T, C), but {self.place} gives {tuple(h.shape)}")
        place = positions(h, inputs, named)                                          # (B or 1, T)
        R = self.R()
        inside = F.linear(h, (self.W - R).to(h.dtype), self.b.to(h.dtype))           # (B, T, r): W h + b - R h
        edited = h + inside @ R.to(inside.dtype)                                     # (B, T, C)
        if self.dropout and self.training:
            edited = F.dropout(edited, self.dropout)
        chosen = (place >= 0) & (place < self.prefix)                                # virtual tokens stand before 0
        h = torch.where(chosen[..., None], edited.to(h.dtype), h)
        return h if isinstance(y, Tensor) else (h, *y[1:])

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise InputError("LoReFT cannot be merged: it edits the first positions only, and a weight acts on all. Keep it beside the model")


def positions(h: Tensor, inputs: tuple, named: dict) -> Tensor:
    """Where each of the T vectors stands in its own text, (B or 1, T): from our blocks' context, from transformers' position_ids, or counted."""
    for value in (*inputs, *named.values()):
        if isinstance(value, Context):
            return value.positions - value.virtual
    if named.get("position_ids") is not None:
        return named["position_ids"]
    if named.get("past_key_values") is not None:
        raise InputError("this block is given a KV cache but no position_ids, so LoReFT cannot tell where a text begins: run with use_cache=False")
    return torch.arange(h.shape[1], device=h.device)[None]


def orthonormal(X: Tensor) -> Tensor:
    """(C, r) -> (r, C) with orthonormal rows: the first r columns of H_1 ... H_r with H = I - tau v vT. Column i of X below its diagonal
    is v_i, which is 1 on the diagonal and 0 above."""
    V = X.tril(-1) + torch.eye(*X.shape, device=X.device, dtype=X.dtype)             # (C, r)
    return torch.linalg.householder_product(V, 2 / V.square().sum(dim=0)).T


def reflections(Q: Tensor) -> tuple[Tensor, Tensor]:
    """Q (C, r) -> X (C, r) and signs (r,): Q's columns, made orthonormal one after the other, are orthonormal(X)T times the signs."""
    triangle, tau = torch.geqrf(Q)
    return triangle.tril(-1), torch.where(tau == 0, -1, 1) * triangle.diagonal().sign()      # tau 0: no reflection there, but ours has tau 2
