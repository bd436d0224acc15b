"""How much of a model is trained.

Proved in tests/peft/test_attach.py; the papers' own counts come out in tests/peft/test_counts.py."""

import dataclasses

from torch import nn

from minift.quant import QuantizedLinear


@dataclasses.dataclass(frozen=True)
class Counts:
    """How much of a model is trained: numbers of parameters (a tied weight counts once, one in 4 or 8 bits as the numbers it stands for),
    and the trained ones' bytes."""

    trained: int
    total: int
    percent: float
    bytes: int

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} parameters trained ({self.percent:.3f} %), {self.bytes:,} bytes"


def trainable(model: nn.Module) -> Counts:
    """Count what an optimizer would update, adapters or not."""
    parameters = list(model.parameters())
    chosen = [p for p in parameters if p.requires_grad]
    packed = sum(module.out_features * module.in_features for module in model.modules() if isinstance(module, QuantizedLinear))
    trained, total = sum(p.numel() for p in chosen), sum(p.numel() for p in parameters) + packed
    return Counts(trained, total, 100 * trained / max(total, 1), sum(p.numel() * p.element_size() for p in chosen))
