"""Models as functions from texts to vectors: the one that learns, as it is now, and the teacher whose vectors --loss distill learns to make.

    t (C_t) -> t V (C)        V: (C_t, C) the C directions that hold most of the training texts' vectors, by their squares

A wider teacher is read along those directions: of all maps to C numbers they keep the dot products best (Eckart and Young 1936), as in
sentence-transformers' example of distillation, whose PCA takes the mean off first. A narrower one has zeros behind it: its cosines stay as they
are. So the student needs no linear between, and its own cosines become the teacher's. The teacher embeds each text once, before training.
Proved in tests/recipes/test_embed_teacher.py. Left out: a linear that learns between the two, distances of pairs in place of vectors."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minift import folder as folders
from minift.embed import embed, pooling_of
from minift.errors import InputError
from minift.models.pooling import Pooling
from minift.models.transformer import Transformer
from minift.recipes.embed_rows import Rows
from minift.train.precision import autocast

Encode = Callable[..., Tensor]
"""texts, "query" or "document" [, dim] -> (N, C)."""


def prompt_of(pooling: Pooling, side: str) -> str | None:
    """The name of this side's prompt; None, which is the default one's, where the model has none for it."""
    return side if side in pooling.prompts else None


def encoder_of(model: Transformer, tokenizer, pooling: Pooling, config) -> Encode:
    """By the model as it is when it is asked, in training's arithmetic."""

    def encode(texts: Sequence[str], side: str, dim: int | None = None) -> Tensor:
        with autocast(config.precision, model.embed.weight.device.type):
            return embed(model, tokenizer, texts, prompt=prompt_of(pooling, side), pooling=pooling, dim=dim, tokens=config.batch_tokens)

    return encode


def teach(config, pooling: Pooling, width: int, train: Rows, valid: Rows) -> str:
    """Give both rows the teacher's vectors of all their texts, `width` numbers each, of length 1 where the student's are; what was done, for people."""
    model, tokenizer = folders.embedder(config.teacher, getattr(torch, config.dtype), config.device)
    teacher = encoder_of(model, tokenizer, pooling_of(model), config)
    own = [{side: teacher(list(ids), side) for side, ids in rows.ids.items() if ids} for rows in (train, valid)]
    every = torch.cat(list(own[0].values()))                                                     # (texts to train on, C_t)
    directions, kept = leading_directions(every, width)
    for rows, vectors in zip((train, valid), own):
        fitted = {side: in_width(found, directions, width) for side, found in vectors.items()}
        rows.taught = {side: dict(zip(rows.ids[side], F.normalize(found, dim=-1) if pooling.normalize else found)) for side, found in fitted.items()}
    narrower = f", of which {width} hold {100 * kept:.1f} %" if width < every.shape[1] else ""
    return f"the teacher, {config.teacher}: {every.shape[1]} numbers a text{narrower}"


def leading_directions(vectors: Tensor, width: int) -> tuple[Tensor | None, float]:
    """vectors (N, C_t) -> V (C_t, width) with orthonormal columns, and the share of the squares along them; None and 1 where width is enough."""
    if width >= vectors.shape[1]:
        return None, 1.0
    squares, directions = torch.linalg.eigh(vectors.double().T @ vectors.double())               # rising
    return directions[:, -width:].flip(1).float(), float(squares[-width:].sum() / squares.sum())


def in_width(vectors: Tensor, directions: Tensor | None, width: int) -> Tensor:
    """(N, C_t) -> (N, width)."""
    return F.pad(vectors, (0, width - vectors.shape[1])) if directions is None else vectors @ directions


def refuse_teacher(config) -> None:
    if (config.teacher is None) == (config.loss == "distill"):
        wanted = "--loss distill wants --teacher, the folder of the model to learn from" if config.teacher is None else f"--loss {config.loss} has no teacher: leave --teacher out, or take --loss distill"
        raise InputError(wanted)
