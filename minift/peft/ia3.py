"""IA3: learn one factor per number of the keys, the values and the inner feed-forward (Liu et al. 2022, arXiv:2205.05638).

    y = (x WT + b) * l       W: (N, K) frozen      l: (N, 1)       keys and values: each number of the output has its factor
    y = (x * l) WT + b                             l: (1, K)       feed-forward:    each number of the input, which is act(up x)

l starts at one, so step 0 is the pretrained model exactly. Merging scales the rows (and the bias) or the columns of W.
l stays float32 and its product with a bf16 x is rounded afterwards: near one bf16 has steps of 1/128, and l rarely moves further.
Without `targets` the modules are those of section 3.3 of the paper, by their usual names; where query, key and value are one linear
(GPT-2, Falcon, BLOOM, GPT-NeoX) the query is scaled with them, as peft does, because a file has one l per linear.
Left out: convolutions.
Proved in tests/peft/test_ia3.py; equal to Hugging Face peft in tests/parity/test_peft_ia3.py."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.lora import refuse_packed
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_linear, is_stored_transposed, published_names, read_targets, shortest, written_targets
from minift.peft.wrapper import base_modules

KEYS_AND_VALUES = r"(.*\.)?(k|v|qkv|k_proj|v_proj|key|value|c_attn|query_key_value|qkv_proj)"
SECOND_FEEDFORWARD = r"(.*\.)?(mlp\.down|down_proj|mlp\.c_proj|dense_4h_to_h|fc2|fc_out|wo|w2|layer\.\d+\.output\.dense)"
"""What the families call them; the last is BERT's, whose attention has an output.dense too."""


@dataclass(frozen=True)
class IA3:
    """Which linears are scaled, and on which side."""

    targets: str | list[str] | tuple[str, ...] | None = None
    """"all-linear", names or ends of paths, or a regular expression (targets.py). None: keys, values, second feed-forward matrices."""
    feedforward: str | list[str] | tuple[str, ...] | None = None
    """Those of them whose input is scaled, in the same words; an empty list: none. None: the second feed-forward matrices."""

    peft_type = "IA3"

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        linears = self._linears(model)
        inputs = self._feedforward(model, linears)
        return {path: IA3Linear(base, path in inputs) for path, base in linears.items()}

    def _linears(self, model: nn.Module) -> dict[str, nn.Module]:
        if self.targets is not None:
            return find(model, self.targets, is_linear, "linear")
        names, modules = published_names(model), base_modules(model)
        usual = f"{KEYS_AND_VALUES}|{SECOND_FEEDFORWARD}"
        found = {path: module for path, module in modules.items() if is_linear(module) and _usual(usual, path, names)}
        if not found:
            raise InputError("IA3: this model has no linear with a usual name for keys, values or a second feed-forward matrix: name the targets")
        return found

    def _feedforward(self, model: nn.Module, linears: dict[str, nn.Module]) -> set[str]:
        if self.feedforward is None:
            names = published_names(model)
            return {path for path in linears if _usual(SECOND_FEEDFORWARD, path, names)}
        if not self.feedforward:
            return set()
        inputs = set(find(model, self.feedforward, is_linear, "linear"))
        if not inputs <= linears.keys():
            stray = min(inputs - linears.keys())
            raise InputError(f"IA3 feedforward names {stray}, which is not among the targets: add it there or take it out here")
        return inputs

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """peft compares the ends of paths and forgets the dot before them, so a short name is written only if it can mislead nobody."""
        names = published_names(model)
        targets = written_targets(model, small, is_linear)
        inputs = [names[path] for path, part in small.items() if part.on_input]
        ends = shortest(inputs, [names[path] for path in small])
        if not set(ends) <= set(targets) or any(names[path].endswith(tuple(ends)) != part.on_input for path, part in small.items()):
            targets, ends = sorted(names[path] for path in small), sorted(inputs)
        return {
            "target_modules": targets, "feedforward_modules": ends,
            "fan_in_fan_out": is_stored_transposed(model, small), "init_ia3_weights": True,
        }  # fmt: skip

    @classmethod
    def from_file(cls, fields: dict) -> "IA3":
        fields.pop("fan_in_fan_out", None)
        fields.pop("init_ia3_weights", None)
        feedforward = fields.pop("feedforward_modules", None) or []
        if not (isinstance(feedforward, str) or isinstance(feedforward, list) and all(isinstance(name, str) for name in feedforward)):
            raise InputError(f"feedforward_modules is {feedforward!r}: wanted names, or a regular expression")
        return cls(targets=read_targets(fields), feedforward=feedforward)


def _usual(pattern: str, path: str, names: dict[str, str]) -> bool:
    return bool(re.fullmatch(pattern, path) or re.fullmatch(pattern, names[path]))


class IA3Linear(nn.Module):
    """The base with its output, or its input, scaled number by number."""

    file_names = {"l": "ia3_l"}

    def __init__(self, base: nn.Module, on_input: bool):
        super().__init__()
        N, K = base.weight.shape[::-1] if is_conv1d(base) else (base.out_features, base.in_features)
        self.on_input = on_input
        self.l = nn.Parameter(torch.ones((1, K) if on_input else (N, 1), **new_like(base)))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        if self.on_input:
            return base((x * self.l.flatten()).to(x.dtype))
        y = base(x)                                                                   # (..., N)
        return (y * self.l.flatten()).to(y.dtype)                                     # one rounding, after the product

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """W * l, and b * l where the output is scaled; computed in float32 and rounded once."""
        weight = base.weight
        refuse_packed(weight)
        new = {"weight": (weight * (self.l.T if is_conv1d(base) else self.l)).to(weight.dtype)}
        if not self.on_input and base.bias is not None:
            new["bias"] = (base.bias * self.l.flatten()).to(base.bias.dtype)
        return new
