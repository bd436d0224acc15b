"""BitFit: train the biases, nothing else (Ben Zaken et al. 2021, arXiv:2106.10199).

    y = x WT + b        W: (N, K) frozen        b: (N,) learned, starting at the model's own

A copy of each bias, of linears and of norms, is trained and the module computes with it in place of its own. So step 0 is the base
model exactly, merging, which puts the copy into the module, changes no bit, and a step costs no extra addition. The copy is float32
(steps of 1e-4 would vanish in bf16), and is rounded to the module's dtype where it is used.
Many recent models have no biases at all. There BitFit raises, unless `add_missing` gives every linear but the head a bias of zeros:
that is another method than the paper's, and a line on the error stream says how many were added.
peft has no BitFit; the folder is described in docs/adapter_formats.md.
Left out: biases of modules with parts of their own (nn.MultiheadAttention, nn.LSTM), and new biases on norms.
Proved in tests/peft/test_bitfit.py."""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from minift.errors import InputError
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_linear, read_targets, written_targets
from minift.peft.wrapper import base_modules


@dataclass(frozen=True)
class BitFit:
    """Which biases are trained."""

    targets: str | list[str] | tuple[str, ...] = "all-biases"
    """"all-biases", or modules: names or ends of paths, or a regular expression (targets.py). Section 4.2 of the paper: the query and
    the first feed-forward matrix alone do nearly as well."""
    add_missing: bool = False
    """Give linears that have no bias one of zeros: those named, or all but the output head."""

    peft_type = "BITFIT"

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        fits = (lambda module: has_bias(module) or is_linear(module)) if self.add_missing else has_bias
        if self.targets != "all-biases":
            found = find(model, self.targets, fits, "module with a bias")
        else:
            found = {path: module for path, module in base_modules(model).items() if has_bias(module)}
            if self.add_missing:
                found = {**found, **find(model, "all-linear", is_linear, "linear")}
        if not found:
            raise InputError("BitFit: this model has no biases to train. The option add_missing (--options add_missing true) gives its linears biases of zeros; or take another method")
        small = {path: Bias(base) for path, base in found.items()}
        added = [path for path, base in found.items() if base.bias is None]
        if added:
            numbers = sum(small[path].bias.numel() for path in added)
            print(f"BitFit: added biases of zeros to {len(added)} linears that had none ({numbers:,} numbers)", file=sys.stderr)
        return small

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        fits = (lambda module: has_bias(module) or is_linear(module)) if self.add_missing else has_bias
        return {"target_modules": written_targets(model, small, fits), "add_missing": self.add_missing}

    @classmethod
    def from_file(cls, fields: dict) -> "BitFit":
        return cls(targets=read_targets(fields), add_missing=fields.pop("add_missing", False))


def has_bias(module: nn.Module) -> bool:
    """Has it a bias of its own that its call adds? (The one of nn.MultiheadAttention's output is read without a call.)"""
    own = isinstance(module._parameters.get("bias"), nn.Parameter) and not any(module.children())
    return own and not isinstance(module, NonDynamicallyQuantizableLinear)


class Bias(nn.Module):
    """The base with this bias in place of its own."""

    file_names = {"bias": "bias"}

    def __init__(self, base: nn.Module):
        super().__init__()
        old = base.bias
        if old is None:
            old = torch.zeros(base.weight.shape[-1] if is_conv1d(base) else base.out_features, **new_like(base))
        self.bias = nn.Parameter(old.detach().to(torch.promote_types(old.dtype, torch.float32), copy=True))     # (N,), trap 34

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        if base.bias is None:
            y = base(x)
            return y + self.bias.to(y.dtype)                                          # zeros change no bit of y
        return functional_call(base, {"bias": self.bias.to(base.bias.dtype)}, (x,))

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        return {"bias": self.bias.to(base.weight.dtype if base.bias is None else base.bias.dtype)}
