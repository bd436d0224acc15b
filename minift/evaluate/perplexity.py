"""Perplexity: how surprised a model is by a text it has not seen.

    nats/token = - (sum over all targets t of log p(token_t | tokens before t)) / (number of targets)
    perplexity = exp(nats/token)           bits/byte = nats / (ln 2 x UTF-8 bytes of the scored text)

One sum and one count over the whole set, divided once: a mean of batch means would depend on how the batches were cut, and a
scored pad on how long its batch mates are (trap 44). Perplexity depends on the tokenizer, bits/byte does not: compare models
with different vocabularies by bits/byte.
A text longer than the context is read through overlapping windows, so that no token is judged with nothing before it.
Proved in tests/evaluate/test_perplexity.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minift.data.batches import Example, by_length, pad, windows
from minift.errors import InputError
from minift.losses.sft import next_token
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Perplexity:
    """The loss of a model over a set of texts."""

    nats_per_token: float
    tokens: int
    """Targets scored; pads and prompts are not among them."""
    bytes: int | None = None
    """UTF-8 bytes of the scored text, None if it is not known."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf       # exp(710) overflows

    @property
    def bits_per_byte(self) -> float | None:
        """None if the bytes are not known. End tokens cost bits and have no bytes; they are part of the text's price."""
        return self.nats_per_token * self.tokens / math.log(2) / self.bytes if self.bytes else None


@torch.no_grad()
def perplexity(
    model: Transformer, examples: Sequence[Example], *, text_bytes: int | None = None, batch_tokens: int = 4096
) -> Perplexity:
    """Loss per target token. `batch_tokens` bounds B x T of a batch (a longer example makes a batch alone): it buys speed and
    memory and cannot change the result. `text_bytes` (see scored_bytes) makes bits_per_byte known.
    Raises InputError if no example has a target."""
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        for indices in by_length(examples, batch_tokens, seed=0):
            batch = pad([examples[i] for i in indices]).to(device)
            if not batch.targets:
                continue
            logits = model(batch.token_ids) if batch.prompts is None else model(batch.prompts, batch.token_ids, batch.there)
            loss_sum, count = next_token(logits, batch.token_ids, batch.loss_mask)
            nats, tokens = nats + loss_sum.item(), tokens + int(count)                # float64 from here on
    finally:
        model.train(was_training)
    if not tokens:
        raise InputError(f"none of the {len(examples)} examples has a token that counts in the loss: nothing can be evaluated")
    return Perplexity(nats / tokens, tokens, text_bytes)


def scored_bytes(tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """UTF-8 bytes of the text that the targets of `examples` stand for. Each run of targets is decoded together with what comes
    before it, so that a blank at its start is counted; special tokens have no text."""
    total = 0
    size = lambda ids: len(tokenizer.decode(ids).encode())
    for ids, mask, _ in examples:
        edges = [i for i in range(1, len(ids)) if mask[i] != mask[i - 1]] + [len(ids)]       # mask[0] is false: runs start at 0, 2, ...
        for start, end in zip(edges[::2], edges[1::2]):
            total += size(ids[:end]) - size(ids[:start])
    return total


def text_bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, documents: Sequence[str], context: int, stride: int, *, batch_tokens: int = 4096
) -> Perplexity:
    """Loss over whole documents. Windows of `context` tokens move on by `stride`, and a token is scored in the first window it is
    in: once, with all the document before it, or at least context - stride tokens of it. A small stride is exact and slow.

    Each document starts with BOS (or EOS, for tokenizers that have no BOS and part documents by it), so its first token is scored
    too; with neither, that token and its bytes are left out. Raises InputError unless 1 <= stride < context."""
    if not 1 <= stride < context:
        raise InputError(f"stride is {stride} and context {context}: wanted 1 <= stride < context, so that no token is scored blind")
    start_id = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    examples, text_bytes = [], 0
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False)
        text_bytes += len(document.encode())
        if start_id is not None:
            ids = [start_id, *ids]
        elif ids:
            text_bytes -= len(tokenizer.decode(ids[:1]).encode())
        if len(ids) < 2:                                                                     # an empty document: nothing to predict
            continue
        for start, end, new in windows(ids, context, stride):
            examples.append(Example(ids[start:end], [place >= max(new, 1) for place in range(start, end)]))
    return perplexity(model, examples, text_bytes=text_bytes, batch_tokens=batch_tokens)
