"""Matryoshka embeddings: whose first 64 numbers are an embedding too (Kusupati et al. 2022, arXiv:2205.13147).

    loss = sum over d of w_d loss(u[:d] / |u[:d]|, v[:d] / |v[:d]|, ...)            eq. 1; w_d = 1 unless given

What comes first is in every term, so what matters most moves to the front. Users then cut embeddings to what their index can hold, and search
with unit vectors: so the cuts are brought back to length 1 before the loss sees them, the whole one too.
Proved in tests/losses/test_matryoshka.py, against sentence-transformers in tests/parity/test_sentence_transformers_losses.py.
Left out: a random few of the dimensions in each step, and layers cut as well (2D)."""

from collections.abc import Callable, Sequence

from torch import Tensor

from minift.losses.distance import unit


def matryoshka(
    loss: Callable[..., tuple[Tensor, int]], columns: Sequence[Tensor], *, dims: Sequence[int], weights: Sequence[float] | None = None
) -> tuple[Tensor, int]:
    """loss(*columns) -> (sum, count) for embeddings of any width, columns (..., C) each. Returns (sum, count) of which sum / count is the weighted
    sum of the dims' means. Counts may differ from dim to dim (hard pairs, triplets above 0): the largest is returned, and may be 0."""
    weights = [1.0] * len(dims) if weights is None else weights
    width = min(column.shape[-1] for column in columns)
    if not dims or len(set(dims)) < len(dims) or not all(1 <= dim <= width for dim in dims):
        raise ValueError(f"dims are {list(dims)}: wanted at least one, each once, from 1 to the embeddings' width of {width}")
    if len(weights) != len(dims):
        raise ValueError(f"{len(weights)} weights for {len(dims)} dims: wanted one for each")
    parts = [loss(*(unit(column[..., :dim]) for column in columns)) for dim in dims]
    count = max(n for _, n in parts)
    return sum(weight * total * (count / max(n, 1)) for weight, (total, n) in zip(weights, parts)), count
