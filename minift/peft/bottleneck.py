"""Bottleneck adapters: small networks with a residual of their own, put between the parts of a frozen block.

    f(h) = s (act(h DT + d) UT + u)        D: (b, C)   d: (b,)   U: (C, b)   u: (C,)      b = C / reduction_factor, much less than C

                          in pre-LN blocks (GPT-2, LLaMA)                     in post-LN blocks (BERT)
    BottleneckAdapter     x + z + f(z), after attention and after the MLP     LN(x + z + f(z)), likewise
    Pfeiffer              y + f(y) with y = x + z, after the MLP only         LN(x + z + f(LN(x + z)))
    Parallel              x + z + f(x), beside the MLP                        LN(x + z + f(x))

where z is what the branch (attention or MLP) gives and x the stream it is added to, before the branch's own norm.
BottleneckAdapter is the first, two per block (Houlsby et al. 2019, arXiv:1902.00751); Pfeiffer keeps one (Pfeiffer et al. 2021,
arXiv:2005.00247); Parallel is He et al. 2022, arXiv:2110.04366, with s = 4. Blocks that run attention and MLP side by side (Falcon,
GPT-NeoX) have the same places; there y is the sum of both branches, and x of both is the block's input.
Step 0: only Parallel starts as the base model exactly (U = 0). The other papers start near it, with small random U; `init` says how.
act makes f nonlinear, so no weight can hold it: merging is refused, and inference pays for the two products.
Left out: training the LayerNorms beside the adapters (Houlsby's paper does), invertible adapters, Compacter's factors. In training, a
block's own dropout on z comes after f here and before it in the `adapters` library.
Proved in tests/peft/test_bottleneck.py; equal to the `adapters` library in tests/parity/test_adapters_library.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.places import Places, blocks
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_embedding, published_names
from minift.peft.wrapper import base_at

ACTIVATIONS = {
    "relu": F.relu, "swish": F.silu, "silu": F.silu, "gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "tanh": torch.tanh,
}  # fmt: skip
"""By the names the `adapters` library writes."""
ON_TARGETS = "minift-targets"
"""`architecture` in the file of adapters on named targets, which the library has not: it then refuses the folder."""
INITS = ("houlsby", "bert", "mam_adapter")


@dataclass(frozen=True)
class BottleneckAdapter:
    """Houlsby's adapter: after the attention and after the MLP of every block."""

    reduction_factor: float = 16
    """b = C / reduction_factor, rounded down, at least 1. Houlsby's best width on BERT-large, 64, is a factor of 16."""
    width: int | None = None
    """b itself, instead of a factor."""
    activation: str = "swish"
    """relu, swish (silu), gelu, gelu_new (its tanh form) or tanh. The paper does not name its own; this is the library's."""
    scale: float = 1.0
    """s, on what f adds."""
    dropout: float = 0.0
    """On what f adds, only while training."""
    init: str = "houlsby"
    """How D and U start: "houlsby" normal(0, 0.01) cut at two deviations (section 3 of the paper), "bert" normal(0, 0.02),
    "mam_adapter" D uniform and U zero, which is the base model exactly. Biases start at zero."""
    targets: str | list[str] | tuple[str, ...] | None = None
    """None: the blocks' own places. Else linears and embeddings by name (targets.py), and z + f(z) on each one's output."""

    peft_type = "BOTTLENECK"
    arrangement = {"mh_adapter": True, "output_adapter": True, "original_ln_before": False, "is_parallel": False}
    """How the `adapters` library's config says which of the three it is."""

    def __post_init__(self):
        if not (isinstance(self.reduction_factor, (int, float)) and 0 < self.reduction_factor < math.inf):
            raise InputError(f"reduction_factor is {self.reduction_factor!r}: it divides the model's width, so it must be above 0 and finite")
        if self.width is not None and (not isinstance(self.width, int) or self.width < 1):
            raise InputError(f"adapter width is {self.width!r}: it must be a whole number, at least 1, or None to use reduction_factor")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"adapter activation is {self.activation!r}: minift has {', '.join(ACTIVATIONS)}")
        if self.init not in INITS:
            raise InputError(f"adapter init is {self.init!r}: minift has {', '.join(INITS)}")
        if not (isinstance(self.scale, (int, float)) and math.isfinite(self.scale) and self.scale != 0):
            raise InputError(f"adapter scale is {self.scale!r}: what the adapter adds is multiplied by it, so it must be finite and not 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapter dropout is {self.dropout!r}: it must be at least 0 and below 1")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        if self.targets is not None:
            names = published_names(model)
            return {path: self.on_target(base, names[path]) for path, base in find(model, self.targets).items()}
        small = {}
        for places in blocks(model):
            small |= self.in_block(places, base_at(model, places.mlp))
        return small

    def in_block(self, places: Places, linear: nn.Module) -> dict[str, nn.Module]:
        """Path -> small module for one block; `linear` ends its MLP branch and so has the stream's width."""
        C = output_width(linear)
        return {
            places.attention: Bottleneck(self, after, C, linear, places.attention_key),
            places.mlp: Bottleneck(self, after, C, linear, places.output_key),
        }

    def on_target(self, base: nn.Module, name: str) -> nn.Module:
        return Bottleneck(self, after, output_width(base), base, name)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """The `config` of the library's adapter_config.json, which has only factors, so a width is written as one."""
        one = next(module for module in small.values() if isinstance(module, Bottleneck))
        fields = {
            **self.arrangement, "non_linearity": self.activation, "reduction_factor": self.reduction_factor, "scaling": float(self.scale),
            "dropout": self.dropout, "init_weights": self.init, "residual_before_ln": True, "original_ln_after": True,
        }  # fmt: skip
        if self.targets is not None:
            return {"architecture": ON_TARGETS, **fields, "width": self.width, "targets": self.targets}
        return {**fields, "reduction_factor": self.reduction_factor if self.width is None else factor(len(one.u), self.width)}

    @classmethod
    def from_file(cls, fields: dict) -> "BottleneckAdapter":
        """Takes out (pops) what it understands. cls is whichever of the three `arrangement` names (adapter_folders.py)."""
        chosen = {key: fields.pop(key, getattr(cls, key)) for key in ("reduction_factor", "width", "dropout", "targets")}
        init = fields.pop("init_weights", cls.init)
        return cls(
            **chosen, activation=str(fields.pop("non_linearity", cls.activation)).lower(), scale=fields.pop("scaling", 1.0),
            init=init if init in INITS else "bert",                                       # how it started is over
        )  # fmt: skip

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Keys of adapter.safetensors, NAME where the set's name goes (adapter_folders.py)."""
        return {
            f"{module.place}.adapters.NAME.{module.file_names[key]}": parameter
            for module in small.values() if isinstance(module, Bottleneck)
            for key, parameter in module.named_parameters()
        }  # fmt: skip


