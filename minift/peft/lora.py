"""LoRA: learn a low-rank change to a frozen weight (Hu et al. 2021, arXiv:2106.09685).

    y = x WT + s (x AT) BT          W: (N, K) frozen      A: (r, K)      B: (N, r)      s = alpha / r

         x ---- W (N x K, frozen) ------- + -- y          one matrix of N K numbers is left alone;
          \\---- A (r x K) -- B (N x r) --/                r (N + K) numbers are learned

B starts at zero, so step 0 is the pretrained model exactly. Merging adds s B A to W: same function, no extra cost.
An embedding is a linear on one-hot rows: row t of the table E (V, C) gets s (B A)T[t], with A (r, V) zero at the start instead.
rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) is s = alpha / sqrt(r), which keeps the size of the step when r grows.
LoRA+ (Hayou et al. 2024, arXiv:2402.12354) lets B learn `lr_ratio` times as fast as A: from zero, and at one rate for both, B moves too
little in a wide model. It is a matter of training, so it is in no file.
A and B stay float32 whatever the base is (steps of 1e-4 would vanish in bf16); the two products run in the dtype of x.
Left out: dropout on token ids, convolutions, a bias on B, LoRA+'s separate rate for embeddings.
Proved in tests/peft/test_lora.py; equal to Hugging Face peft in tests/parity/test_peft_lora.py."""

import math
import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.linear import linear, plus_product
from minift.peft.low_rank import together
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_embedding, is_stored_transposed, published_names, read_targets, written_targets
from minift.quant.low_rank import fused


@dataclass(frozen=True)
class LoRA:
    """Which modules get a low-rank change, and how large."""

    rank: int = 8
    """r: numbers in the middle of B A. Section 7.2 of the paper: small ranks are often enough."""
    alpha: float = 16
    """The change is scaled by alpha / rank."""
    dropout: float = 0.0
    """On x, on its way to A only, while training."""
    targets: str | list[str] | tuple[str, ...] = "all-linear"
    """"all-linear", names or ends of paths, or a regular expression (targets.py)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Another rank for some modules: a regular expression for the end of the file path -> rank. The first that matches counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Another alpha, likewise."""
    lr_ratio: float = 1.0
    """LoRA+'s lambda: B's learning rate over A's. The paper recommends 16, with A's rate a little lower than LoRA's; 1 is LoRA."""

    peft_type = "LORA"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            if not isinstance(rank, int) or rank < 1:
                raise InputError(f"LoRA rank is {rank!r}: it must be a whole number, at least 1")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha) or alpha == 0:
                raise InputError(f"LoRA alpha is {alpha!r}: the change is multiplied by alpha / rank, so it must be finite and not 0")
        for end in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(end)
            except re.error as error:
                raise InputError(f"{end!r} in a rank or alpha pattern is not a regular expression: {error}") from None
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoRA dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if not (math.isfinite(self.lr_ratio) and self.lr_ratio > 0):
            raise InputError(f"lr_ratio is {self.lr_ratio!r}: B learns that many times as fast as A, so it must be finite and above 0")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        names, small = published_names(model), {}
        for path, base in find(model, self.targets).items():
            small[path] = self.module(base, *self.size(names[path]))
            small[path].B.lr_scale = self.lr_ratio
        return small

    def size(self, name: str) -> tuple[int, float]:
        """Rank and scale of the module with this path in files."""
        rank, alpha = at(self.rank_pattern, name, self.rank), at(self.alpha_pattern, name, self.alpha)
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def module(self, base: nn.Module, rank: int, scale: float) -> nn.Module:
        """What is put beside one linear or embedding."""
        return LoRAEmbedding(base, rank, scale) if is_embedding(base) else LoRALinear(base, rank, scale, self.dropout)

    def check(self, model: nn.Module, small: dict[str, nn.Module]) -> None:
        """Refuse a rank that no change can have. Only for a new set: a file may hold one, and it still means something."""
        names = published_names(model)
        for path, module in small.items():
            (rank, K), N = module.A.shape, len(module.B)
            if rank > min(N, K):
                raise InputError(f"LoRA rank is {rank}, but a change of {names[path]}, {N} x {K}, has rank {min(N, K)} at most: choose a lower"
                                 " rank, for this module alone with rank_pattern, or leave it out of the targets")    # fmt: skip

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        """The fields of adapter_config.json that are LoRA's own."""
        return {
            "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout, "use_rslora": self.rslora,
            "target_modules": written_targets(model, small), "rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern,
            "fan_in_fan_out": is_stored_transposed(model, small), "bias": "none", "init_lora_weights": True,
        }  # fmt: skip

    @classmethod
    def from_file(cls, fields: dict) -> "LoRA":
        """From the fields of an adapter_config.json; takes out (pops) those it understands, so that the caller can refuse the rest."""
        start = fields.pop("init_lora_weights", True)
        if start not in (True, False, None, "gaussian", "eva", "orthogonal"):
            raise InputError(f"init_lora_weights is {start!r}: that start changes the base too. Convert the adapter to plain LoRA first")
        fields.pop("fan_in_fan_out", None)                  # how the base is stored; A and B are the same either way
        return cls(
            rank=fields.pop("r", 8),
            alpha=fields.pop("lora_alpha", 8),
            dropout=fields.pop("lora_dropout", 0.0),
            targets=read_targets(fields),
            rslora=fields.pop("use_rslora", False),
            rank_pattern=fields.pop("rank_pattern", None) or {},
            alpha_pattern=fields.pop("alpha_pattern", None) or {},
        )


