"""What `minift compare` hands to each of its rows, and what a row hands back: both are files, so a row can be a process of its own.

Proved in tests/recipes/test_compare.py."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from minift.data.batches import Example
from minift.data.sources import Row
from minift.files import write_text


@dataclass(frozen=True)
class Quality:
    """A model on the held-out rows, and on text of pre-training's kind."""

    loss: float
    rouge_l: float
    pep257: float | None
    """None if the answers are no docstrings."""
    perplexity: float


@dataclass(frozen=True)
class Task:
    """All that a row needs to know; written once, as task.json, and read by every row."""

    model: str
    precision: str
    steps: int
    batch_tokens: int
    seeds: int
    rates: tuple[float, ...]
    """Factors on a method's own default rate."""
    new_tokens: int
    max_length: int
    rounds: int
    """Generations timed for the slowdown."""
    docstrings: bool
    """The answers are summary lines: the first line counts, and PEP 257 judges it."""
    train: tuple[Row, ...]
    valid: tuple[Row, ...]
    judged: tuple[Row, ...]
    windows: tuple[Example, ...]
    window_targets: int
    before: Quality
    """The base model."""
    quantize: str | None = None
    """What its linears are in."""

    def write(self, file: Path) -> None:
        write_text(file, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Task":
        fields = json.loads(file.read_text(encoding="utf-8"))
        for name in ("train", "valid", "judged"):
            fields[name] = tuple(Row(**{**row, "messages": tuple(row["messages"]), "unused": tuple(row["unused"])}) for row in fields[name])
        windows = tuple(Example(ids, mask) for ids, mask, _ in fields["windows"])
        return cls(**{**fields, "rates": tuple(fields["rates"]), "windows": windows, "before": Quality(**fields["before"])})


@dataclass(frozen=True)
class Measured:
    """One method's row."""

    trained: int
    total: int
    file_bytes: int
    """What has to be kept or sent: the adapter's tensors, or the whole checkpoint's."""
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    """Of the process while it trains."""
    training_bytes: int
    """The part of the peak that came on top of the loaded model."""
    ms_per_step: float
    tokens_per_s: float
    """Tokens of text that a training step works through, pads not counted."""
    slowdown: float
    """Of generation, not merged; 1 is the base model's speed."""
    whole: bool
    """The result is a whole checkpoint, not an adapter."""
    unmergeable: str | None
    """Why it cannot be merged; None if it can, and then generates at the base's speed."""
    rate: float
    search: dict[str, float]
    """Candidate rate -> validation loss; inf: the loss was not finite."""
    qualities: tuple[Quality, ...]
    """After training, one for each seed."""
    seconds: float

    def mean(self, name: str) -> float:
        """Of a quality, over the seeds."""
        return fmean(getattr(quality, name) for quality in self.qualities)

    def spread(self, name: str) -> float:
        """Sample standard deviation (n - 1) of a quality over the seeds; 0 if there is one seed only, which tells nothing of it."""
        return stdev(getattr(quality, name) for quality in self.qualities) if len(self.qualities) > 1 else 0.0

    @property
    def mergeable(self) -> bool:
        """Can it generate at the base's speed: as a checkpoint of its own, or merged into one?"""
        return self.unmergeable is None

    @classmethod
    def of(cls, fields: dict) -> "Measured":
        return cls(**{**fields, "qualities": tuple(Quality(**q) for q in fields["qualities"])})


def read_row(file: Path) -> "Measured | str | None":
    """The numbers of a row's file, or what went wrong; None if there is no such file."""
    if not file.exists():
        return None
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields.pop("method")
    return fields["error"] if "error" in fields else Measured.of(fields)