Houlsby = BottleneckAdapter


@dataclass(frozen=True)
class Pfeiffer(BottleneckAdapter):
    """Pfeiffer's adapter: one per block, on the finished sum. Half of Houlsby's parameters; the paper found it as good."""

    activation: str = "relu"
    init: str = "bert"

    arrangement = {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "is_parallel": False}

    def in_block(self, places: Places, linear: nn.Module) -> dict[str, nn.Module]:
        at, form = (places.block, after) if places.last_norm is None else (places.last_norm, around_norm)
        return {at: Bottleneck(self, form, output_width(linear), linear, places.output_key)}


@dataclass(frozen=True)
class Parallel(BottleneckAdapter):
    """He et al.'s adapter: beside the MLP, reading what the MLP reads before its norm. With `targets`: beside each of those linears."""

    reduction_factor: float = 2
    activation: str = "relu"
    scale: float = 4.0
    init: str = "mam_adapter"

    arrangement = {"mh_adapter": False, "output_adapter": True, "original_ln_before": False, "is_parallel": True}

    def in_block(self, places: Places, linear: nn.Module) -> dict[str, nn.Module]:
        tap = Tap()
        return {
            places.before_mlp: tap,
            places.mlp: Bottleneck(self, tap.beside, output_width(linear), linear, places.output_key),
        }

    def on_target(self, base: nn.Module, name: str) -> nn.Module:
        if is_embedding(base):
            raise InputError(f"{name} is an embedding: a parallel adapter reads vectors, and an embedding is given token ids")
        K = base.weight.shape[0] if is_conv1d(base) else base.in_features
        return Bottleneck(self, beside, output_width(base), base, name, inputs=K)


