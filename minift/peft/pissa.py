"""PiSSA: LoRA that starts from the largest singular vectors of the weight itself (Meng et al. 2024, arXiv:2404.02948).

    W = U S VT,   A0 = (S/s)^1/2 VT, first r rows (r, K)      B0 = U (S/s)^1/2, first r columns (N, r)      s = alpha / r
    W' = (W - s B0 A0) + s B A,   A and B start as A0 and B0

so step 0 is the base, and what learns first is what W does most, not noise and zeros. Others write the residual W - s B0 A0 into the
base, which then is no base any more, for other sets or for peft.disabled (trap 30). Here W stays, A0 and B0 are kept frozen, and

    y = base(x) + s (B A - B0 A0) x = base(x) + s [B, B - B0] [A - A0; A0] x          [..]: (N, 2r) and (2r, K)

is one product of rank 2r. In this order step 0 is exact to the bit, and half precision rounds what was learned, not the large B A.
`niter` finds the r vectors by random projection (Halko et al. 2011, arXiv:0909.4061): a full SVD of a 4096 x 4096 weight takes a minute.

Files. By default plain LoRA of rank 2r, the two matrices above: exact in any reader, which then has a LoRA (as has peft.load here; it
goes on learning as one, all 2r). With as_lora=False A and B alone, as Hugging Face peft writes PiSSA: half the size, and it goes on
learning as PiSSA, but the reader must find A0 and B0 again by an SVD of the very same base.
On a base in 4 or 8 bits W is the rounded weight: step 0 is that base, and the vectors are its own. What rounding lost is lost: QPiSSA, which
rounds W - s B0 A0 instead, and with that less, is left out (loftq.py makes up for rounding).
Left out: embeddings. Dropout thins what was learned; in peft it thins all of B A, and step 0 is not the base.
Proved in tests/peft/test_pissa.py; equal to Hugging Face peft in tests/parity/test_peft_pissa.py."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.linear import linear
from minift.peft.lora import LoRA, LoRALinear, added, plus
from minift.peft.targets import find, is_conv1d, is_embedding, published_names
from minift.peft.wrapper import base_modules
from minift.quant import QuantizedLinear


@dataclass(frozen=True)
class PiSSA(LoRA):
    """LoRA from the principal singular vectors of each weight."""

    alpha: float = 8
    """The paper has alpha = rank, a scale of 1, as these two defaults have: with another rank, give alpha too."""
    niter: int | None = None
    """Power iterations of the fast SVD; the paper finds 4 to 16 as good as the full one. None: the full SVD."""
    as_lora: bool = True
    """Save as plain LoRA of rank 2r. False: A and B alone, as Hugging Face peft does."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.alpha, *self.alpha_pattern.values(), math.inf) < 0:
            raise InputError(f"PiSSA alpha is {self.alpha}, alpha_pattern {self.alpha_pattern}: A and B share a root of it, so it must be above 0")
        if self.niter is not None and (not isinstance(self.niter, int) or self.niter < 0):
            raise InputError(f"niter is {self.niter!r}: it must be a whole number of power iterations, at least 0, or None for the full SVD")
        if self.niter is not None and not self.as_lora:
            raise InputError("as_lora=False leaves out A0 and B0, which a random projection will not find again to the bit: take niter=None")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        names, modules = published_names(model), base_modules(model)
        own = lambda module: module._parameters.get("weight")                         # None of a quantized one, which shares with nobody
        for path, base in find(model, self.targets).items():                          # all of them before the first costly SVD
            if is_embedding(base):
                raise InputError(f"PiSSA splits the weights of linears, and {names[path]} is an embedding: leave it out, or take LoRA")
            quantized = isinstance(base, QuantizedLinear)
            if not quantized and not base.weight.is_floating_point():
                raise InputError(f"PiSSA needs the weight's own numbers, and {names[path]} is {base.weight.dtype}: load the base unquantized")
            if quantized and not self.as_lora:
                raise InputError(f"{names[path]} is in {base.q.scheme}, whose singular vectors are not those of the weight it was rounded from: A"
                                 " and B alone would be read with the wrong A0 and B0. Save it as plain LoRA (as_lora=True), or load the base"
                                 " unquantized")    # fmt: skip
            rank, most = self.size(names[path])[0], min((base.out_features, base.in_features) if quantized else base.weight.shape)
            if rank > most:
                raise InputError(f"PiSSA rank is {rank}, but {names[path]} has only {most} singular vectors: choose a lower rank, for this"
                                 " module alone with rank_pattern, or leave it out of the targets")    # fmt: skip
            tied = next((p for p, m in modules.items() if p != path and own(m) is not None and own(m) is own(base)), None)
            if tied and not self.as_lora:
                raise InputError(f"{names[path]} shares its weight with {names[tied]}: Hugging Face peft takes the principal part out of both,"
                                 " so A and B alone do not say what the model was. Save it as plain LoRA (as_lora=True)")    # fmt: skip
        return super().build(model)

    def module(self, base: nn.Module, rank: int, scale: float) -> nn.Module:
        return PiSSALinear(base, rank, scale, self.dropout, self.niter)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        fields = super().to_file(model, small)
        if not self.as_lora:
            return {**fields, "init_lora_weights": "pissa"}
        more = math.sqrt(2) if self.rslora else 2                                     # keeps s = alpha / r, or alpha / sqrt(r), at 2r
        return {
            **fields, "r": 2 * self.rank, "lora_alpha": more * self.alpha,
            "rank_pattern": {end: 2 * rank for end, rank in self.rank_pattern.items()},
            "alpha_pattern": {end: more * alpha for end, alpha in self.alpha_pattern.items()},
        }  # fmt: skip

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        names, found = published_names(model), {}
        for path, module in small.items():
            A, B = module.change() if self.as_lora else (module.A, module.B)
            found[f"base_model.model.{names[path]}.lora_A.weight"], found[f"base_model.model.{names[path]}.lora_B.weight"] = A, B
        return found

    @classmethod
    def from_file(cls, fields: dict) -> "PiSSA":
        start = fields.pop("init_lora_weights")
        if start != "pissa":
            raise InputError(f"init_lora_weights is {start!r}: the base was split with random numbers that are in no file. Convert it to plain"
                             " LoRA with peft, where the split is still known (save_pretrained's path_initial_model_for_weight_conversion)")    # fmt: skip
        fields["init_lora_weights"] = True
        return replace(super().from_file(fields), as_lora=False)


