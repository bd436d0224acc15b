"""Forgetting: how much worse a model has become at the text it was pre-trained on, while it learned something else.

    forgetting = perplexity after / perplexity before         1: nothing forgotten; both over the very same token windows

The text must be held out from pre-training too: otherwise what is lost is memory of single sentences, not command of the language.
Windows are cut once, from the base model's tokens, and scored as they are: they overlap in nothing, each begins at the tokenizer's start
token, and every token behind that one is a target. So before and after differ in the model and in nothing else.
Proved in tests/evaluate/test_forgetting.py. Left out: benchmarks of skills, which a model of a few million parameters has not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minift.data.batches import Example
from minift.errors import InputError
from minift.evaluate.perplexity import Perplexity, perplexity
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Forgetting:
    """The same windows, before and after."""

    before: Perplexity
    after: Perplexity

    @property
    def ratio(self) -> float:
        """Perplexity after / before: 1.05 is 5 % more surprise per token; below 1 the model has become better."""
        return math.exp(self.after.nats_per_token - self.before.nats_per_token)


def text_windows(tokenizer: Tokenizer, documents: Sequence[str], length: int = 256, count: int = 32) -> list[Example]:
    """`count` windows of exactly `length` tokens, at even distances over all the documents; a document's rest that is shorter is left out.

    Raises InputError if the documents have no whole window, or if length leaves nothing to predict."""
    start_id = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    start = [] if start_id is None else [start_id]
    room = length - len(start)                                                # text tokens of a window
    if room < 1 or length < 2:
        raise InputError(f"windows of {length} tokens have nothing to predict: give at least 2")
    found = []
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False)
        found += [start + ids[i : i + room] for i in range(0, len(ids) - room + 1, room)]
    if not found:
        raise InputError(f"none of the {len(documents)} texts has {room} tokens, which a window needs: give longer texts or shorter windows")
    chosen = [found[i * len(found) // count] for i in range(count)] if len(found) > count else found
    return [Example(ids, [t > 0 for t in range(length)]) for ids in chosen]


def forgetting(model: Transformer, windows: Sequence[Example], before: Perplexity, batch_tokens: int = 4096) -> Forgetting:
    """`before`: what perplexity() said of the same windows and the model as it was. Raises InputError if it scored other ones."""
    after = perplexity(model, windows, batch_tokens=batch_tokens)
    if after.tokens != before.tokens:
        raise InputError(f"before, {before.tokens} tokens were scored, now {after.tokens}: perplexities of different windows say nothing together")
    return Forgetting(before, after)
