"""LayerNorm tuning: train the gains (and shifts) of the norms, nothing else (Zhao et al. 2023, arXiv:2312.11420).

    y = (x - mean(x)) / sqrt(var(x) + eps) * w + b       w, b: (C,) learned, starting at the model's own
    y = x / sqrt(mean(x^2) + eps) * w                    RMSNorm, which has no b

A copy of w and b is trained and the norm computes with it in place of its own, whatever kind of norm it is. So step 0 is the base model
exactly, and merging, which puts the copy into the norm, changes no bit. The copy is float32 (steps of 1e-4 would vanish in bf16), and is
rounded to the norm's own dtype where it is used.
By default every LayerNorm and RMSNorm of the model is trained, those on queries and keys too (Qwen3); peft's defaults leave out a few.
Left out: BatchNorm and GroupNorm, which no model here has.
Proved in tests/peft/test_layernorm.py; equal to Hugging Face peft in tests/parity/test_peft_layernorm.py."""

from dataclasses import dataclass

from torch import nn

from minift.errors import InputError
from minift.peft.own import own
from minift.peft.targets import find, is_norm, read_targets, written_targets
from minift.peft.wrapper import base_modules


@dataclass(frozen=True)
class LayerNormTuning:
    """Which norms are trained."""

    targets: str | list[str] | tuple[str, ...] = "all-norms"
    """"all-norms", names or ends of paths, or a regular expression (targets.py)."""

    peft_type = "LN_TUNING"

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        if self.targets == "all-norms":
            norms = {path: module for path, module in base_modules(model).items() if is_norm(module)}
        else:
            norms = find(model, self.targets, is_norm, "norm")
        if not norms:
            raise InputError("this model has no LayerNorm or RMSNorm with a gain: there is nothing for LayerNorm tuning to train")
        small = own(norms, keep_base=True)                                # own.py: the module with these numbers in place of its own
        for part in small.values():
            part.file_names = {name: f"ln_tuning_layers.{name}" for name in part.file_names}
        return small

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """peft would copy any module that the names fit, so all modules of the model count when names are shortened."""
        return {"target_modules": written_targets(model, small, lambda module: True)}

    @classmethod
    def from_file(cls, fields: dict) -> "LayerNormTuning":
        return cls(targets=read_targets(fields))
