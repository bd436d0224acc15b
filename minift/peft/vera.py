"""VeRA: share one pair of frozen random matrices, learn two vectors per module (Kopiczko et al. 2023, arXiv:2310.11454).

    y = x WT + b * ((d * (x AT)) BT)       W: (N, K) frozen     A: (r, K), B: (N, r) frozen, random      d: (r,), b: (N,) learned

         x ---- W (N x K) ----------------------------- + -- y        A and B exist once for the whole model, as large as the
          \\---- A (r x K) -- * d -- B (N x r) -- * b --/              largest target needs; others take their first columns, rows

b starts at zero, so step 0 is the pretrained model exactly; d starts at 0.1. Only d and b are trained: r + N numbers per module, so r
may be large. Merging adds (b * B) (d * A) to W. A and B are drawn from a seed, bit for bit as Hugging Face peft draws them: a file may
hold them (`save_projection`), or only the seed, which is much smaller and trusts every torch to have the same generator.
Left out: dropping the rank per module, A and B of another distribution (Table 6 of the paper finds little difference).
Proved in tests/peft/test_vera.py; equal to Hugging Face peft in tests/parity/test_peft_vera.py."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.lora import added
from minift.peft.quantized import new_like
from minift.peft.targets import find, is_conv1d, is_linear, is_stored_transposed, published_names, read_targets, written_targets


@dataclass(frozen=True)
class VeRA:
    """Which modules get two vectors, around which random matrices."""

    rank: int = 256
    """r: how many random directions the vectors choose from. It may exceed N and K."""
    d_initial: float = 0.1
    """Where d starts; Table 6c of the paper finds 0.1 and below best."""
    dropout: float = 0.0
    """On x, on its way to A only, while training."""
    targets: str | list[str] | tuple[str, ...] = "all-linear"
    """"all-linear", names or ends of paths, or a regular expression (targets.py)."""
    projection_prng_key: int = 0
    """The seed of A and B."""
    save_projection: bool = True
    """Write A and B into the file too; without, the reader draws them from the seed again."""

    peft_type = "VERA"

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"VeRA rank is {self.rank!r}: it must be a whole number, at least 1")
        if not math.isfinite(self.d_initial) or self.d_initial == 0:
            raise InputError(f"VeRA d_initial is {self.d_initial!r}: with d and b both zero nothing would ever learn; choose a finite number, as 0.1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"VeRA dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if not isinstance(self.projection_prng_key, int):
            raise InputError(f"VeRA projection_prng_key is {self.projection_prng_key!r}: it is a seed, a whole number")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        linears = find(model, self.targets, is_linear, "linear")
        shapes = [widths(base) for base in linears.values()]
        N, K = max(n for n, _ in shapes), max(k for _, k in shapes)
        shared = Projection(self.rank, N, K, self.projection_prng_key, new_like(next(iter(linears.values())))["device"])
        return {path: VeRALinear(base, shared, self.d_initial, self.dropout) for path, base in linears.items()}

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return {
            "r": self.rank, "d_initial": self.d_initial, "vera_dropout": self.dropout, "target_modules": written_targets(model, small, is_linear),
            "projection_prng_key": self.projection_prng_key, "save_projection": self.save_projection,
            "fan_in_fan_out": is_stored_transposed(model, small), "bias": "none", "init_weights": True,
        }  # fmt: skip

    @classmethod
    def from_file(cls, fields: dict) -> "VeRA":
        fields.pop("fan_in_fan_out", None)
        fields.pop("init_weights", None)
        return cls(
            rank=fields.pop("r", 256),
            d_initial=fields.pop("d_initial", 0.1),
            dropout=fields.pop("vera_dropout", 0.0),
            targets=read_targets(fields),
            projection_prng_key=fields.pop("projection_prng_key", 0),
            save_projection=fields.pop("save_projection", True),
        )

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Each module's two vectors under its path; the shared matrices once, under no path."""
        names = published_names(model)
        found = {
            f"base_model.model.{names[path]}.{end}": getattr(part, name) for path, part in small.items() for name, end in part.file_names.items()
        }
        if self.save_projection:
            shared = next(iter(small.values())).shared
            found |= {"base_model.vera_A": shared.A, "base_model.vera_B": shared.B}
        return found


class Projection(nn.Module):
    """A (r, K) and B (N, r), uniform with variance 2 / K and 2 / r (Kaiming). Buffers: they move with the model and never learn.

    Not persistent: a checkpoint needs the seed only."""

    def __init__(self, rank: int, N: int, K: int, seed: int, device: torch.device):
        super().__init__()
        A, B = torch.empty(rank, K, device="meta"), torch.empty(N, rank, device="meta")
        if device.type != "meta":                                             # one generator, A first: the order is the file format
            generator = torch.Generator().manual_seed(seed)
            A, B = (nn.init.kaiming_uniform_(torch.empty(part.shape, device="cpu"), generator=generator).to(device) for part in (A, B))
        self.register_buffer("A", A, persistent=False)
        self.register_buffer("B", B, persistent=False)


class VeRALinear(nn.Module):
    """base(x) + b * ((d * (x AT)) BT), with the first K columns of A and the first N rows of B."""

    file_names = {"b": "vera_lambda_b", "d": "vera_lambda_d"}

    def __init__(self, base: nn.Module, shared: Projection, d_initial: float, dropout: float = 0.0):
        super().__init__()
        N, self.K = widths(base)
        self.shared, self.dropout = shared, dropout                           # the same object in every VeRALinear of a set
        self.d = nn.Parameter(torch.full((shared.A.shape[0],), d_initial, **new_like(base)))
        self.b = nn.Parameter(torch.zeros(N, **new_like(base)))

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:                          # (..., K) -> (..., N)
        y = base(x)                                                                   # (..., N)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        A, B = self._sides(x.dtype)
        low = F.linear(x, A)                                                          # (..., r)
        wide = F.linear(low * self.d.to(low.dtype), B)                                # (..., N)
        return y + (wide * self.b.to(wide.dtype)).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """d * A (r, K) and b * B (N, r): the change is their product (combine.py)."""
        A, B = self._sides(torch.float64)
        return self.d.detach().double()[:, None] * A, self.b.detach().double()[:, None] * B

    def merged(self, base: nn.Module) -> dict[str, Tensor]:
        """W + (b * B) (d * A), added in float32 and rounded once."""
        A, B = self._sides(self.d.dtype)
        change = (self.b[:, None] * B) @ (self.d[:, None] * A)                        # (N, K)
        return {"weight": added(base.weight, change.T if is_conv1d(base) else change)}

    def _sides(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.shared.A[:, : self.K].to(dtype), self.shared.B[: len(self.b)].to(dtype)             # (r, K), (N, r)


def widths(base: nn.Module) -> tuple[int, int]:
    """(N, K): numbers out, numbers in."""
    return tuple(base.weight.shape[::-1]) if is_conv1d(base) else (base.out_features, base.in_features)
