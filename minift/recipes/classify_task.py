"""What `minift classify` is asked, and the rows it learns from: its options, its data, its loss. Proved in tests/recipes/test_classify.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from minift.classify.heads import Kind
from minift.data.classified import Classified, Found, labels_of, read_classified, split_classified, unseen
from minift.errors import InputError
from minift.losses.classification import balanced, multi_label, single_label, squared_error
from minift.models.pooling import Mode
from minift.recipes.methods import METHODS
from minift.recipes.tuning import RunConfig


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Train a classifier, or a regression, on texts or pairs of texts."""

    data: tuple[str, ...]
    """Files or globs (JSONL, JSON, CSV, TSV): text, or sentence1 and sentence2; and label, labels (several) or score (a number)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of ours is which of the file's fields: --columns label category text question."""
    method: Literal["features", "setfit", *METHODS] = "features"
    """features: a head on frozen features; setfit: the same after contrastive tuning; or how the model is fine-tuned (`minift methods`)."""
    head: Kind = "linear"
    """On features: linear (logistic or ridge regression), mlp, or knn (nearest neighbours)."""
    l2: float | None = None
    """On features: weight of |W|^2 / 2 beside the mean loss; none: what does best on a fifth of the training rows (linear), 1e-2 as weight decay (mlp)."""
    hidden: int = 256
    """Inner numbers of --head mlp."""
    neighbours: int = 5
    """k of --head knn."""
    adapter: Path | None = None
    """On features: an adapter of `minift embed` on the model."""
    pooling: Mode | None = None
    """On features: how a text becomes one vector; none: as the adapter's or the model's folder says."""
    prompt: str | None = None
    """On features: the name of one of the model's prompts, or a text to be put before each; none: the model's default."""
    cache: str = "default"
    """Where features are kept: a folder; default: ~/.cache/minift/features; none: nowhere."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every label counts as much as any other, however rare it is."""
    label_smoothing: float = 0.0
    """One label of many: this share of the probability goes to all labels alike, against too much certainty."""
    rows: int = 32
    """Rows of a batch, where the model is fine-tuned."""
    best: Literal["loss", "score"] = "loss"
    """Where the model is fine-tuned: what makes an evaluation the best one, whose weights are kept; score: accuracy, micro F1 or Spearman, whichever
    is told first. Accuracy often goes on rising after the loss has begun to."""
    shots: tuple[int, ...] = ()
    """Few-shot: learn from so many rows of each label only; several numbers make a curve: --shots 1 2 4 8 16. The first draw's classifier is kept."""
    draws: int = 5
    """Of each number of shots: how many times rows are drawn, with seeds --seed, --seed + 1, ..."""
    pairs: int = 20
    """setfit: pairs of one label, and as many of two, that are drawn for each text."""
    mistakes: int = 20
    """Held-out rows in report.md that the classifier got most wrong."""
    max_length: int = 256
    """Longest row in tokens; longer ones are cut."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("rows", 1), ("hidden", 1), ("neighbours", 1), ("draws", 1), ("pairs", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}: wanted {least} or more")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"--label-smoothing is {self.label_smoothing}: wanted 0 to below 1")
        if self.l2 is not None and self.l2 < 0 or any(shots < 1 for shots in self.shots):
            raise InputError("--l2 wants 0 or more, --shots 1 or more")
        on_features = {"head": "linear", "l2": None, "hidden": 256, "neighbours": 5, "adapter": None, "pooling": None, "prompt": None, "cache": "default"}
        given = [name for name, default in on_features.items() if getattr(self, name) != default]
        if given and not self.features:
            raise InputError(f"--{given[0]} is for a head on features, and --method {self.method} trains the model: leave it out")
        if self.profile and self.features:
            raise InputError(f"--profile looks at the steps of a fine-tuning, and --method {self.method} has none of its own: leave it out, or take --method full or lora")
        if self.head == "knn" and (self.class_weights != "none" or self.label_smoothing or self.l2 is not None):
            raise InputError("--head knn learns nothing: --class-weights, --label-smoothing and --l2 have no effect on it, leave them out")

    @property
    def features(self) -> bool:
        """A head on features, and not the model, learns from the labels."""
        return self.method in ("features", "setfit")


@dataclass(frozen=True)
class Result:
    scores: dict[str, float]
    """On held-out rows (recipes/classify_report.py); few-shot: the means of the largest number of shots."""
    written: Path
    """The classifier's folder; few-shot: the run's, with one in each draw's."""
    interrupted: bool = False


@dataclass(frozen=True)
class Data:
    """Rows, and what their answers can be."""

    train: list[Classified]
    valid: list[Classified]
    labels: list[str]
    """Of regression: the one name "score"."""
    found: Found
    notes: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        return self.found.problem

    def lines(self) -> list[str]:
        kinds = "" if self.problem == "regression" else f", {len(self.labels)} labels"
        return [*self.notes, *self.found.lines(), f"{len(self.train)} rows to train on, {len(self.valid)} held out{kinds}"]


def read_data(config: Config) -> Data:
    """Raises InputError for labels that cannot be learned: only one, or held-out ones that training never shows."""
    rows, found = read_classified(config.data, columns=config.columns)
    notes = []
    if config.eval_data:
        train, (valid, other) = rows, read_classified(config.eval_data, columns=config.columns)
        if (other.problem, other.sides) != (found.problem, found.sides):
            raise InputError(f"--eval-data asks {other.problem} of {other.sides} texts, --data {found.problem} of {found.sides}: give files that ask the same")
        notes = other.lines()
    else:
        if found.problem != "regression":
            labels_of(rows)
        train, valid = split_classified(rows, config.held_out, found)
    if config.label_smoothing and found.problem != "single":
        raise InputError(f"--label-smoothing is for rows with one label each, and these ask {found.problem}: leave it out")
    if config.class_weights != "none" and found.problem == "regression":
        raise InputError("--class-weights are for labels, and these rows have numbers: leave it out")
    if found.problem == "regression":
        return Data(train, valid, ["score"], found, notes)
    labels = labels_of(train)
    if strange := unseen(valid, train):
        some = ", ".join(f"{name!r} ({where})" for name, where in list(strange.items())[:3])
        raise InputError(f"{len(strange)} labels of --eval-data occur in no training row: {some}: no classifier can learn them. Take the rows out, or give some to train on")
    return Data(train, valid, labels, found, notes)


def objective(config: Config, problem: str, answers: Tensor, labels: int) -> Callable[[Tensor, Tensor], tuple[Tensor, int]]:
    """(scores, answers) -> (sum, rows). answers: of all training rows, which class weights are counted from; a regression's loss is divided by
    their variance, so that a unit of ten thousand trains like one of one."""
    if problem == "regression":
        variance = max(answers.var(correction=0).item(), 1e-12)
        return lambda scores, values: (squared_error(scores, values)[0] / variance, len(values))
    weights = balanced(answers, labels) if config.class_weights == "balanced" else None
    if problem == "multi":
        return lambda scores, held: multi_label(scores, held, weights=None if weights is None else weights.to(scores.device))
    return lambda scores, own: single_label(scores, own, weights=None if weights is None else weights.to(scores.device), smoothing=config.label_smoothing)


def lasting(name: str | Path) -> str:
    """A path that holds wherever the classifier is used from; a bundled name stays one."""
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)