class PiSSALinear(LoRALinear):
    """base(x) + s [B, B - B0] [A - A0; A0] x."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, niter: int | None = None):
        super().__init__(base, rank, scale, dropout)
        weight = base.weight.detach().to(self.A.dtype)
        W = weight.T if is_conv1d(base) else weight                                   # (N, K)
        U, S, Vt = largest(W, rank, niter)
        root = (S / scale).sqrt()                                                     # (r,)
        self.register_buffer("A0", root[:, None] * Vt)                                # (r, K)
        self.register_buffer("B0", U * root)                                          # (N, r)
        with torch.no_grad():
            self.A.copy_(self.A0)
            self.B.copy_(self.B0)

    def change(self) -> tuple[Tensor, Tensor]:
        """[A - A0; A0] (2r, K) and [B, B - B0] (N, 2r), whose product is B A - B0 A0."""
        return torch.cat([self.A - self.A0, self.A0]), torch.cat([self.B, self.B - self.B0], dim=1)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        y = base(x)                                                                   # (..., N)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        A, B = self.change()
        return plus(y, linear(x, A.to(x.dtype)), B, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.change()
        return A.detach().double(), self.scale * B.detach().double()

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        A, B = self.change()
        change = self.scale * (B @ A)                                                 # (N, K)
        return {"weight": added(base.weight, change.T if is_conv1d(base) else change)}


@torch.no_grad()
def largest(W: Tensor, rank: int, niter: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """U (N, r), S (r,), VT (r, K): the `rank` largest singular values of W (N, K) and their vectors; nearly, if niter is a number.

    The fast way looks for them in the span of W (WT W)^niter G, G a random (K, r + 8): each power makes the large values larger."""
    Q = None
    if niter is not None and rank + 8 < min(W.shape):
        G = torch.randn(W.shape[1], rank + 8, generator=torch.Generator().manual_seed(0), dtype=W.dtype).to(W.device)
        Q = torch.linalg.qr(W @ G).Q                                                  # (N, r + 8), orthonormal
        for _ in range(niter):
            Q = torch.linalg.qr(W @ torch.linalg.qr(W.T @ Q).Q).Q
    U, S, Vt = torch.linalg.svd(W if Q is None else Q.T @ W, full_matrices=False)
    return (U if Q is None else Q @ U)[:, :rank], S[:rank], Vt[:rank]
