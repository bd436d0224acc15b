"""The files of a checkpoint folder: what their headers say, and single tensors read from them.

    held = stored(folder)                                    # name -> Stored(file, name, shape, dtype), nothing of the weights is read
    read(held["norm.weight"], False, torch.bfloat16, "cpu")  # that tensor, in another dtype

One model.safetensors, or shards and their index. A tensor is copied out of the memory-mapped file in slices of at most 32 MB: one that stayed
in the mapping would change, or kill the process, when the file does. Pickled weights are never opened: a pickle can run any program.
Proved in tests/models/test_folder.py."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minift.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SLICE_BYTES = 32 * 2**20
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The stored dtypes that weights may have -> bytes per number."""


class Stored(NamedTuple):
    """One tensor of a file, as its header describes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's weight files by name, from the headers alone."""
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise InputError(
                f"{folder} holds pickled weights only ({', '.join(pickled[:3])}): opening a pickle can run any program, so minift does "
                "not. If you trust them, convert: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) "
                "with transformers, which writes model.safetensors"
            )
        raise InputError(f"{folder} has a config.json but no weights: wanted {WEIGHTS} or {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
        raise InputError(f"{folder / INDEX} has no weight_map from tensor names to files of this folder: download it again")
    tensors = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).exists():
            raise InputError(f"{folder / file} is missing, but {INDEX} names it: download it again")
        for name, tensor in _header(folder / file).items():
            if weight_map.get(name) != file:
                raise InputError(f"{folder / file} holds {name}, but {INDEX} puts it in {weight_map.get(name)}: files of two checkpoints?")
            tensors[name] = tensor
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise InputError(f"{folder / weight_map[absent[0]]} lacks {some(absent)}, which {INDEX} puts there: download it again")
    return tensors


def _header(file: Path) -> dict[str, Stored]:
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                tensors[name] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is cut short or damaged ({error}): download or copy it again") from None
    return tensors


def read_json(path: Path) -> dict:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: wanted a JSON object")
    return content


def some(names: list[str], most: int = 6) -> str:
    """A list for an error text, in the order of the blocks, cut after `most`."""
    names = sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)])
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def slices(tensor: Stored, multiple: int = 1, most: int = 32 * 2**20) -> Iterator[tuple[int, Tensor]]:
    """The tensor's rows in pieces of at most 32 MB, or `most` bytes, and a multiple of rows: (first row, values).

    The file is opened for each piece and closed after it, because the pages of a mapping count as this process's memory
    as long as the mapping lives."""
    rows = tensor.shape[0] if tensor.shape else 1
    width = FLOATS.get(tensor.dtype, 8)
    for size in tensor.shape[1:]:
        width *= size
    step = max(1, min(most, SLICE_BYTES) // max(1, width * multiple)) * multiple
    for first in range(0, rows, step):
        with safe_open(tensor.file, framework="pt") as opened:
            yield first, opened.get_slice(tensor.name)[first : first + step]


def read(source: Stored, transposed: bool, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The tensor, transposed if asked, in `dtype` on `device`."""
    shape = source.shape[::-1] if transposed else source.shape
    target = torch.empty(shape, dtype=dtype, device=device)
    rows = target.T if transposed else target                              # a view with the file's layout
    for first, values in slices(source):
        rows[first : first + len(values)] = values                         # casts, transposes and moves
    return target


def whole(source: Stored) -> Tensor:
    """A small tensor, a scalar perhaps, as it is stored."""
    with safe_open(source.file, framework="pt") as opened:
        return opened.get_tensor(source.name).clone()                      # out of the mapping


def same(one: Stored, other: Stored) -> bool:
    """Do two tensors hold the same numbers in the same dtype?"""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(slices(one), slices(other)))
