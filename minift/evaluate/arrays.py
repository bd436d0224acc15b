"""What the metrics take: lists, numpy arrays or tensors; what they compute on: float64 and int64, checked once, here.

A metric of NaNs is a number that looks like a result, so NaN and infinity are refused, with the row they are in.
Proved in tests/evaluate/test_arrays.py."""

import numpy as np
import torch

from minift.errors import InputError


def numbers(values, what: str, dims: int) -> np.ndarray:
    """`values` as float64, `dims` axes, at least one row. Raises InputError, in which `what` is the values' name."""
    try:
        found = _array(values).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: no array of numbers ({error}): give {dims} axes, every row as long as the first") from None
    if found.ndim != dims:
        raise InputError(f"{what}: shape {found.shape}, but {dims} axes are wanted")
    if not found.size:
        raise InputError(f"{what}: shape {found.shape}, there is nothing to score: give at least one row")
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0])
        raise InputError(f"{what}: row {row} has NaN or infinity: mend the model or the data, a score of it would mean nothing")
    return found


def whole_numbers(values, what: str, below: int | None = None) -> np.ndarray:
    """`values` (N,) as int64, from 0 to `below` - 1. Raises InputError."""
    found = numbers(values, what, 1)
    if (found != np.floor(found)).any() or found.min() < 0:
        row = int(np.argwhere((found != np.floor(found)) | (found < 0))[0][0])
        raise InputError(f"{what}: row {row} is {found[row]:g}, but whole numbers from 0 are wanted")
    if below is not None and found.max() >= below:
        row = int(found.argmax())
        raise InputError(f"{what}: row {row} is {int(found[row])}, but there are {below} classes, 0 to {below - 1}")
    return found.astype(np.int64)


def same_length(**arrays: np.ndarray) -> None:
    """Raises InputError unless all have as many rows."""
    if len({len(array) for array in arrays.values()}) > 1:
        raise InputError("as many rows are wanted of each, found " + ", ".join(f"{len(array)} {name}" for name, array in arrays.items()))


def directions(values, what: str) -> np.ndarray:
    """`values` (N, C) with every row divided by its length. Raises InputError for a row of zeros, which points nowhere."""
    found = numbers(values, what, 2)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)                    # (N, 1)
    if not lengths.all():
        raise InputError(f"{what}: row {int(lengths.argmin())} is all zeros: it has no direction, so no cosine")
    return found / lengths


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()                         # double: numpy has no bfloat16
    return np.asarray(values)
