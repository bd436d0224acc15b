"""How a quantized weight lies in a checkpoint: as bitsandbytes writes nf4, fp4 and int8, and one small form of ours for int4.

    nf4, fp4   X.weight (ceil(N K / 2), 1) uint8      X.weight.absmax (blocks,) float32, or uint8 if it is quantized itself
               X.weight.quant_map (16,)               X.weight.nested_absmax (ceil(blocks / 256),)      X.weight.nested_quant_map (256,)
               X.weight.quant_state.bitsandbytes__nf4: JSON as bytes: quant_type, blocksize, dtype, shape, nested_offset ...
    int8       X.weight (N, K) int8                   X.SCB (N,) float32: absmax of each row            X.weight_format: 0, row by row
    int4       X.weight (N, ceil(K / 2)) uint8        X.weight.scale (N, G) float16                     X.weight.zero (N, G) uint8

N is always the output: GPT-2's matrices, which lie in full checkpoints as (K, N), are turned before they are packed. config.json tells the
scheme in quantization_config. A map in a file must be the one we compute with; every scale must be finite; nothing may be missing or left over.
Left out: 4-bit codes stored as other dtypes than uint8, the int8 tiles of old versions. docs/quantized_formats.md has every key.
Proved in tests/quant/test_folder.py and tests/parity/test_bitsandbytes_folder.py."""

import json
import math
import re
from typing import NamedTuple

import torch
from torch import Tensor

from minift.errors import InputError
from minift.models.stored import Stored, read, whole
from minift.quant.blocks import BLOCK_SIZES, FourBit
from minift.quant.int4 import Int4
from minift.quant.int8 import Int8
from minift.quant.nested import BLOCK, Nested
from minift.quant.tensor import Quantized, Scheme
from minift_kernels.codes import dynamic_map, four_bit_map

BESIDE = re.compile(r"(.+)\.(?:weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[^.]+|scale|zero)|SCB|weight_format)")
"""The names of the tensors beside a quantized X.weight; group 1 is X."""

STORED = {torch.uint8: "U8", torch.int8: "I8", torch.float16: "F16", torch.float32: "F32"}
DTYPES = ("float32", "bfloat16", "float16")
AGAIN = "copy or write the folder again"


class Stated(NamedTuple):
    """What config.json says of the quantized weights."""

    scheme: Scheme
    group_size: int | None
    """Of int4."""


def stated(method: object) -> Stated:
    """Read quantization_config. Raises InputError for a method that is not implemented."""
    if not isinstance(method, dict):
        raise InputError(f"quantization_config is {method!r}: wanted a JSON object")
    how = method.get("quant_method", "bitsandbytes")
    if how == "minift":
        if (method.get("quant_type"), method.get("bits")) != ("int4", 4):
            raise InputError(f"quant_type is {method.get('quant_type')!r} with {method.get('bits')!r} bits: minift's own form is int4 with 4 bits")
        size = method.get("group_size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 8:
            raise InputError(f"group_size is {size!r}: wanted a whole number of columns, at least 8")
        return Stated("int4", size)
    if how != "bitsandbytes":
        raise InputError(
            f"quant_method is {how!r}: minift reads bitsandbytes and its own int4. Let the library that wrote the folder dequantize it "
            "and save full weights"
        )
    bits = [n for n in (4, 8) if method.get(f"load_in_{n}bit")]
    if len(bits) != 1:
        raise InputError(f"load_in_4bit is {method.get('load_in_4bit')!r} and load_in_8bit is {method.get('load_in_8bit')!r}: one of them must be true")
    kind = method.get("bnb_4bit_quant_type", "fp4") if bits == [4] else "int8"
    for field, wanted, found in (
        ("bnb_4bit_quant_type", ("nf4", "fp4", "int8") if bits == [8] else ("nf4", "fp4"), kind),
        ("bnb_4bit_quant_storage", ("uint8",), method.get("bnb_4bit_quant_storage") or "uint8"),
        ("bnb_4bit_compute_dtype", DTYPES, method.get("bnb_4bit_compute_dtype") or "float32"),
        ("llm_int8_has_fp16_weight", (False,), method.get("llm_int8_has_fp16_weight") or False),
    ):
        if found not in wanted:
            raise InputError(f"{field} is {found!r}: minift reads {' or '.join(map(str, wanted))}")
    return Stated(kind, None)


def to_config(weights: list[Quantized], dtype: str, skip: list[str]) -> dict:
    """quantization_config for these weights. dtype: of the model. skip: the linears that stay as they are.

    Raises InputError for weights of several kinds, which config.json cannot say."""
    kinds = sorted({q.scheme + (f" in groups of {q.group_size}" if isinstance(q, Int4) else "") for q in weights})
    if len(kinds) > 1:
        raise InputError(f"this model has weights in {' and in '.join(kinds)}: a folder can hold one kind. Quantize all of them alike")
    if isinstance(weights[0], Int4):
        return {"quant_method": "minift", "quant_type": "int4", "bits": 4, "group_size": weights[0].group_size, "skip_modules": skip}
    four = isinstance(weights[0], FourBit)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "bnb_4bit_quant_type": weights[0].scheme if four else "fp4",
        "bnb_4bit_use_double_quant": four and all(isinstance(q.absmax, Nested) for q in weights),
        "bnb_4bit_compute_dtype": dtype if four else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": skip,
    }


