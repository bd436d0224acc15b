"""Scores of a fine-tuned classifier: the head is part of the model, and reads one place of each text.

    encoder    the first token's stream, through the pooler (models/encoder.py)         decoder    the last token's (models/scorer.py)

Texts lie end to end without pads, those of one length side by side, so a score does not depend on batch mates.
Proved in tests/classify/test_scores.py, equal to transformers in tests/parity/test_classifiers.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minift.data.text_pairs import joined
from minift.embed import pooled, rows
from minift.models.encoder import Encoder
from minift.models.pooling import Pooling
from minift.models.ragged import lay_out
from minift.models.scorer import Scorer
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer

Read = tuple[list[int], list[int]]
"""A row's token ids and types."""


def head_scores(model: Scorer | Encoder, some: Sequence[Read]) -> Tensor:
    """(B, K) float32 of B rows, in their order, with the graph."""
    row, ragged, order = lay_out([ids for ids, _ in some])
    types = torch.tensor([[kind for i in order.tolist() for kind in some[i][1]]])
    place = Pooling("last" if model.config.causal else "cls")
    found = model.scores(pooled(model, row, ragged, place, types if model.config.token_types else None))
    return found[order.argsort().to(found.device)]


@torch.no_grad()
def all_scores(model: Scorer | Encoder, every: Sequence[Read], tokens: int = 4096) -> Tensor:
    """(N, K) float32 on the CPU of N rows, in eval mode."""
    was_training = model.training
    model.eval()
    found = torch.empty(len(every), model.config.labels)
    try:
        for _, _, places in rows([ids for ids, _ in every], tokens):
            found[places] = head_scores(model, [every[i] for i in places.tolist()]).float().cpu()
    finally:
        model.train(was_training)
    return found


def read(model: Transformer, tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], max_length: int) -> list[Read]:
    """Each row's tokens, at most max_length and no more than the model has positions beside its virtual tokens."""
    limit = min(max_length, model.config.max_positions - model.virtual_count() if model.config.position == "learned" else max_length)
    return [joined(tokenizer, model.config, row, limit) for row in texts]