def at(pattern: dict, path: str, default):
    """The value of the first regular expression in `pattern` that matches the end of `path`, as peft has it."""
    return next((value for end, value in pattern.items() if re.match(rf"(.*\.)?({end})$", path)), default)


class LoRALinear(nn.Module):
    """base(x) + s (x AT) BT; A uniform in +-1/sqrt(K), B zero."""

    file_names = {"A": "lora_A.weight", "B": "lora_B.weight"}

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        N, K = base.weight.shape[::-1] if is_conv1d(base) else (base.out_features, base.in_features)
        self.scale, self.dropout = scale, dropout
        self.A = nn.Parameter(torch.empty(rank, K, **new_like(base)).uniform_(-(K**-0.5), K**-0.5))
        self.B = nn.Parameter(torch.zeros(N, rank, **new_like(base)))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        if not (self.dropout and self.training):                                      # both terms read the same x
            for one in (fused, together):                                             # over 4 bits on a GPU; over full precision on a CPU
                if (y := one(base, x, self.A, self.B, self.scale)) is not None:
                    return y
        y = base(x)                                                                   # (..., N)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        low = linear(x, self.A.to(x.dtype))                                           # (..., r); the (N, K) change is never built
        return plus(y, low, self.B, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, K) and s B (N, r), in float64: the change is B A with the scale in it, which is what sets can be compared and added by."""
        return self.A.detach().double(), self.scale * self.B.detach().double()

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """W + s B A, added in float32 and rounded once."""
        change = self.scale * (self.B @ self.A)                                       # (N, K)
        return {"weight": added(base.weight, change.T if is_conv1d(base) else change)}


class LoRAEmbedding(nn.Module):
    """base(ids) + s A[:, ids]T BT; A zero, B standard normal, as peft starts them."""

    file_names = {"A": "lora_embedding_A", "B": "lora_embedding_B"}

    def __init__(self, base: nn.Embedding, rank: int, scale: float):
        super().__init__()
        V, C = base.weight.shape
        self.scale = scale
        self.A = nn.Parameter(torch.zeros(rank, V, **new_like(base)))
        self.B = nn.Parameter(torch.empty(C, rank, **new_like(base)).normal_())

    def forward(self, base: nn.Embedding, ids: Tensor) -> Tensor:                     # (...) -> (..., C)
        y = base(ids)                                                                 # (..., C)
        low = F.embedding(ids, self.A.T)                                              # (..., r)
        return plus(y, low, self.B, self.scale)

    factors = LoRALinear.factors                                                      # (r, V) and (C, r): of the transposed change

    def merged(self, base: nn.Embedding) -> dict[str, Tensor]:
        return {"weight": added(base.weight, self.scale * (self.B @ self.A).T)}       # (V, C)


def plus(y: Tensor, low: Tensor, B: Tensor, scale: float) -> Tensor:
    """y + scale low BT, in the dtype of y: also under autocast, where the joined product would round an embedding's float32 rows, and with
    them the whole stream behind them."""
    kind = y.device.type
    if torch.is_autocast_enabled(kind) and y.dtype != torch.get_autocast_dtype(kind):
        return y + scale * (low @ B.T).to(y.dtype)
    return plus_product(y, low.to(y.dtype), B.to(y.dtype), scale)


def added(weight: Tensor, change: Tensor) -> Tensor:
    """weight + change in weight's dtype."""
    refuse_packed(weight)
    return (weight.to(change.dtype) + change).to(weight.dtype)


def refuse_packed(weight: Tensor) -> None:
    """Codes of another library's 4-bit or 8-bit linear are no numbers that a change could be added to (ours dequantizes: quantized.py)."""
    if not weight.is_floating_point():
        raise InputError(f"the base weight is {weight.dtype}: merging would round the change away. Load the base unquantized, or quantized by minift, to merge")
