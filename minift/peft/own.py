"""The classic baselines: train the model's own numbers, all of them or a part.

    Full          every parameter                           what every other method is compared with
    LastLayers    the last n blocks, the final norm, and an untied head (Houlsby et al. 2019, arXiv:1902.00751, section 3.4)
    Head          the output head alone: the frozen body extracts features

They go through the door of all methods: each module that trains is answered by a trained copy of its own numbers,

    y = f(x; theta + what was learned)         theta stays where it was

so step 0 is the base exactly, and switch, disabled, merge, save and load work as for LoRA. The copy costs the memory of what is
trained once more. `keep_base=False` does without it and trains the very numbers of the model; then there is no base to go back to,
and whatever needs one says so. Files have a format of their own (docs/adapter_formats.md); peft knows none of the three.
Left out: layer-wise learning rates, gradual unfreezing.
Proved in tests/peft/test_own.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minift.errors import InputError
from minift.models.encoder_decoder import EncoderDecoder
from minift.models.linear import is_product
from minift.peft.targets import HEADS, is_conv1d
from minift.peft.wrapper import base_at, base_modules
from minift.quant import QuantizedLinear


@dataclass(frozen=True)
class Full:
    """Every parameter of the model."""

    keep_base: bool = True
    """Train a copy. Without it, the model's own numbers change, at no extra memory."""

    peft_type = "FULL"

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        return own(base_modules(model), self.keep_base)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return _in_rows(model, small, {})

    @classmethod
    def from_file(cls, fields: dict) -> "Full":
        return cls()


@dataclass(frozen=True)
class LastLayers:
    """The last blocks, what follows them, and the head unless it is the embedding."""

    n: int = 1
    """How many blocks, counted from the end."""
    keep_base: bool = True
    """Train a copy. Without it, the model's own numbers change, at no extra memory."""

    peft_type = "LAST_LAYERS"

    def __post_init__(self):
        if not isinstance(self.n, int):
            raise InputError(f"n is {self.n!r}: wanted a whole number of blocks")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        modules = base_modules(model)
        stacks = {path: module for path, module in modules.items() if isinstance(module, nn.ModuleList)}
        if not stacks:
            raise InputError("this model has no list of blocks (nn.ModuleList): 'the last ones' has no meaning here")
        if isinstance(model, EncoderDecoder):                  # the layers before the head are the decoder's
            stacks = {path: blocks for path, blocks in stacks.items() if path.startswith("decoder.")}
        path, blocks = max(stacks.items(), key=lambda item: len(item[1]))
        if not 1 <= self.n <= len(blocks):
            raise InputError(f"the last {self.n} blocks of a model with {len(blocks)}: choose 1 to {len(blocks)}")
        parent = path.rpartition(".")[0]
        siblings = [name for name, _ in modules[parent].named_children()]
        later = siblings[siblings.index(path.rpartition(".")[2]) + 1 :]
        starts = [f"{path}.{i}" for i in range(len(blocks) - self.n, len(blocks))] + [f"{parent}.{name}" if parent else name for name in later]
        starts += [name for name in HEADS if name in modules]
        chosen = {p: m for p, m in modules.items() if any(p == start or p.startswith(start + ".") for start in starts)}
        early = {id(value) for p, m in modules.items() if p not in chosen for value in m.parameters(recurse=False)}
        for name in HEADS:                                     # a tied head is the embedding, which is not among the last layers
            if name in chosen and any(id(value) in early for value in chosen[name].parameters(recurse=False)):
                del chosen[name]
        return own(chosen, self.keep_base)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return _in_rows(model, small, {"n": self.n})

    @classmethod
    def from_file(cls, fields: dict) -> "LastLayers":
        return cls(n=fields.pop("n", 1))


@dataclass(frozen=True)
class Head:
    """The output head alone. A head tied to the embedding gets numbers of its own; the embedding stays."""

    peft_type = "HEAD"

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        heads = {path: module for path, module in base_modules(model).items() if path in HEADS}
        if not heads:
            raise InputError(f"this model has no output head: looked for {', '.join(HEADS)}")
        return own(heads, keep_base=True)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return _in_rows(model, small, {})

    @classmethod
    def from_file(cls, fields: dict) -> "Head":
        return cls()


class Own(nn.Module):
    """The base with these numbers in place of its own."""

    def __init__(self, numbers: dict[str, nn.Parameter], copied: bool):
        super().__init__()
        for name, value in numbers.items():
            self.register_parameter(name, value)
        self.file_names = {name: name for name in numbers}
        self.copied = copied

    def forward(self, base: nn.Module, *inputs: Tensor) -> Tensor:
        if not self.copied:
            return base(*inputs)
        mine = {name: value.to(getattr(base, name).dtype) for name, value in self._parameters.items()}
        return functional_call(base, mine, inputs)

    def plain_weight(self, base: nn.Module) -> Tensor | None:
        """See wrapper.plain_weight."""
        return self.weight if is_product(base) and self.weight.dtype == base.weight.dtype else None

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """The trained numbers; where two modules share them, both get the same tensor, so tied stays tied."""
        return {name: value.to(getattr(base, name).dtype) for name, value in self._parameters.items()}


def own(modules: dict[str, nn.Module], keep_base: bool) -> dict[str, nn.Module]:
    """An Own for every module that has parameters itself (not only in its children). What is shared stays shared."""
    copies: dict[int, nn.Parameter] = {}
    small = {}
    for path, module in modules.items():
        if isinstance(module, QuantizedLinear):
            raise InputError(f"{path} is in {module.q.scheme}, and no small step can change its codes: load the base unquantized to train its own"
                             " weights, or train an adapter beside them (lora)")    # fmt: skip
        numbers = {name: value for name, value in module.named_parameters(recurse=False)}
        for value in numbers.values():
            if id(value) not in copies and not value.is_floating_point():
                raise InputError(f"{path} holds {value.dtype} numbers, which no small step can change: load the base unquantized")
            if id(value) not in copies and keep_base:
                dtype = torch.promote_types(value.dtype, torch.float32)                     # trap 34
                copies[id(value)] = nn.Parameter(value.detach().to(dtype, copy=True))
            elif id(value) not in copies:
                if value.dtype != torch.float32 and value.dtype != torch.float64:
                    raise InputError(f"{path} is {value.dtype}, which cannot resolve small steps: load the model in float32, or keep_base=True")
                copies[id(value)] = value
        if numbers:
            small[path] = Own({name: copies[id(value)] for name, value in numbers.items()}, keep_base)
    return small


def _in_rows(model: nn.Module, small: dict[str, nn.Module], fields: dict) -> dict:
    """`fields`, if every weight is (N, K): in a file the two layouts could not be told apart when N = K."""
    conv = next((path for path in small if is_conv1d(base_at(model, path))), None)
    if conv is not None:
        raise InputError(f"{conv} stores its weight as (K, N): save this model with its own save_pretrained, or train it as a minift model")
    return fields
