"""DoRA: learn the length of each row of a weight apart from its direction (Liu et al. 2024, arXiv:2402.09353).

    W' = m (W + s B A) / n       n = ||W + s B A||, the length of each row, (N,)     m: (N,) learned     A, B, s: as in LoRA
    y  = g (x WT + s (x AT) BT) + b                                                  g = m / n, (N,)

m starts as the row lengths of W and B as zero, so g is 1 and step 0 is the base exactly. (The paper writes W with one column per
output; its column lengths are the row lengths here.) n is a constant for the gradient (section 4.3), which saves most of the
backward pass. The (N, K) matrix W + s B A is not built, not even for its lengths:

    n² = ||W||² + 2 s <W AT, B> + s² <B (A AT), B>          <.,.>: of each row; W AT is (N, r), A AT is (r, r), ||W||² is computed once

and with v = base(x) + s (x AT) BT, bias included, y = g v + (1 - g) b: the base is called once, whatever it is made of.
Dropout, as in the authors' code, thins x for all that the adapter scales; what it hides goes through the base alone:
y = base(x - x') + g (x' WT + s (x' AT) BT) with x' = dropout(x). On an embedding E (V, C), W is ET: m is (C,).
Left out: convolutions; m alone on some modules and m with B A on others (table 6).
Proved in tests/peft/test_dora.py; equal to Hugging Face peft in tests/parity/test_peft_dora.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.linear import linear
from minift.peft.lora import LoRA, LoRAEmbedding, LoRALinear, plus, refuse_packed
from minift.peft.targets import is_conv1d, is_embedding
from minift.quant import QuantizedLinear
from minift.quant.tensor import tensors


@dataclass(frozen=True)
class DoRA(LoRA):
    """Low-rank changes of direction, and the length of each row by itself.

    The settings are LoRA's. The paper's runs have alpha = 2 rank, as here, at ranks 16 and 32."""

    def module(self, base: nn.Module, rank: int, scale: float) -> nn.Module:
        return DoRAEmbedding(base, rank, scale) if is_embedding(base) else DoRALinear(base, rank, scale, self.dropout)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return {**super().to_file(model, small), "use_dora": True}

    @classmethod
    def from_file(cls, fields: dict) -> "DoRA":
        fields.pop("use_dora", None)
        return super().from_file(fields)


class DoRALinear(LoRALinear):
    """g base(x) + g s (x AT) BT + (1 - g) b."""

    file_names = {**LoRALinear.file_names, "magnitude": "lora_magnitude_vector"}
    factors = None                                                                    # its change is no product of two small matrices

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(base, rank, scale, dropout)
        self.lengths = Lengths()
        self.magnitude = nn.Parameter(self.lengths.of_base(base, self.A).clone())     # m, (N,)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        g, hidden = self.magnitude / self.lengths(base, self.A, self.B, self.scale), None
        if self.dropout and self.training:
            thinned = F.dropout(x, self.dropout)
            hidden, x = without_bias(base(x - thinned), base), thinned
        low = linear(x, self.A.to(x.dtype))                                           # (..., r)
        y = stretched(plus(base(x), low, self.B, self.scale), g, base.bias)           # (..., N)
        return y if hidden is None else y + hidden

    @torch.no_grad()
    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """m (W + s B A) / n, computed in float32 and rounded once."""
        weight, turn = base.weight, is_embedding(base) or is_conv1d(base)
        refuse_packed(weight)
        change = self.scale * (self.B @ self.A)                                       # (N, K)
        whole = (weight.T if turn else weight).to(change.dtype) + change
        whole = whole * (self.magnitude / self.lengths(base, self.A, self.B, self.scale))[:, None]
        return {"weight": (whole.T if turn else whole).to(weight.dtype)}


class DoRAEmbedding(LoRAEmbedding):
    """g base(ids) + g s A[:, ids]T BT."""

    file_names = {**LoRAEmbedding.file_names, "magnitude": "lora_magnitude_vector"}
    factors = None

    def __init__(self, base: nn.Embedding, rank: int, scale: float):
        super().__init__(base, rank, scale)
        self.lengths = Lengths()
        self.magnitude = nn.Parameter(self.lengths.of_base(base, self.A).clone())     # m, (C,)

    def forward(self, base: nn.Embedding, ids: Tensor) -> Tensor:                     # (...) -> (..., C)
        g = self.magnitude / self.lengths(base, self.A, self.B, self.scale)           # (C,)
        return stretched(plus(base(ids), F.embedding(ids, self.A.T), self.B, self.scale), g, None)

    merged = DoRALinear.merged


class Lengths(nn.Module):
    """n = ||W + s B A|| of each row, (N,), without a gradient.

    Without gradients (evaluation, generation) W AT would cost as much as the whole module on one token, so n is kept until A, B or W is
    written to, the mode changes, or a training step passes by. (A write through .data between two evaluations goes unseen.)"""

    def __init__(self):
        super().__init__()
        self.kept: dict[str, tuple[tuple, Tensor]] = {}
        """"base" and "all" -> (the state of the tensors it is from, lengths)."""

    def train(self, mode: bool = True) -> "Lengths":
        self.kept.pop("all", None)
        return super().train(mode)

    def forward(self, base: nn.Module, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if torch.is_grad_enabled():
            self.kept.pop("all", None)
            return self._all(base, A, B, scale)
        return self._once("all", [*numbers_of(base), A, B], lambda: self._all(base, A, B, scale))

    def of_base(self, base: nn.Module, A: Tensor) -> Tensor:
        """||W||; A for its dtype, device and K."""
        return self._once("base", numbers_of(base), lambda: lengths(base, A))

    @torch.no_grad()
    def _all(self, base: nn.Module, A: Tensor, B: Tensor, scale: float) -> Tensor:
        with torch.autocast(A.device.type, enabled=False):
            cross = 2 * scale * product(base, A) + scale**2 * (A @ A.T) @ B.T                     # (r, N)
            square = self.of_base(base, A).square()                                               # (N,)
            floor = torch.finfo(square.dtype).eps * square + torch.finfo(square.dtype).tiny       # a row of zeros has length 0, and m = 0
            return torch.maximum(square + (cross.T * B).sum(1), floor).sqrt()

    def _once(self, what: str, tensors: list[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        now = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors)
        if what not in self.kept or self.kept[what][0] != now:
            self.kept[what] = now, compute()
        return self.kept[what][1]


def product(base: nn.Module, x: Tensor) -> Tensor:
    """x WT without bias, (..., K) -> (..., N), in the dtype of x. What is no plain matrix (4 bits, packed) is called."""
    weight = base.weight
    if not weight.is_floating_point():
        return without_bias(base(x), base)
    W = weight if is_embedding(base) or is_conv1d(base) else weight.T                             # (K, N)
    return (x.to(W.dtype) @ W).to(x.dtype)


@torch.no_grad()
def lengths(base: nn.Module, A: Tensor) -> Tensor:
    """||W|| of each row, (N,), in the dtype of A."""
    weight = base.weight
    if weight.is_floating_point():
        return torch.linalg.vector_norm(weight, dim=0 if is_embedding(base) or is_conv1d(base) else 1, dtype=A.dtype)
    columns = torch.eye(A.shape[1], dtype=A.dtype, device=A.device).split(256)                    # a few of W's columns at a time
    return torch.stack([product(base, some).square().sum(0) for some in columns]).sum(0).sqrt()


def numbers_of(base: nn.Module) -> list[Tensor]:
    """What W is made of: its parameters, or the codes and scales of a quantized weight."""
    return [*base.parameters(), *(tensors(base.q).values() if isinstance(base, QuantizedLinear) else ())]


def without_bias(y: Tensor, base: nn.Module) -> Tensor:
    return y if base.bias is None else y - base.bias.to(y.dtype)


def stretched(v: Tensor, g: Tensor, b: Tensor | None) -> Tensor:
    """g v + (1 - g) b, (..., N). In half precision g would be rounded to steps of 2^-8, as large as what m learns: it goes in two parts."""
    rest = None if b is None else ((1 - g) * b).to(v.dtype)
    if v.dtype != g.dtype:
        near = g.detach().to(v.dtype)                                                 # g to 8 bits, and what is missing
        rest, g = v * near if rest is None else torch.addcmul(rest, v, near), (g - near).to(v.dtype)
    return v * g if rest is None else torch.addcmul(rest, v, g)
