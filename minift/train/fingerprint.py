"""A short name for training data: other tokens, another order or other batches have another one. A run that goes on compares it with its first start's.

SHA-256 of all whole numbers, truth values and texts in the first epoch's batches, in order. Numbers with a point are left out: some of them are computed
(a reference's log-probabilities, a teacher's vectors), and another number of threads may round them otherwise.
Proved in tests/train/test_fingerprint.py. Left out: data of evaluations."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minift.errors import InputError


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits. value: tensors, numbers, texts, and lists, tuples, dicts, dataclasses and objects of them."""
    digest = hashlib.sha256()
    _read(value, digest)
    return digest.hexdigest()[:32]


def compare(before: str | None, now: str) -> None:
    """before: the first start's, None of a run that was begun by an earlier version. Raises InputError if it is another."""
    if before not in (None, now):
        raise InputError("the training data are not those that this run was begun with, or are cut into other tokens: bring those back, or start again with --overwrite (a chat template that writes the day makes other tokens the next: name another with --template)")


def _read(value: Any, digest) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().numpy())
    elif isinstance(value, (str, int)) or value is None:
        digest.update(f"{value!r} ".encode())
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)} ".encode())
        if all(type(one) is int for one in value):
            digest.update(repr(value).encode())                                # at once: there may be millions
        else:
            for one in value:
                _read(one, digest)
    elif isinstance(value, Mapping):
        _read([*value.keys(), *value.values()], digest)
    elif dataclasses.is_dataclass(value):
        _read([getattr(value, field.name) for field in dataclasses.fields(value)], digest)
    elif hasattr(value, "__dict__"):
        _read(vars(value), digest)
