"""The rows of the embedding: finding untrained ones, and making room for new tokens.

A token whose row was never trained (all zeros in many published checkpoints) gives zero gradients through a norm and wild logits
through the head; a random new row can cost the loss of every sentence, since its logit competes with the trained ones. The mean of
the trained rows is the harmless start (Hewitt 2021, "Initializing new word embeddings for pretrained language models"):
its logit is the mean logit, well below the likely tokens'. Trap 43. Proved in tests/models/test_vocabulary.py."""

import dataclasses

import torch
from torch import nn

from minift.errors import InputError
from minift.models.transformer import Transformer


def zero_rows(model: Transformer) -> list[int]:
    """The token ids whose row of the embedding, or of an untied head, is all zeros: tokens that were never trained."""
    zero = (model.embed.weight == 0).all(dim=1)                            # (V,)
    if model.head.weight is not model.embed.weight:
        zero = zero | (model.head.weight == 0).all(dim=1)
    return zero.nonzero().flatten().tolist()


@torch.no_grad()
def resize_embeddings(model: Transformer, vocab_size: int) -> None:
    """Make room for `vocab_size` tokens, in place: the new rows of the embedding and of the head are the mean of the trained ones.

    The config follows. Raises InputError if the vocabulary would shrink: rows in use would be lost."""
    old = model.config.vocab_size
    if vocab_size < old:
        raise InputError(f"the embedding has {old} rows, {vocab_size} are wanted: a vocabulary can only grow")
    tied = model.head.weight is model.embed.weight
    model.embed.weight = _grown(model.embed.weight, vocab_size)
    model.head.weight = model.embed.weight if tied else _grown(model.head.weight, vocab_size)
    model.embed.num_embeddings = model.head.out_features = vocab_size
    model.config = dataclasses.replace(model.config, vocab_size=vocab_size)


def _grown(weight: nn.Parameter, rows: int) -> nn.Parameter:
    """weight (V, C) -> (rows, C), the new rows at the float32 mean of those that are not all zeros."""
    trained = weight[(weight != 0).any(dim=1)]
    mean = trained.float().mean(dim=0) if len(trained) else weight.new_zeros(weight.shape[1])
    grown = torch.cat([weight, mean.to(weight.dtype).expand(rows - len(weight), -1)])
    return nn.Parameter(grown, requires_grad=weight.requires_grad)
