"""Nested values with tensors in them, in one safetensors file that holds no code and cannot be damaged unnoticed.

    value = {"step": 3, "parameters": {"w": Tensor}, "optimizers": [...]}      dicts, lists, tuples, tensors, numbers, texts, None
    file  = 8 bytes: n | n bytes: JSON header | the tensors' bytes             https://huggingface.co/docs/safetensors

Tensors are named by their place ("optimizers/0/state/3/exp_avg"), so whatever reads safetensors shows them. All else is JSON in the file's
metadata: data, where a pickle is a program. A CRC-32 of header and tensors tells a file that was cut short, or in which a bit has flipped, from
a whole one. Tensors go to the file and come back one at a time, past no second copy of them all.
Proved in tests/train/test_state_file.py. Left out: several files for one value, reading parts of a tensor."""

import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minift.errors import InputError
from minift.files import new_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
          "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}    # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FORMAT, NO_SUM = "minift state 1", "00000000"
PIECE = 2**24
"""Bytes that are read at a time of a tensor that nobody wants."""


def write(path: Path, value: dict) -> None:
    """Replace the file at `path` by one that holds `value`; whatever fails, what was there before stays."""
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_described(value, "", tensors))
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)          # stable; the widest first, so that each begins at a multiple of its width
    header: dict[str, Any] = {"__metadata__": {"crc32": NO_SUM, "format": FORMAT, "value": described}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_file(path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            found = zlib.crc32(text)
            for name in order:
                raw = _bytes(tensors[name].detach().cpu().contiguous())
                file.write(raw)
                found = zlib.crc32(raw, found)
            file.seek(8 + text.index(NO_SUM.encode()))                         # the first one: it stands in front of all else
            file.write(b"%08x" % found)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}): is the disk full? What was there before is kept") from error


def read(path: Path, parts: tuple[str, ...] | None = None) -> dict:
    """What `write` was given. parts: the value's keys whose tensors are wanted; others become None. Raises FileNotFoundError, and InputError
    for a file that is cut short, damaged, or something else."""
    try:
        with open(path, "rb") as file:
            text, header, metadata = _header(file, path.stat().st_size)
            found = zlib.crc32(text.replace(metadata["crc32"].encode(), NO_SUM.encode(), 1))
            tensors: dict[str, Tensor | None] = {}
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                start, end = entry["data_offsets"]
                if parts is None or name.split("/")[0] in parts:
                    tensors[name] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
                    raw = _bytes(tensors[name])
                    if len(raw) != end - start or file.readinto(raw) != len(raw):
                        raise ValueError(f"{name} is not whole")
                    found = zlib.crc32(raw, found)
                else:
                    tensors[name] = None
                    for place in range(start, end, PIECE):
                        found = zlib.crc32(file.read(min(PIECE, end - place)), found)
            if metadata["crc32"] != "%08x" % found:
                raise ValueError("its checksum is of other content")
            return _built(json.loads(metadata["value"]), tensors)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:                                                 # damage can make any value any other
        raise _unreadable(path, error) from None


def head(path: Path) -> dict:
    """`read` without its tensors, and without their checksum: the header only."""
    try:
        with open(path, "rb") as file:
            _, header, metadata = _header(file, path.stat().st_size)
        return _built(json.loads(metadata["value"]), dict.fromkeys(header))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path} is cut short, damaged, or no checkpoint ({text})")


def _header(file: BinaryIO, size: int) -> tuple[bytes, dict[str, dict], dict[str, str]]:
    """(the header's bytes, its tensors, its metadata) if the sizes in it are those of the file."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise ValueError("it does not begin as one")
    text = file.read(length)
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    if metadata.get("format") != FORMAT:
        raise ValueError("it holds something else")
    if size != 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0):
        raise ValueError(f"it has {size:,} bytes, and its header says otherwise")
    return text, header, metadata


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _described(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with its tensors taken out; lists stand for themselves, all else that holds values for its kind."""
    if isinstance(value, Tensor):
        if value.dtype not in NAMES:
            raise TypeError(f"{place} is of {value.dtype}: a checkpoint holds {', '.join(NAMES.values())}")
        tensors[place] = value
        return {"tensor": place}
    inside = lambda key, one: _described(one, f"{place}/{key}" if place else str(key), tensors)
    if isinstance(value, dict):
        return {"dict": [[key, inside(key, one)] for key, one in value.items()]}              # pairs: keys may be numbers
    if isinstance(value, (list, tuple)):
        found = [inside(number, one) for number, one in enumerate(value)]
        return {"tuple": found} if isinstance(value, tuple) else found
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}: a checkpoint holds tensors, numbers and texts, and lists and dicts of them")


def _built(described: Any, tensors: dict[str, Tensor | None]) -> Any:
    if isinstance(described, list):
        return [_built(one, tensors) for one in described]
    if not isinstance(described, dict):
        return described
    [(kind, inside)] = described.items()
    if kind == "dict":
        return {key: _built(one, tensors) for key, one in inside}
    return tensors[inside] if kind == "tensor" else tuple(_built(one, tensors) for one in inside)
