"""AdaLoRA: let training decide which modules deserve rank (Zhang et al. 2023, arXiv:2303.10512).

    y = x WT + s (E * (x QT)) PT      W: (N, K) frozen     Q: (r, K)     E: (r, 1)     P: (N, r)     s = alpha / init_r

P E Q has the shape of a singular value decomposition: triplet i is column i of P, number i of E, row i of Q. All modules start with
init_r triplets; while training, the least important ones of the whole model lose their E, until target_r per module are left on average.
E starts at zero, so step 0 is the pretrained model exactly. Merging adds s P (E * Q) to W.

    after each step:  I = |p * grad p|                                     of every number p of P, E and Q (eq. 8)
                      sensitivity = beta1 sensitivity + (1 - beta1) I       (eq. 9)
                      uncertainty = beta2 uncertainty + (1 - beta2) |I - sensitivity|
                      importance of triplet i = (s u)(E_i) + mean of (s u) over row i of Q + mean of (s u) over column i of P
    budget(t)         init_r per module until t = tinit, then target_r + (init_r - target_r)(1 - (t - tinit) / (T - tfinal - tinit))^3,
                      target_r from T - tfinal on: then the choice is final
    penalty           orth_reg_weight * mean over all P and Q of || Q QT - 1 ||, || PT P - 1 ||      keeps the triplets apart; peft has the norm and
                                the mean, eq. 4 of the paper the squared norm and the sum

A triplet whose E was set to zero goes on getting gradients and may come back before the choice is final. Files leave out the triplets
that are off (`rank_pattern` says which), so a finished adapter is as small as its budget.
Left out: the paper's other importance scores, convolutions, embeddings.
Proved in tests/peft/test_adalora.py; equal to Hugging Face peft, step for step, in tests/parity/test_peft_adalora.py."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.linear import linear
from minift.peft.lora import added, plus
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_linear, is_stored_transposed, published_names, read_targets, written_targets

@dataclass(frozen=True)
class AdaLoRA:
    """How many triplets to start with and to keep, and when to choose."""

    init_r: int = 12
    """Triplets per module at the start. Section 4.1 of the paper: one and a half times target_r."""
    target_r: int = 8
    """Triplets per module at the end, on average over the modules."""
    alpha: float = 16
    """The change is scaled by alpha / init_r, also when triplets are gone."""
    dropout: float = 0.0
    """On x, on its way to Q only, while training."""
    targets: str | list[str] | tuple[str, ...] = "all-linear"
    """"all-linear", names or ends of paths, or a regular expression (targets.py)."""
    tinit: float = 0.1
    """How long all triplets are kept: optimizer steps, or below 1 a share of them. The paper's own runs: a tenth to a fifth."""
    tfinal: float = 0.5
    """How long the chosen ones are trained at the end, likewise. The paper's own runs: about half."""
    deltaT: int = 1
    """Steps between two choices; the paper's runs of many thousand steps take 100."""
    beta1: float = 0.85
    """Memory of the sensitivity."""
    beta2: float = 0.85
    """Memory of the uncertainty."""
    orth_reg_weight: float = 0.5
    """Weight of the penalty on triplets that are not orthogonal; its size is that of peft's penalty, not of the paper's gamma."""
    rank_pattern: dict[str, list[bool]] = field(default_factory=dict)
    """From a file: path of a module's E -> which of its init_r triplets are there."""

    peft_type = "ADALORA"

    def __post_init__(self):
        for name in ("init_r", "target_r", "deltaT"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"AdaLoRA {name} is {getattr(self, name)!r}: it must be a whole number, at least 1")
        if self.target_r > self.init_r:
            raise InputError(f"AdaLoRA target_r is {self.target_r} and init_r {self.init_r}: triplets are only taken away, so start with more")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise InputError(f"AdaLoRA alpha is {self.alpha!r}: the change is multiplied by alpha / init_r, so it must be above 0")
        for name in ("tinit", "tfinal"):                                        # inf and nan are no integers either
            value = getattr(self, name)
            if not (0 <= value < 1 or value >= 1 and float(value).is_integer()):
                raise InputError(f"AdaLoRA {name} is {value!r}: wanted a number of steps, or a share of them from 0 to below 1")
        if sum(value for value in (self.tinit, self.tfinal) if value < 1) >= 1:
            raise InputError(f"AdaLoRA tinit {self.tinit} and tfinal {self.tfinal} leave no steps between them to choose in: lower one")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"AdaLoRA {name} is {getattr(self, name)!r}: it must be above 0 and below 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"AdaLoRA dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if not 0 <= self.orth_reg_weight < math.inf:
            raise InputError(f"AdaLoRA orth_reg_weight is {self.orth_reg_weight!r}: it must be at least 0")
        for path, kept in self.rank_pattern.items():
            if not isinstance(kept, list) or len(kept) != self.init_r or not all(isinstance(one, bool) for one in kept):
                raise InputError(f"AdaLoRA rank_pattern of {path} is {kept!r}: wanted a list of init_r = {self.init_r} times true or false")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        linears, names = find(model, self.targets, is_linear, "linear"), published_names(model)
        there = {f"{names[path]}.lora_E": [True] * self.init_r for path in linears} | self.rank_pattern
        if len(there) > len(linears):
            unknown = min(there.keys() - {f"{names[path]}.lora_E" for path in linears})
            raise InputError(f"AdaLoRA rank_pattern names {unknown}, which is no target: is it a pattern for another model?")
        weight = self.orth_reg_weight / (2 * len(linears))                      # so that the penalties of all modules add up to the mean
        scale = self.alpha / (self.init_r + 1e-5)                               # peft's guard against no rank at all, kept to be equal
        return {path: AdaLoRALinear(base, there[f"{names[path]}.lora_E"], scale, weight, self.dropout) for path, base in linears.items()}

    def check(self, model: nn.Module, small: dict[str, nn.Module]) -> None:
        for path, part in small.items():
            N, K = len(part.P), part.Q.shape[1]
            if self.init_r > min(N, K):
                raise InputError(f"AdaLoRA init_r is {self.init_r}, but a change of {path}, {N} x {K}, has rank {min(N, K)} at most: lower it")

    def schedule(self, steps: int) -> tuple[int, int]:
        """(the last step with all triplets, the step of the final choice) of a training of `steps`."""
        tinit, tfinal = (int(value) if value >= 1 else round(value * steps) for value in (self.tinit, self.tfinal))
        if tinit >= steps - tfinal:
            raise InputError(
                f"AdaLoRA wants {tinit} steps with all triplets and {tfinal} with the chosen ones, and a step between them to choose in: "
                f"{steps} steps are too few. Train longer, or lower tinit and tfinal"
            )
        return tinit, steps - tfinal

    def enough(self) -> int:
        """A number of steps the schedule fits into. peft wants one in the file of an adapter that was never trained, too."""
        counts, shares = (sum(v for v in (self.tinit, self.tfinal) if (v >= 1) == whole) for whole in (True, False))
        return max(1000, math.ceil((counts + 2) / (1 - shares)))

    def settled(self, step: int, steps: int) -> bool:
        """Has the final choice been made?"""
        return step >= self.schedule(steps)[1]

    def budget(self, step: int, steps: int, start: int, end: int) -> int:
        """How many of the model's `start` triplets stay after `step`; `end` of them at last."""
        tinit, last = self.schedule(steps)
        if step <= tinit or step >= last:
            return start if step <= tinit else end
        return int((start - end) * (1 - (step - tinit) / (last - tinit)) ** 3 + end)

    @torch.no_grad()
    def after_step(self, small: list[nn.Module], step: int, steps: int) -> None:
        """Take note of the gradients; keep the most important triplets of the whole model, as many as the budget allows."""
        tinit, last = self.schedule(steps)
        for part in small:
            part.steps.fill_(steps)
        start, end = sum(len(part.E) for part in small), self.target_r * len(small)
        if start <= end:                                                        # a finished adapter, trained on: nothing to take away
            return
        if step < last:
            for part in small:
                part.note(self.beta1, self.beta2)
        if step == last or tinit < step < last and step % self.deltaT == 0:
            scores = [part.importance() for part in small]
            off = start - self.budget(step, steps, start, end)
            border = torch.cat(scores).kthvalue(off).values                     # the most important one to go
            for part, score in zip(small, scores, strict=True):
                part.on.copy_(score > border)
        if step >= last or tinit < step and step % self.deltaT == 0:
            for part in small:
                part.E.mul_(part.on[:, None])

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        names, parts = published_names(model), list(small.values())
        steps = int(parts[0].steps) or self.enough()
        tinit, last = self.schedule(steps)
        pattern = {f"{names[path]}.lora_E": part.pattern() for path, part in small.items()}
        return {
            "init_r": self.init_r, "target_r": self.target_r, "lora_alpha": self.alpha, "lora_dropout": self.dropout,
            "target_modules": written_targets(model, small, is_linear), "tinit": tinit, "tfinal": steps - last, "total_step": steps,
            "deltaT": self.deltaT, "beta1": self.beta1, "beta2": self.beta2, "orth_reg_weight": self.orth_reg_weight,
            "rank_pattern": None if all(map(all, pattern.values())) else pattern,
            "fan_in_fan_out": is_stored_transposed(model, small), "bias": "none", "init_lora_weights": True,
        }  # fmt: skip

    @classmethod
    def from_file(cls, fields: dict) -> "AdaLoRA":
        """A file's tinit and tfinal belong to its total_step, so they are read as shares of it."""
        fields.pop("fan_in_fan_out", None)
        fields.pop("init_lora_weights", None)
        fields.pop("r", None)                                                   # LoRA's, which AdaLoRA does not use
        steps = fields.pop("total_step", None)
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"total_step is {steps!r}: it must say how many steps tinit and tfinal are a part of")
        return cls(
            init_r=fields.pop("init_r", 12),
            target_r=fields.pop("target_r", 8),
            alpha=fields.pop("lora_alpha", 8),
            dropout=fields.pop("lora_dropout", 0.0),
            targets=read_targets(fields),
            tinit=fields.pop("tinit", 0) / steps,
            tfinal=fields.pop("tfinal", 0) / steps,
            deltaT=fields.pop("deltaT", 1),
            beta1=fields.pop("beta1", 0.85),
            beta2=fields.pop("beta2", 0.85),
            orth_reg_weight=fields.pop("orth_reg_weight", 0.5),
            rank_pattern=fields.pop("rank_pattern", None) or {},
        )

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Without the triplets that are off; where all are on, the parameters themselves."""
        names, found = published_names(model), {}
        for path, part in small.items():
            on = part.alive()
            tensors = {"Q": part.Q, "E": part.E, "P": part.P} if on.all() else {"Q": part.Q[on], "E": part.E[on], "P": part.P[:, on]}
            found |= {f"base_model.model.{names[path]}.{part.file_names[name]}": tensor for name, tensor in tensors.items()}
        return found


class AdaLoRALinear(nn.Module):
    """base(x) + s (E * (x QT)) PT; P and Q normal with deviation 0.02, E zero."""

    file_names = {"Q": "lora_A", "E": "lora_E", "P": "lora_B"}

    def __init__(self, base: nn.Module, there: list[bool], scale: float, weight: float, dropout: float = 0.0):
        super().__init__()
        N, K = base.weight.shape[::-1] if is_conv1d(base) else (base.out_features, base.in_features)
        r, like = sum(there), new_like(base)
        self.there, self.scale, self.weight, self.dropout = there, scale, weight, dropout
        self.Q = nn.Parameter(torch.empty(r, K, **like).normal_(std=0.02))
        self.E = nn.Parameter(torch.zeros(r, 1, **like))
        self.P = nn.Parameter(torch.empty(N, r, **like).normal_(std=0.02))
        for name, p in list(self.named_parameters()):                           # what a resumed training must know: persistent buffers
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(p))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(p))
        self.register_buffer("on", torch.ones(r, dtype=torch.bool, device=like["device"]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))       # of the whole training; 0: not trained yet

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                    # (..., K) -> (..., N)
        y = base(x)                                                             # (..., N)
        if not len(self.E):                                                     # a file may have left this module nothing
            return y
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        low = linear(x, self.Q.to(x.dtype))                                     # (..., r)
        return plus(y, low * self.E[:, 0].to(low.dtype), self.P, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """E * Q (r, K) and s P (N, r): the change is their product (combine.py)."""
        return (self.E * self.Q).detach().double(), self.scale * self.P.detach().double()

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """W + s P (E * Q), added in float32 and rounded once."""
        change = self.scale * (self.P @ (self.E * self.Q))                      # (N, K)
        return {"weight": added(base.weight, change.T if is_conv1d(base) else change)}

    def penalty(self) -> Tensor:
        """This module's part of the mean over all P and Q of their distance from orthogonality, times the weight."""
        with torch.autocast(self.Q.device.type, enabled=False):                 # bf16 could not tell 1 from 1.003
            one = torch.eye(len(self.E), dtype=self.Q.dtype, device=self.Q.device)
            return self.weight * ((self.Q @ self.Q.T - one).norm() + (self.P.T @ self.P - one).norm())

    def note(self, beta1: float, beta2: float) -> None:
        """Eq. 8 and 9: average |p * grad p|, and how far it strays from its average."""
        for name, p in self.named_parameters():
            sensitivity, uncertainty = getattr(self, f"sensitivity_{name}"), getattr(self, f"uncertainty_{name}")
            seen = torch.zeros_like(p) if p.grad is None else (p * p.grad).abs()
            sensitivity.copy_(beta1 * sensitivity + (1 - beta1) * seen)
            uncertainty.copy_(beta2 * uncertainty + (1 - beta2) * (seen - sensitivity).abs())

    def importance(self) -> Tensor:
        """(r,): of each triplet."""
        Q, E, P = (getattr(self, f"sensitivity_{name}") * getattr(self, f"uncertainty_{name}") for name in "QEP")
        return E[:, 0] + (Q.mean(1) + P.mean(0))

    def alive(self) -> Tensor:
        """(r,) bool: the triplets that are on, or came back since the last choice."""
        return self.on | (self.E[:, 0] != 0)

    def pattern(self) -> list[bool]:
        """Which of the init_r triplets a file holds."""
        there = torch.tensor(self.there)
        there[there.clone()] = self.alive().cpu()
        return there.tolist()
