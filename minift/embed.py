"""Texts to vectors: tokens, a transformer, one vector for each text, as the model's folder says (models/pooling.py).

    texts -> token ids, cut to max_length -> rows of about `tokens` tokens, texts end to end, no pads -> (N, C) float32

Texts are sorted by length, so that those of one length lie side by side, and come back in their own order. Any model can embed: an encoder with its
folder's pooling (mean, if it says nothing), a decoder with mean, last or weighted pooling, looking back or both ways. Nothing depends on which texts are embedded together.
Proved in tests/test_embed.py, equal to sentence-transformers in tests/parity/test_sentence_transformers.py.
Left out: several GPUs, vectors in 8 bits."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minift.errors import InputError
from minift.models.pooling import Pooling, pool, shortened
from minift.models.ragged import Ragged, lay_out
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer

TOKENS = 4096
"""In a row that runs through the model at once."""


def embed(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], *, prompt: str | None = None, pooling: Pooling | None = None,
    dim: int | None = None, tokens: int = TOKENS,
) -> Tensor:
    """(N, C) float32, on the CPU, in the order of `texts`.

    prompt: the name of one of the folder's prompts, or a text to be put before each; None: the folder's default. pooling: in place of the
    model's own. dim: the first so many numbers only, made length 1 again if the pooling normalises. Raises InputError for an empty text."""
    own = pooling or pooling_of(model)
    ids = token_ids(model, tokenizer, texts, own, prompt)
    if dim is not None and not 1 <= dim <= model.config.hidden_size:
        raise InputError(f"dim is {dim}: these vectors have {model.config.hidden_size} numbers")
    found = torch.empty(len(texts), dim or model.config.hidden_size)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for row, ragged, places in rows(ids, tokens):
                found[places] = shortened(pooled(model, row, ragged, own), dim, own.normalize).float().cpu()
    finally:
        model.train(was_training)
    return found


def pooling_of(model: Transformer) -> Pooling:
    """What the model's folder says, else the mean of an encoder's tokens and a decoder's last token, normalised."""
    return model.pooling or Pooling("last" if model.config.causal else "mean")


def pooled(model: Transformer, row: Tensor, ragged: Ragged, pooling: Pooling, token_types: Tensor | None = None) -> Tensor:
    """One row of texts (1, N) -> their vectors (B, C), not normalised, with the graph. token_types (1, N): which text of a pair a token is of."""
    device = model.embed.weight.device
    given = {"token_ids": row.to(device)} | ({} if token_types is None else {"token_types": token_types.to(device)})
    both = {"bidirectional": True} if pooling.bidirectional and model.config.causal else {}
    if model.virtual_count() and model.virtual().embeds is not None:                  # virtual tokens stand before each text: one length at a time
        runs = zip(*(ragged.batches(tokens[0]) for tokens in given.values()))         # (texts, length) of each
        return pool(ragged.row(model.hidden(**dict(zip(given, run)), **both) for run in runs), ragged, pooling.mode)
    return pool(model.hidden(**given, ragged=ragged, **both)[0], ragged, pooling.mode)


def token_ids(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], pooling: Pooling, prompt: str | None = None) -> list[list[int]]:
    """Each text's ids, its prompt before it, cut at max_length with the end token kept."""
    if isinstance(texts, str):
        raise InputError("texts is a single string: pass a list of texts, such as [text]")
    if model.config.decoder_layers:
        raise InputError("the vectors of an encoder-decoder are made by its encoder: pass model.encoder")
    before = prompt_text(pooling, prompt)
    limit = min(pooling.max_length or 10**9, model.config.max_positions if model.config.position == "learned" else 10**9)
    limit -= model.virtual_count()
    ids = [tokenizer.encode(before + text) for text in texts]
    for number, (text, own) in enumerate(zip(texts, ids)):
        if not text.strip() or not own:
            raise InputError(f"text {number} is empty: there is nothing to embed, leave it out")
        if len(own) > limit:
            ids[number] = [*own[: limit - 1], own[-1]] if tokenizer.adds_eos else own[:limit]
    return ids


def prompt_text(pooling: Pooling, prompt: str | None) -> str:
    """A prompt's text, by its name or as it is."""
    if prompt is None:
        return pooling.prompts.get(pooling.default_prompt, "")
    return pooling.prompts.get(prompt, prompt)


def rows(ids: Sequence[Sequence[int]], tokens: int) -> Iterator[tuple[Tensor, Ragged, Tensor]]:
    """Texts, the shortest first, in rows of at most `tokens` tokens (a longer text has one to itself): the row (1, N), how its texts lie, their numbers."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    some, size = [], 0
    for number in [*order, None]:
        more = 0 if number is None else len(ids[number])
        if some and (number is None or size + more > tokens):
            row, ragged, inside = lay_out([ids[i] for i in some])
            yield row, ragged, torch.tensor(some)[inside]
            some, size = [], 0
        some, size = [*some, number], size + more


def fingerprint(model: Transformer) -> str:
    """A name for the model as it is, adapters included, that changes with its weights and its pooling."""
    seen = hashlib.blake2b(repr((model.config, pooling_of(model))).encode(), digest_size=16)
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()
