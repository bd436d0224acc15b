"""Show what the model will see of a data file: its tokens with the loss mask, the lengths, what is cut, what repeats.

Proved in tests/data/test_show.py."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from minift import folder as folders
from minift import tokenizer as tokenizers
from minift.data.examples import Learn, build
from minift.data.show import show
from minift.data.sources import read
from minift.recipes.loading import use_template


@dataclass(frozen=True)
class Config:
    """Show what the model will see of a data file: tokens, loss mask, lengths."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files or globs."""
    model: str = "base"
    """Whose tokenizer: a checkpoint folder, or the bundled "base"."""
    rows: int = 3
    """How many rows to show in full."""
    template: str | None = None
    """How messages become text; none: the tokenizer's own, else plain."""
    learn: Learn = "completion"
    """Which tokens count in the loss: completion, assistant, or all."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns prompt question completion answer."""
    max_length: int = 1024
    """Longest example in tokens."""


def run(config: Config) -> None:
    tokenizer = tokenizers.load(folders.locate(config.model))
    rows = read(config.files, columns=config.columns)
    use_template(tokenizer, rows, config.template)
    examples, report = build(rows, tokenizer, learn=config.learn, max_length=config.max_length)
    show(examples, report, tokenizer, rows=config.rows)
