'''The task that recipes are shown and judged on: say what a Python function does, from its signature alone.

    # asyncio.locks, class Lock
    def locked(self):
        """                             ->   Return True if lock is acquired.

Judged on rows that training never saw:
    loss        nats per token of the true answer
    ROUGE-L     words in common with the true answer, in order (evaluate/generation.py)
    PEP 257     share of the written summaries that keep PEP 257's rules for a summary line (data/pep257.py)
Proved in tests/recipes/test_quickstart.py.'''

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from minift.data.batches import Example
from minift.data.examples import prompt_ids
from minift.data.pep257 import is_pep257
from minift.data.pydocs import Pair
from minift.data.sources import Row
from minift.evaluate.generation import rouge_l
from minift.evaluate.perplexity import perplexity
from minift.generate import generate
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """One column of a before/after table."""

    loss: float
    """Nats per token."""
    rouge_l: float
    pep257: float
    """Share, 0 to 1."""
    written: tuple[str, ...]
    """The answers themselves."""


def spread(found: Sequence[T], count: int) -> list[T]:
    """`count` of them at even distances, so that all modules are represented."""
    return [found[i * len(found) // count] for i in range(count)] if len(found) > count else list(found)


def as_row(pair: Pair) -> Row:
    return Row("prompt/completion", pair.module, prompt=pair.prompt, completion=pair.summary)


def signature(pair: Pair) -> str:
    """The prompt without the opened docstring."""
    return pair.prompt.removesuffix('"""').rstrip().removesuffix(":")


def scores(
    model: Transformer, tokenizer: Tokenizer, judged: Sequence[Row], examples: Sequence[Example], new_tokens: int = 40, one_line: bool = True
) -> Scores:
    """Loss on the true answers (`examples`), then write answers greedily and judge those; with `one_line`, what is judged is the first
    line with text in it, as in a summary."""
    texts = [text.strip() for text in generate(model, tokenizer, [prompt_ids(row, tokenizer) for row in judged], max_new_tokens=new_tokens)]
    written = [text.split("\n")[0] for text in texts] if one_line else texts
    return Scores(
        loss=perplexity(model, examples).nats_per_token,
        rouge_l=fmean(rouge_l(text, row.answer) for text, row in zip(written, judged)),
        pep257=fmean(is_pep257(text) for text in written),
        written=tuple(written),
    )
