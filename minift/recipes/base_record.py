"""Which base an adapter was trained on: full weights, or weights in 4 or 8 bits. Written beside the adapter, compared when it is used.

    base.json    {"quantize": "nf4", "block_size": 64, "double_quant": true, "rounded_by": "nearest"}        or {"quantize": null}

The same adapter on another base is another model, and nothing of it looks wrong: W and dequantize(quantize(W)) have one shape. So a base
that is not the recorded one is an error, unless --quantize says on purpose what it is to be. LoftQ's A and B hold what rounding lost, and
mean nothing beside weights that lost something else: its adapter is refused on any other base. With more than one alternation not even the
scheme tells which base it is; then "codes", a hash of them, does. Hugging Face peft reads adapter_config.json and ignores this file.
Left out: which checkpoint it was (adapter_config.json names it). An adapter without the file is loaded as it is.
Proved in tests/recipes/test_base_record.py."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from torch import nn

from minift.errors import InputError
from minift.files import write_text
from minift.peft.loftq import LoftQ
from minift.quant import QuantizedLinear
from minift.quant.blocks import FourBit
from minift.quant.int4 import Int4
from minift.quant.nested import Nested

FILE = "base.json"
Asked = Literal["nf4", "fp4", "int8", "int4", "none"]
"""--quantize of the verbs that use an adapter; "none": full weights, on purpose."""


def describe(model: nn.Module) -> dict:
    """The scheme of the model's linears, as base.json has it."""
    q = next((module.q for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if q is None:
        return {"quantize": None}
    found = {"quantize": q.scheme}
    if isinstance(q, FourBit):
        found |= {"block_size": q.block_size, "double_quant": isinstance(q.absmax, Nested)}
    return found | ({"block_size": q.group_size} if isinstance(q, Int4) else {})


def write(folder: Path, model: nn.Module, method: object) -> None:
    """base.json for the adapter that `method` (its config) made on `model`."""
    record = describe(model)
    if record["quantize"]:
        record["rounded_by"] = "loftq" if isinstance(method, LoftQ) else "nearest"
    if isinstance(method, LoftQ) and method.iterations > 1:
        record["codes"] = codes(model)
    put(folder, record)


def put(folder: Path, record: dict) -> None:
    write_text(folder / FILE, json.dumps(record, indent=2) + "\n")


def codes(model: nn.Module) -> str:
    """A hash of all codes, whatever the dtype and device of the model."""
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            digest.update(module.q.packed.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read(folder: Path) -> dict | None:
    """The record beside an adapter; None if there is none."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{folder / FILE} is not valid JSON: {error}") from None
    if not isinstance(record, dict) or "quantize" not in record:
        raise InputError(f'{folder / FILE} must hold a JSON object with "quantize", the scheme of the adapter\'s base or null')
    return record


def compare(folder: Path, model: nn.Module, asked: Asked | None, can_say_none: bool = True) -> None:
    """Raise InputError if `model` is not the kind of base that the adapter in `folder` was trained on. asked: --quantize, if it was given."""
    record = read(folder)
    if record is None:
        return
    found, loftq = describe(model), record.get("rounded_by") == "loftq"
    same = all(record.get(key) == found.get(key) for key in ("quantize", "block_size", "double_quant"))
    if same and ("codes" not in record or record["codes"] == codes(model)):
        return
    if not loftq and asked is not None and (asked == "none" or record["quantize"] is None):
        return                                                               # another base, on purpose
    here = name(found) if not same else f"{name(found)} of other codes"
    trained = name(record) + (", rounded by LoftQ" if loftq else "")
    text = f"the adapter {folder} was trained on {trained}, and this base is {here}: {way_out(folder, record)}"
    if record["quantize"] and not loftq and can_say_none:
        text += "; to put it on full weights on purpose, pass --quantize none"
    raise InputError(text)


def name(record: dict) -> str:
    """In words."""
    if record["quantize"] is None:
        return "full weights"
    size, scales = record.get("block_size"), record.get("double_quant")
    return f"{record['quantize']} weights" + (f" in blocks of {size}" if size else "") + (", scales in float32" if scales is False else "")


def way_out(folder: Path, record: dict) -> str:
    scheme, size = record["quantize"], record.get("block_size")
    if scheme is None:
        return "name a folder with full weights as the model, or quantize one with --quantize, on purpose"
    if "codes" in record:
        return f"its base was saved with it; name that as the model ({folder.parent / 'base'}), without --quantize"
    if size in (None, 64 if scheme in ("nf4", "fp4") else 128) and record.get("double_quant") is not False:
        return f"pass --quantize {scheme}, with the full weights as the model"
    block = f" --block-size {size}" if size else ""
    return f"round the full weights with `minift quantize --to {scheme}{block}{' --full-scales' if record.get('double_quant') is False else ''}`" \
        " and name that folder as the model"    # fmt: skip
