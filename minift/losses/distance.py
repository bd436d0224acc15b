"""How far apart embeddings are: each distance is a function of two sets of rows, (..., P, C) and (..., M, C) -> (..., P, M).

    cosine       1 - u . v / (|u| |v|)             0 to 2; lengths do not count
    euclidean    (sum over C of (u - v)^2)^1/2     u = v: gradient 0, where that of a plain root would be nan
    manhattan    sum over C of |u - v|

Losses take one of these as an argument, or any function of this shape. rowwise() gives the B distances of B pairs in place of all B x B.
All are computed in float32 at least, under autocast too: 0.995 and 0.997 are one number in bfloat16.
Proved in tests/losses/test_metric.py. Left out: the squared euclidean distance, which is 2 times the cosine one on unit vectors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""(..., P, C), (..., M, C) -> (..., P, M)"""


def cosine(u: Tensor, v: Tensor) -> Tensor:
    return 1 - cosines(u, v)


def euclidean(u: Tensor, v: Tensor) -> Tensor:
    """Of the differences themselves: |u|^2 - 2 u . v + |v|^2 is faster, and loses half the digits where rows are close."""
    return torch.cdist(wide(u), wide(v), compute_mode="donot_use_mm_for_euclid_dist")


def manhattan(u: Tensor, v: Tensor) -> Tensor:
    return torch.cdist(wide(u), wide(v), p=1.0)


def cosines(u: Tensor, v: Tensor) -> Tensor:
    """(..., P, C), (..., M, C) -> (..., P, M). A similarity, 1 where the cosine distance is 0."""
    with torch.autocast(u.device.type, enabled=False):
        return unit(u) @ unit(v).mT


def rowwise(distance: Distance, u: Tensor, v: Tensor) -> Tensor:
    """(B, C), (B, C) -> (B,): of row i to row i."""
    return distance(u[:, None], v[:, None])[:, 0, 0]                    # B sets of one row each


def unit(x: Tensor) -> Tensor:
    """(..., C) -> (..., C) of length 1."""
    return F.normalize(wide(x), dim=-1)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def alike(**columns: Tensor) -> None:
    """Raises ValueError unless all columns are (B, C), of one B and one C."""
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"embeddings of different shapes: {found}; wanted (rows, width), row i of each belonging together")


def one_each(what: str, values: Tensor, rows: int) -> None:
    """Raises ValueError unless values is (rows,)."""
    if values.shape != (rows,):
        raise ValueError(f"{what} are {tuple(values.shape)}: wanted one for each of the {rows} rows, ({rows},)")
