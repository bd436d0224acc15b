"""Which loss learns from which rows of texts, and what it is told. Proved in tests/recipes/test_embed.py, test_embed_teacher.py."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minift.losses import contrastive, metric, mining, similarity
from minift.losses.distance import cosine as cosine_distance
from minift.losses.embedding_distillation import to_teacher
from minift.losses.matryoshka import matryoshka

LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "infonce": ("pairs", ("temperature", "learn_temperature")),
    "symmetric": ("pairs", ("temperature", "learn_temperature")),
    "triplet": ("pairs", ("margin",)),
    "cosent": ("scored", ("temperature",)),
    "angle": ("scored", ("temperature",)),
    "cosine": ("scored", ()),
    "contrastive": ("scored", ("margin",)),
    "online": ("scored", ("margin",)),
    "nli": ("nli", ()),
    "batch-hard": ("labelled", ("margin",)),
    "batch-hard-soft": ("labelled", ()),
    "batch-semi-hard": ("labelled", ("margin",)),
    "batch-all": ("labelled", ("margin",)),
    "simcse": ("texts", ("temperature", "learn_temperature")),
    "distill": ("any", ()),
}
"""--loss -> the rows it learns from, the options it takes. The first of each kind of rows is its default."""
ROW_BY_ROW = ("cosine", "contrastive", "nli", "distill")
"""No row of these looks at another, so --mini-batch would be a detour."""


def objective(config, batch, temperature: float | Tensor, relation: nn.Linear | None = None) -> Callable[..., tuple[Tensor, int]]:
    """The loss of a batch's columns, each of them embedded: (B, C), ... -> (sum, count). relation: nli's classifier, (classes, 3 C)."""
    ids, near = batch.ids, dict(margin=config.margin, distance=cosine_distance)
    one = {
        "infonce": partial(contrastive.info_nce, temperature=temperature, ids=ids),
        "symmetric": partial(contrastive.info_nce_symmetric, temperature=temperature, ids=ids),
        "triplet": partial(metric.triplet, **near),
        "cosent": lambda u, v: similarity.cosent(u, v, batch.values, temperature=temperature),
        "angle": lambda u, v: similarity.angle(u, v, batch.values, temperature=temperature),
        "cosine": lambda u, v: similarity.cosine_mse(u, v, batch.values),
        "contrastive": lambda u, v: metric.contrastive(u, v, batch.values, **near),
        "online": lambda u, v: metric.online_contrastive(u, v, batch.values, **near),
        "nli": lambda u, v: similarity.softmax_nli(u, v, batch.values, part_of(relation, u.shape[1]), relation.bias),
        "batch-hard": lambda x: mining.batch_hard(x, batch.values, **near),
        "batch-hard-soft": lambda x: mining.batch_hard_soft_margin(x, batch.values, distance=cosine_distance),
        "batch-semi-hard": lambda x: mining.batch_semi_hard(x, batch.values, **near),
        "batch-all": lambda x: mining.batch_all(x, batch.values, **near),
        "simcse": lambda first, second: contrastive.simcse(first, second, temperature=temperature, ids=ids[0]),
        "distill": follow,
    }[config.loss]
    whole = (lambda *columns: matryoshka(one, columns, dims=config.dims)) if config.dims else one
    return lambda *columns: whole(*columns, *batch.taught)


def follow(*columns: Tensor) -> tuple[Tensor, int]:
    """The student's columns, then the teacher's: each text is to lie where the teacher puts it."""
    half = len(columns) // 2
    parts = [to_teacher(student, teacher) for student, teacher in zip(columns[:half], columns[half:])]
    return sum(total for total, _ in parts), sum(count for _, count in parts)


def part_of(relation: nn.Linear, width: int) -> Tensor:
    """(classes, 3 C) -> (classes, 3 width): what a classifier of u, v and |u - v| says of their first numbers."""
    return relation.weight.unflatten(1, (3, -1))[..., :width].flatten(1)


@torch.no_grad()
def related(relation: nn.Linear, u: Tensor, v: Tensor) -> list[int]:
    """(B, C), (B, C) -> the number of the class that the classifier chooses for each pair."""
    x = similarity.u_v_difference(u, v).to(relation.weight)
    return (x @ part_of(relation, u.shape[1]).T + relation.bias).argmax(1).tolist()
