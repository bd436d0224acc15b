"""quantize and dequantize: a weight to 4 or 8 bits by one of four schemes, and back.

    q = quantize(weight, "nf4", block_size=64, double_quant=True)      q.packed, q.absmax, q.shape, q.dtype
    dequantize(q)                                                      the numbers that q stands for

    scheme   numbers                               scale                        bits per weight
    nf4      16 quantiles of a normal              one per 64, in any order     4.127 (4.5 without double_quant)
    fp4      a tiny float                          the same                     the same
    int8     whole numbers, -127 ... 127           one per row                  8 + 32 / K
    int4     whole numbers, 0 ... 15, affine       scale and zero per 128       4.19
Proved in tests/quant/test_tensor.py."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from minift.errors import InputError
from minift.quant import blocks, int4, int8
from minift.quant.blocks import FourBit
from minift.quant.int4 import Int4
from minift.quant.int8 import Int8
from minift.quant.nested import Nested

Scheme = Literal["nf4", "fp4", "int8", "int4"]
Quantized = FourBit | Int8 | Int4
LARGEST = torch.finfo(torch.float32).max


def quantize(weight: Tensor, scheme: Scheme, block_size: int | None = None, double_quant: bool = True) -> Quantized:
    """block_size: 64 numbers for nf4 and fp4, 128 columns for int4, rows for int8 if none is given. double_quant: of nf4's and fp4's absmax.

    Raises InputError for an unknown scheme, a block size it cannot have, a tensor that is empty, not a matrix, without numbers (meta), quantized
    already, or that holds NaN, an infinity or a number too large for the scheme."""
    if scheme not in get_args(Scheme):
        raise InputError(f"no scheme is called {scheme!r}: choose one of {', '.join(get_args(Scheme))}")
    if not isinstance(weight, Tensor):
        already = ": it is quantized already" if isinstance(weight, Quantized) else ""
        raise InputError(f"quantize takes a tensor, this is a {type(weight).__name__}{already}")
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise InputError(f"quantize takes floating-point numbers, these are {weight.dtype}: codes must not be quantized again")
    if weight.ndim != 2 or weight.numel() == 0:
        raise InputError(f"quantize takes a matrix (N, K) with something in it, this has shape {tuple(weight.shape)}: reshape it first")
    if weight.is_meta:
        raise InputError("the weight is on the meta device, where tensors hold no numbers: load it first")
    if weight.dtype == torch.float64 and weight.detach().abs().nan_to_num(posinf=0.0).amax() > LARGEST:
        n, k = divmod(int(weight.detach().abs().nan_to_num(posinf=0.0).argmax()), weight.shape[1])
        raise InputError(f"the weight holds {weight[n, k].item()} at {[n, k]}: quantizing computes in float32, which ends at {LARGEST:.7g}")
    if not torch.isfinite(weight.detach().sum()) and not torch.isfinite(weight).all():               # the first is quick
        odd = (~torch.isfinite(weight)).nonzero()[0].tolist()
        raise InputError(f"the weight holds {weight[tuple(odd)].item()} at {odd}: one such number would make its whole block meaningless")
    if scheme == "int8":
        if block_size is not None:
            raise InputError(f"block_size is {block_size}, but int8 has one scale per row: leave it out")
        return checked(int8.quantize(weight))
    if scheme == "int4":
        size = 128 if block_size is None else block_size
        if not isinstance(size, int) or size < 8:
            raise InputError(f"block_size is {size!r}: int4 needs a whole number of columns per group, at least 8")
        return checked(int4.quantize(weight, size))
    size = 64 if block_size is None else block_size
    if not isinstance(size, int) or size not in blocks.BLOCK_SIZES:
        raise InputError(f"block_size is {size!r}: {scheme} takes one of {', '.join(map(str, blocks.BLOCK_SIZES))}")
    return checked(blocks.quantize(weight, scheme, size, double_quant))


def checked(q: Quantized) -> Quantized:
    """q, or InputError if it stands for NaN or an infinity in q.dtype: a rounded scale can be beyond the largest number."""
    scale = 15 * q.scale.float() if isinstance(q, Int4) else q.absmax if isinstance(q, Int8) else blocks.plain_absmax(q)
    if not scale.max() <= torch.finfo(q.dtype).max and not torch.isfinite(dequantize(q)).all():               # the first is quick; NaN is not <=
        raise InputError(
            f"numbers this large become an infinity in {q.scheme} and {q.dtype}: divide the weights, or leave double_quant out or this linear full"
        )
    return q


def dequantize(q: Quantized, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers, in the dtype they had or in `dtype`; computed in float32 and rounded once. Raises InputError for what is not quantized."""
    if not isinstance(q, Quantized):
        raise InputError(f"dequantize takes what quantize gives, this is a {type(q).__name__}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype is {dtype!r}: dequantize gives floating-point numbers, such as torch.float32 or torch.bfloat16")
    if isinstance(q, FourBit):
        return blocks.dequantize(q, dtype)
    return int8.dequantize(q, dtype) if isinstance(q, Int8) else int4.dequantize(q, dtype)


def rows(q: Quantized) -> Iterator[Tensor]:
    """The rows of (N, K) in order, float32, some at a time in a buffer that the next ones overwrite; of tensors on a CPU."""
    return (blocks if isinstance(q, FourBit) else int8 if isinstance(q, Int8) else int4).rows(q)


def tensors(q: Quantized) -> dict[str, Tensor]:
    """Its tensors by the names of their fields; those of a nested absmax as "absmax.codes" and so on."""
    found = {}
    for field in dataclasses.fields(q):
        value = getattr(q, field.name)
        if isinstance(value, Nested):
            found |= {f"{field.name}.{inner.name}": getattr(value, inner.name) for inner in dataclasses.fields(value)}
        elif isinstance(value, Tensor):
            found[field.name] = value
    return found


def with_tensors(q: Quantized, changed: dict[str, Tensor]) -> Quantized:
    """The same with other tensors, by the names that `tensors` gives."""
    whole = {name: value for name, value in changed.items() if "." not in name}
    nested = {name.removeprefix("absmax."): value for name, value in changed.items() if "." in name}
    return dataclasses.replace(q, **whole, **({"absmax": Nested(**nested)} if nested else {}))


def nbytes(q: Quantized) -> int:
    """Bytes of all its tensors."""
    return sum(t.numel() * t.element_size() for t in tensors(q).values())
