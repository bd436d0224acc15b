"""AdapterFusion: frozen adapters of several tasks, mixed anew for every token (Pfeiffer et al. 2021, arXiv:2005.00247).

    p = softmax_n( (h QT + q) . (f_n(h) KT + k) )         h: (..., C)     Q, K, V: (C, C)     q, k: (C,)
    f(h) = sum over n of p_n f_n(h) VT                    n = 1..N numbers the sets that are mixed; p sums to 1 for every token

f stands where each f_n stood (bottleneck.py): the query is what the adapters read, keys and values are what they add. The sets stay
as they are, frozen and usable alone; Q, K, V are trained. V starts as the identity, and its distance from it is a penalty in the loss,
so what comes out stays a mean of what was learned. k adds the same to all N scores and cancels in the softmax: it is there for the
files. Step 0 is therefore near the plain mean of the adapters, and not the base model.
Left out: mixing parallel adapters (the paper mixes sequential ones, and the `adapters` library adds x twice there), the softmax's
temperature, and the dropout on scores that the library takes from BERT's attention.
Proved in tests/peft/test_fusion.py; equal to the `adapters` library in tests/parity/test_adapters_library.py."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.attach import state_of
from minift.peft.bottleneck import Bottleneck, BottleneckAdapter, Parallel
from minift.peft.head import NewHead

PENALTY = 0.01
"""What the squared distance of V from the identity weighs in the loss, as in the `adapters` library."""


@dataclass(frozen=True)
class AdapterFusion:
    """Mix sets of bottleneck adapters that are on the model already."""

    names: tuple[str, ...]
    """The sets, two or more, all of one kind and on the same modules."""
    regularization: bool = True
    """Add 0.01 |V - I|^2 of every mixed place to the loss."""

    peft_type = "FUSION"

    def __post_init__(self):
        if isinstance(self.names, str) or len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise InputError(f"AdapterFusion of {self.names!r}: name two or more different sets to mix, such as names=('a', 'b')")
        object.__setattr__(self, "names", tuple(self.names))

    @property
    def needs(self) -> tuple[str, ...]:
        """The sets that must stay on the model while this one is there (attach.remove asks)."""
        return self.names

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        state = state_of(model)
        for name in self.names:
            if name not in state.sets:
                has = sorted(state.sets)
                raise InputError(f"AdapterFusion mixes {name!r}, and this model has no such set; it has {has}: attach or load it first")
            kind = type(state.sets[name])
            if not issubclass(kind, BottleneckAdapter) or kind is Parallel:
                raise InputError(f"AdapterFusion mixes BottleneckAdapter or Pfeiffer sets, and {name!r} is {kind.__name__}")
            first = type(state.sets[self.names[0]])
            if kind is not first:
                raise InputError(f"AdapterFusion mixes sets of one kind: {self.names[0]!r} is {first.__name__}, {name!r} is {kind.__name__}")
        small = {}
        for path, wrapper in state.wrappers.items():
            here = [name for name in self.names if name in wrapper.adapters and not isinstance(wrapper.adapters[name], NewHead)]
            if here and len(here) < len(self.names):
                raise InputError(f"AdapterFusion mixes sets on the same modules, and on {path} there is only {', '.join(here)}")
            if here:
                small[path] = Fusion(tuple(wrapper.adapters[name] for name in here), PENALTY if self.regularization else 0.0)
        return small

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """The `config` of the library's adapter_fusion_config.json."""
        return {
            "key": True, "query": True, "value": True, "query_before_ln": False, "regularization": self.regularization, "residual_before": False,
            "temperature": False, "value_before_softmax": True, "value_initialized": True, "dropout_prob": None,
        }  # fmt: skip

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Keys of model_adapter_fusion.safetensors; the library calls the set by the names it mixes."""
        return {
            f"{module.place}.adapter_fusion_layer.{','.join(self.names)}.{module.file_names[key]}": parameter
            for module in small.values()
            for key, parameter in module.named_parameters()
        }


class Fusion(nn.Module):
    """f of one place. The mixed adapters are not registered here: they live, and stay frozen, in sets of their own."""

    file_names = {"Q": "query.weight", "q": "query.bias", "K": "key.weight", "k": "key.bias", "V": "value.weight"}

    def __init__(self, parts: tuple[Bottleneck, ...], weight: float = PENALTY):
        super().__init__()
        self.weight = weight                                           # of the penalty in the loss
        like = parts[0].U
        C, options = like.shape[0], dict(device=like.device, dtype=like.dtype)
        self.parts = parts                                             # a tuple: nn.Module does not look into it
        self.form, self.place = parts[0].form, parts[0].place
        self.Q, self.K = (nn.Parameter(nn.init.normal_(torch.empty(C, C, **options), std=0.02)) for _ in range(2))
        self.q, self.k = (nn.Parameter(torch.zeros(C, **options)) for _ in range(2))
        self.V = nn.Parameter(torch.eye(C, **options))

    def forward(self, base: nn.Module, *inputs, **named):
        return self.form(self.change, base, *inputs, **named)

    def change(self, h: Tensor) -> Tensor:                                                # (..., C) -> (..., C)
        answers = torch.stack([part.change(h) for part in self.parts], dim=-2)            # (..., N, C)
        query = F.linear(h, self.Q.to(h.dtype), self.q.to(h.dtype))                       # (..., C)
        keys = F.linear(answers, self.K.to(answers.dtype), self.k.to(answers.dtype))      # (..., N, C)
        p = (keys @ query.to(keys.dtype)[..., None]).softmax(dim=-2)                      # (..., N, 1); no 1 / sqrt(C) in the paper
        mixed = (p.to(answers.dtype) * answers).sum(dim=-2)                               # (..., C)
        return F.linear(mixed, self.V.to(mixed.dtype))                                    # V once on the mean, not N times

    def penalty(self) -> Tensor:
        return self.weight * (self.V - torch.eye(len(self.V), device=self.V.device, dtype=self.V.dtype)).square().sum()

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise InputError("AdapterFusion cannot be merged: it mixes its adapters anew for every token, so no fixed weight can hold it")