def to_tensors(module: str, q: Quantized) -> dict[str, Tensor]:
    """Name in the file -> tensor. module: the path in the file, X."""
    weight = f"{module}.weight"
    if isinstance(q, Int8):
        return {weight: q.packed, f"{module}.SCB": q.absmax, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    if isinstance(q, Int4):
        return {weight: q.packed, f"{weight}.scale": q.scale, f"{weight}.zero": q.zero}
    state = {"quant_type": q.scheme, "blocksize": q.block_size, "dtype": str(q.dtype).removeprefix("torch."), "shape": list(q.shape)}
    tensors = {weight: q.packed[:, None], f"{weight}.quant_map": four_bit_map(q.scheme).clone()}              # clone: a file wants no shared memory
    if isinstance(q.absmax, Nested):
        state |= {"nested_blocksize": BLOCK, "nested_dtype": "float32", "nested_offset": q.absmax.offset.item()}
        tensors |= {f"{weight}.nested_absmax": q.absmax.absmax, f"{weight}.nested_quant_map": dynamic_map().clone()}
        tensors[f"{weight}.absmax"] = q.absmax.codes
    else:
        tensors[f"{weight}.absmax"] = q.absmax
    tensors[f"{weight}.quant_state.bitsandbytes__{q.scheme}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def read_quantized(
    module: str, parts: dict[str, Stored], shape: tuple[int, int], what: Stated, dtype: torch.dtype, device: torch.device | str
) -> Quantized:
    """The weight of one linear. parts: its tensors by what follows "X." in their names. shape: (N, K). Raises InputError naming the tensor."""
    names = {"int8": ["weight", "SCB", "weight_format"], "int4": ["weight", "weight.scale", "weight.zero"]}.get(what.scheme)
    state = {}
    if names is None:
        key = f"weight.quant_state.bitsandbytes__{what.scheme}"
        state = _state(module, parts, key, shape, what.scheme)
        names = ["weight", key, "weight.absmax", "weight.quant_map"]
        names += ["weight.nested_absmax", "weight.nested_quant_map"] if "nested_blocksize" in state else []
    wrong = [f"missing: {module}.{name}" for name in names if name not in parts] + [f"left over: {module}.{name}" for name in parts if name not in names]
    if wrong:
        raise InputError(f"{parts['weight'].file}: {module}.weight in {what.scheme} does not have the tensors it needs; {'; '.join(wrong)}: {AGAIN}")
    N, K = shape
    take = lambda name, dtype, *shape: _take(parts[name], dtype, shape, device)
    scales = lambda name, dtype, *shape: _take(parts[name], dtype, shape, device, least=0)
    if what.scheme == "int8":
        if (found := take("weight_format", torch.uint8).item()) != 0:
            raise InputError(f"{module}.weight_format is {found}: minift reads 0, row by row. Load and save it with a bitsandbytes of today")
        packed, absmax = take("weight", torch.int8, N, K), scales("SCB", torch.float32, N)
        if int(packed.min()) < -127:
            n, k = divmod(int(packed.argmin()), K)
            raise InputError(f"{module}.weight holds -128 at [{n}, {k}]: codes go from -127 to 127; {AGAIN}")
        return Int8(packed, absmax, shape, dtype)
    if what.scheme == "int4":
        G = math.ceil(K / what.group_size)
        scale, zero = scales("weight.scale", torch.float16, N, G), take("weight.zero", torch.uint8, N, G)
        if int(zero.max()) > 15:
            raise InputError(f"{module}.weight.zero holds {int(zero.max())}: zero points are codes from 0 to 15; {AGAIN}")
        return Int4(take("weight", torch.uint8, N, math.ceil(K / 2)), scale, zero, shape, dtype, what.group_size)
    packed = take("weight", torch.uint8, math.ceil(N * K / 2), 1)[:, 0]
    blocks = math.ceil(N * K / state["blocksize"])
    _same_map(module, "weight.quant_map", take("weight.quant_map", torch.float32, 16), four_bit_map(what.scheme))
    if "nested_blocksize" not in state:
        return FourBit(what.scheme, packed, scales("weight.absmax", torch.float32, blocks), shape, dtype, state["blocksize"])
    _same_map(module, "weight.nested_quant_map", take("weight.nested_quant_map", torch.float32, 256), dynamic_map())
    codes, absmax = take("weight.absmax", torch.uint8, blocks), scales("weight.nested_absmax", torch.float32, math.ceil(blocks / BLOCK))
    offset = torch.tensor(state["nested_offset"], dtype=torch.float32, device=device)
    return FourBit(what.scheme, packed, Nested(codes, absmax, offset), shape, dtype, state["blocksize"])


def _state(module: str, parts: dict[str, Stored], key: str, shape: tuple[int, int], scheme: str) -> dict:
    """The JSON of a 4-bit weight, checked."""
    for other in (name for name in parts if name.startswith("weight.quant_state.") and name != key):
        raise InputError(f"{parts[other].file}: found {module}.{other}, but config.json says {scheme}: files of two checkpoints?")
    if key not in parts:
        raise InputError(f"{parts['weight'].file}: missing: {module}.{key}, without which nobody knows block size and shape; {AGAIN}")
    name = f"{module}.{key}"
    try:
        state = json.loads(bytes(whole(parts[key]).flatten().tolist()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is not JSON ({error}): {AGAIN}") from None
    if not isinstance(state, dict):
        raise InputError(f"{name} holds {state!r}: wanted a JSON object; {AGAIN}")
    nested = {"nested_blocksize": (BLOCK,), "nested_dtype": ("float32",)} if any(field.startswith("nested_") for field in state) else {}
    for field, wanted in {"quant_type": (scheme,), "shape": (list(shape),), "blocksize": BLOCK_SIZES, "dtype": DTYPES, **nested}.items():
        if repr(state.get(field)) not in map(repr, wanted):                           # 64.0 is not 64
            raise InputError(f"{name}: {field} is {state.get(field)!r}, wanted {' or '.join(map(str, wanted))}; {AGAIN}")
    offset = state.get("nested_offset", 0.0 if not nested else None)
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) <= torch.finfo(torch.float32).max:
        raise InputError(f"{name}: nested_offset is {offset!r}, wanted a finite number; {AGAIN}")
    return state


def _take(tensor: Stored, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device | str, least: float = -math.inf) -> Tensor:
    """A tensor of this dtype and shape, finite and nowhere below `least`."""
    if (tensor.dtype, tensor.shape) != (STORED[dtype], shape):
        raise InputError(f"{tensor.file}: {tensor.name} is {tensor.dtype} {tensor.shape}, wanted {STORED[dtype]} {shape}; {AGAIN}")
    values = read(tensor, False, dtype, device) if shape else whole(tensor)
    if dtype.is_floating_point and not torch.isfinite(values).all():
        odd = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise InputError(f"{tensor.file}: {tensor.name} holds {values[tuple(odd)].item()} at {odd}: a scale must be a finite number; {AGAIN}")
    if (values < least).any():
        odd = (values < least).nonzero()[0].tolist()
        raise InputError(f"{tensor.file}: {tensor.name} holds {values[tuple(odd)].item():.7g} at {odd}: a scale is not below zero; {AGAIN}")
    return values


def _same_map(module: str, name: str, found: Tensor, ours: Tensor) -> None:
    """A map whose values differ by more than rounding stands for other numbers."""
    off = (found.cpu() - ours).abs() - 1e-6 * ours.abs()
    if off.max() > 0:
        place = int(off.argmax())
        raise InputError(f"{module}.{name} holds {found[place].item():.7g} at [{place}], wanted {ours[place].item():.7g}: not the map we know; {AGAIN}")
