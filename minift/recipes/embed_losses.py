"""Which loss learns from which rows of texts, and what it is told. Proved in tests/recipes/test_embed.py."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from minift.losses import contrastive, metric, mining, similarity
from minift.losses.distance import cosine as cosine_distance
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
    "batch-hard": ("labelled", ("margin",)),
    "batch-hard-soft": ("labelled", ()),
    "batch-semi-hard": ("labelled", ("margin",)),
    "batch-all": ("labelled", ("margin",)),
    "simcse": ("texts", ("temperature", "learn_temperature")),
}
"""--loss -> the rows it learns from, the options it takes. The first of each kind of rows is its default."""


def objective(config, batch, temperature: float | Tensor) -> Callable[..., tuple[Tensor, int]]:
    """The loss of a batch's columns, each of them embedded: (B, C), ... -> (sum, count)."""
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
        "batch-hard": lambda x: mining.batch_hard(x, batch.values, **near),
        "batch-hard-soft": lambda x: mining.batch_hard_soft_margin(x, batch.values, distance=cosine_distance),
        "batch-semi-hard": lambda x: mining.batch_semi_hard(x, batch.values, **near),
        "batch-all": lambda x: mining.batch_all(x, batch.values, **near),
        "simcse": lambda first, second: contrastive.simcse(first, second, temperature=temperature, ids=ids[0]),
    }[config.loss]
    return (lambda *columns: matryoshka(one, columns, dims=config.dims)) if config.dims else one