def factor(C: int, width: int) -> float:
    """The reduction_factor that stands for a width: int(C // factor) == width, whatever C / width rounds to."""
    found = C / width
    while int(C // found) < width:
        found = math.nextafter(found, 0)
    return found


def output_width(base: nn.Module) -> int:
    """C, the last size of what a linear or an embedding gives."""
    if is_embedding(base):
        return base.embedding_dim
    return base.nf if is_conv1d(base) else base.out_features


class Bottleneck(nn.Module):
    """f, and the form in which it is put around its base. D and U are at least float32 (trap 34); products run in the dtype of h."""

    file_names = {"D": "adapter_down.0.weight", "d": "adapter_down.0.bias", "U": "adapter_up.weight", "u": "adapter_up.bias"}

    def __init__(self, config: BottleneckAdapter, form: Callable, C: int, like: nn.Module, place: str, inputs: int | None = None):
        super().__init__()
        K = C if inputs is None else inputs
        b = config.width if config.width is not None else max(1, int(C // config.reduction_factor))
        self.form, self.place = form, place                       # place: the start of its keys in files
        self.act, self.scale, self.dropout = ACTIVATIONS[config.activation], config.scale, config.dropout
        new = lambda *shape: nn.Parameter(torch.zeros(shape, **new_like(like)))
        self.D, self.d, self.U, self.u = new(b, K), new(b), new(C, b), new(C)
        if config.init == "mam_adapter":
            nn.init.uniform_(self.D, -(K**-0.5), K**-0.5)         # U stays zero
        for matrix in (self.D, self.U) if config.init != "mam_adapter" else ():
            nn.init.trunc_normal_(matrix, std=0.01, a=-0.02, b=0.02) if config.init == "houlsby" else nn.init.normal_(matrix, std=0.02)

    def forward(self, base: nn.Module, *inputs, **named):
        return self.form(self.change, base, *inputs, **named)

    def change(self, h: Tensor) -> Tensor:                                                # (..., C) -> (..., C)
        low = self.act(F.linear(h, self.D.to(h.dtype), self.d.to(h.dtype)))               # (..., b)
        up = self.scale * F.linear(low, self.U.to(low.dtype), self.u.to(low.dtype))       # (..., C)
        return F.dropout(up, self.dropout) if self.dropout and self.training else up

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        raise InputError(
            "a bottleneck adapter cannot be merged: the activation between its two matrices is not linear, so no weight can hold both."
            " Keep it beside the model"
        )


# The forms: where the change f goes. base is the module an adapter stands in front of.
def after(change: Callable, base: nn.Module, *inputs, **named):
    """z + f(z). transformers' older blocks give a tuple that begins with z."""
    z = base(*inputs, **named)
    return z + change(z) if isinstance(z, Tensor) else (z[0] + change(z[0]), *z[1:])


def around_norm(change: Callable, base: nn.Module, y: Tensor) -> Tensor:
    """LN(y + f(LN(y))), base is LN and y = x + z."""
    return base(y + change(base(y)))


def beside(change: Callable, base: nn.Module, x: Tensor) -> Tensor:
    return base(x) + change(x)


class Tap(nn.Module):
    """Stands at the start of the MLP branch and remembers x until the branch's last linear adds f(x) to what it gives."""

    def __init__(self):
        super().__init__()
        self.x: Tensor | None = None

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        self.x = x
        return base(x)

    def beside(self, change: Callable, base: nn.Module, h: Tensor) -> Tensor:
        x, self.x = self.x, None
        return base(h) + change(x)

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        return {}                                                                          # the Bottleneck it serves refuses
