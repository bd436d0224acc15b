"""Show what the model will see of a data file: its tokens with the loss mask, the lengths, what is cut, what repeats.

A file of preferences is known by its fields: of a pair both answers are shown, of a labelled answer whether it is desirable.

Proved in tests/data/test_show.py."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from minift import folder as folders
from minift import tokenizer as tokenizers
from minift.data.examples import Learn, build
from minift.data.preference_trees import build_labelled, build_pairs
from minift.data.preferences import Job, job_of, read_labelled, read_pairs
from minift.data.show import show, show_trees
from minift.data.sources import read
from minift.errors import InputError
from minift.recipes.loading import read_by, use_template
from minift.tokenizer import Tokenizer


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
    job = job_of(config.files, config.columns)
    if job:
        preferences(config, tokenizer, job)
        return
    rows = read(config.files, columns=config.columns)
    start = read_by(folders.described(config.model), tokenizer, rows, config.template)
    examples, report = build(rows, tokenizer, learn=config.learn, max_length=config.max_length, start=start)
    show(examples, report, tokenizer, rows=config.rows)


def preferences(config: Config, tokenizer: Tokenizer, job: Job) -> None:
    """Pairs with both answers, labelled answers with their label; in either the answers count."""
    if config.learn != Config.learn:
        raise InputError(f"--learn {config.learn} is for fine-tuning; of preferences the answers count, so leave it out")
    if job == "pairs":
        pairs, found = read_pairs(config.files, columns=config.columns)
        use_template(tokenizer, [pair.chosen for pair in pairs], config.template)
        built, report = build_pairs(pairs, tokenizer, max_length=config.max_length)
        trees = [(tree, ("chosen", "rejected") if margin is None else (f"chosen (margin {margin:g})", "rejected")) for tree, margin in built]
    else:
        rows, found = read_labelled(config.files, columns=config.columns)
        use_template(tokenizer, [labelled.row for labelled in rows], config.template)
        built, report = build_labelled(rows, tokenizer, max_length=config.max_length)
        trees = [(tree, ("desirable" if desirable else "undesirable",)) for tree, desirable in built]
    show_trees(trees, report, tokenizer, rows=config.rows)
    print("\n".join(found.lines()))
