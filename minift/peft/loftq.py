"""LoftQ: LoRA that starts by making up for what rounding the base lost (Li et al. 2023, arXiv:2310.08659).

    W ~ Q + s B A        Q: 4 or 8 bits (N, K)        A: (r, K)      B: (N, r)      s = alpha / r

    B A = 0, then T times:    Q = quantize(W - s B A)
                              s B A = the r largest singular vectors of W - Q           B = U (S/s)^1/2      A = (S/s)^1/2 VT

QLoRA starts from Q alone, with B = 0. Here B A holds the best rank-r answer to W - Q (algorithm 1 of the paper), so step 0 is nearer to
the full model in weights than the rounded one; in loss it need not be (docs/qlora.md has both). With T = 1 the base is quantize(W), any
reader's base of that scheme, and the file is plain LoRA. With more the base is one that no reader can round again, so it has to be saved
with the adapter.
It is attached to the full weights and rounds them itself: all linears but the head, as quant.quantize_model does, for good. The
rounded model is what `disabled` and `remove` go back to.
Left out: embeddings, convolutions; other bits per layer (section 4 of the paper); a fast SVD, as the singular values of an error are all alike.
Proved in tests/peft/test_loftq.py; equal to Hugging Face peft in tests/parity/test_peft_qlora.py."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.lora import LoRA
from minift.peft.targets import find, is_conv1d, is_embedding, published_names
from minift.peft.wrapper import base_at
from minift.quant import Quantized, QuantizedLinear, Scheme, dequantize, quantize
from minift.quant.linear import wrap
from minift.quant.model import put, quantizable


@dataclass(frozen=True)
class LoftQ(LoRA):
    """LoRA from the error of rounding; attach it to the full weights."""

    rank: int = 16
    """r. The paper's runs have 16 to 64: the more of the error is made up for."""
    alpha: float = 16
    """The paper has alpha = rank."""
    scheme: Scheme = "nf4"
    """What the linears are rounded to: nf4, fp4, int8 or int4."""
    iterations: int = 1
    """T. The paper's runs have 5; with 1 the base is the plainly rounded one, which need not be saved with the adapter."""
    block_size: int | None = None
    """None: the scheme's own."""
    double_quant: bool = True
    """Of the scales of nf4 and fp4."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise InputError(f"LoftQ iterations is {self.iterations!r}: it must be a whole number, at least 1")
        if min(self.alpha, *self.alpha_pattern.values(), math.inf) < 0:
            raise InputError(f"LoftQ alpha is {self.alpha}, alpha_pattern {self.alpha_pattern}: A and B share a root of it, so it must be above 0")

    @torch.no_grad()
    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        names, linears = published_names(model), quantizable(model)
        chosen = find(model, self.targets)
        if "_peft" in model.__dict__:
            raise InputError("LoftQ rounds the base, and there are sets that were trained on the full weights: peft.remove them first")
        for path, base in {**linears, **chosen}.items():
            if isinstance(base, QuantizedLinear) or not base.weight.is_floating_point():
                raise InputError(f"{names[path]} is quantized already, and LoftQ needs what rounding loses: load the model unquantized")
            if path in chosen and (is_embedding(base) or is_conv1d(base)):
                raise InputError(f"LoftQ makes up for the rounding of linears, and {names[path]} is none that is rounded: leave it out, or take LoRA")
        small = super().build(model)
        super().check(model, small)                                                   # before anything is rounded
        rounded = {}                                                                  # in place when all of them are there: nothing can fail then
        for path, base in linears.items():
            scale = small[path].scale if path in small else 1.0
            steps, rank = (self.iterations, len(small[path].A)) if path in small else (0, 0)
            q, A, B = alternate(base.weight, self, steps, rank, scale)
            if path in small:
                small[path].A.copy_(A)
                small[path].B.copy_(B)
            rounded[path] = wrap(dataclasses.replace(q, dtype=base.weight.dtype), base.bias).train(base.training)
        for path, base in rounded.items():
            put(model, path, base)
        return small

    @classmethod
    def from_file(cls, fields: dict) -> "OnRounded":
        """Of a file that Hugging Face peft wrote (ours say plain LoRA)."""
        steps = (fields.pop("loftq_config", None) or {}).get("loftq_iter", 1)
        if steps != 1:
            raise InputError(f"init_lora_weights is 'loftq' with {steps} iterations: its base is what they left, not the rounded weights. If that base"
                             " is the one you load, set init_lora_weights to true")    # fmt: skip
        fields["init_lora_weights"] = True
        return OnRounded.from_file(fields)


@dataclass(frozen=True)
class OnRounded(LoRA):
    """A set that LoftQ began, from a file: right on the rounded base only."""

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        small = super().build(model)
        for path, name in published_names(model).items():
            if path in small and not isinstance(base_at(model, path), QuantizedLinear):
                raise InputError(f"init_lora_weights is 'loftq': A and B make up for the rounding of {name}, which is not rounded here. Load the base"
                                 " with quantize=\"nf4\"; if its weights were rounded before they were saved, set init_lora_weights to true")    # fmt: skip
        return small


def alternate(W: Tensor, config: LoftQ, steps: int, rank: int, scale: float) -> tuple[Quantized, Tensor, Tensor]:
    """Q, A (r, K) and B (N, r) after `steps` alternations from B A = 0, in float32; no step: Q alone."""
    W = W.detach().to(torch.promote_types(W.dtype, torch.float32))
    rounded = lambda weight: quantize(weight, config.scheme, config.block_size, config.double_quant)
    q, A, B = None, W.new_zeros(rank, W.shape[1]), W.new_zeros(W.shape[0], rank)
    for _ in range(steps):
        q = rounded(W - scale * (B @ A))
        U, S, Vt = torch.linalg.svd(W - dequantize(q), full_matrices=False)
        root = (S[:rank] / scale).sqrt()                                              # (r,)
        A, B = root[:, None] * Vt[:rank], U[:, :rank] * root
    return rounded(W) if q is None else q, A, B
