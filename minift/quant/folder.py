"""Checkpoint folders with quantized weights: read, written, and made while a full one is read.

    model = read_model("folder", quantize="nf4")             # each matrix is quantized as it comes from the disk
    write_model(model, "new-folder")                         # nf4, fp4, int8: transformers + bitsandbytes load it
    model = read_model("new-folder")                         # and we load theirs

Quantizing goes piece by piece: 8 MB of the file are read, of which 2^18 numbers at a time become codes. So the peak is the quantized model
and the reading of one slice (32 MB of what stays full); the full matrix never exists, except for GPT-2's, which lie transposed and are read whole.
The result is that of quantize_model on the full model, to the bit. What stays full (head, embeddings, norms, biases) is in `dtype`.
A linear in a folder is quantized if its weight is stored so: config.json tells how, not which. Products are computed in the model's dtype.
What the tensors are called is in layout.py. Proved in tests/quant/test_folder.py and tests/parity/test_bitsandbytes_folder.py."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models import folder as full
from minift.models.families import to_hf
from minift.models.folder import Wanted, as_stored, assign, config_json, config_of, match, skeleton, tie, to_store, wanted_tensors, write_tensors
from minift.models.stored import Stored, read, slices, stored
from minift.models.transformer import Transformer
from minift.quant import layout
from minift.quant.blocks import FourBit
from minift.quant.linear import QuantizedLinear, wrap
from minift.quant.model import put, quantizable
from minift.quant.nested import shrink
from minift.quant.tensor import Quantized, Scheme, checked, quantize, tensors, with_tensors

SLICE, PIECE = 8 * 2**20, 2**18
"""Bytes that are read at once, and numbers that are quantized at once."""


def read_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", quantize: Scheme | None = None
) -> Transformer:
    """The model of a checkpoint folder, in eval mode. quantize: the scheme for the linears of a folder with full weights.

    Raises InputError for all that models.folder.read_model refuses, weights that are damaged or quantized already, NaN or infinities to be
    quantized."""
    folder = Path(folder)
    hf = config_json(folder)
    method = hf.pop("quantization_config", None)
    if quantize is not None and quantize not in get_args(Scheme):
        raise InputError(f"no scheme is called {quantize!r}: choose one of {', '.join(get_args(Scheme))}")
    held = stored(folder)
    if method is None and (beside := next((name for name in held if layout.BESIDE.fullmatch(name)), None)):
        raise InputError(
            f"{folder}: these are quantized weights ({beside} is one of their scales or maps), but config.json lacks quantization_config: take "
            "the config.json that was written with them"
        )
    if method is None and quantize is None:
        return full.read_model(folder, dtype, device)
    what = None if method is None else _stated(method, folder)
    if what is not None and quantize is not None:
        raise InputError(
            f"{folder} is in {what.scheme} already: quantizing twice would add the errors. Leave out quantize, or start from the full weights"
        )
    config = as_stored(config_of(hf, folder), held)
    model = skeleton(config)
    wanted, packed = wanted_tensors(config, model), {}
    if what is not None:
        held, packed = gather(held, wanted, model)
        if not packed:
            raise InputError(
                f"{folder}: config.json says {what.scheme}, but every weight is full: remove quantization_config from it, or take the weights "
                "that belong to it"
            )
    chosen = quantizable(model) if quantize is not None else {}
    for ours, (source, transposed) in match(config, wanted, held, folder).items():
        path, _, kind = ours.rpartition(".")
        if source.name in packed:
            linear = model.get_submodule(path)
            q = layout.read_quantized(
                source.name.removesuffix(".weight"), packed[source.name], (linear.out_features, linear.in_features), what, dtype, device
            )
        elif kind == "weight" and path in chosen:
            q = quantized(source, transposed, quantize, dtype, device)
        else:
            assign(model, ours, read(source, transposed, dtype, device))
            continue
        put(model, path, wrap(q))                                          # its bias follows
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.requires_grad_(False)
    tie(model)
    return model.eval()


def write_model(model: Transformer, folder: str | Path, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False) -> None:
    """Write any model: with full weights, quantized ones, or both. Raises InputError as models.folder.write_model does, and for a model
    whose linears are quantized in several ways."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    if not found:
        return full.write_model(model, folder, max_shard_bytes, overwrite)
    tensors = to_store(model, apart={f"{path}.weight" for path in found})
    names, plan = model.module_names(), skeleton(model.config)
    for path, module in found.items():
        linear = plan.get_submodule(path)
        if module.q.shape != (linear.out_features, linear.in_features):
            raise InputError(f"{path}.weight is {module.q.shape}, but config wants {(linear.out_features, linear.in_features)}: mend model.config")
        tensors |= {name: tensor.contiguous().cpu() for name, tensor in layout.to_tensors(names[path], module.q).items()}
    skip = [names[path] for path, module in model.named_modules() if isinstance(module, nn.Linear) and path not in found]
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    config = {**to_hf(model.config, dtype), "quantization_config": layout.to_config([module.q for module in found.values()], dtype, skip)}
    write_tensors(config, tensors, folder, max_shard_bytes, overwrite)


def _stated(method: object, folder: Path) -> layout.Stated:
    try:
        return layout.stated(method)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: quantization_config: {error}") from None


def gather(held: dict[str, Stored], wanted: dict[str, Wanted], model: Transformer) -> tuple[dict[str, Stored], dict[str, dict[str, Stored]]]:
    """(what is stored, with one full tensor in the place of each quantized weight's several; name of that weight -> its several tensors, by
    what follows its module's path). A weight that nobody wants keeps its tensors, so that they are reported as left over."""
    beside: dict[str, list[str]] = {}                                      # module -> the tensors beside its weight
    for name in held:
        if found := layout.BESIDE.fullmatch(name):
            beside.setdefault(found[1], []).append(name)
    plain, packed = dict(held), {}
    for module, names in beside.items():
        weight = f"{module}.weight"
        ours = next((ours for ours, want in wanted.items() if want.name == weight or want.name.endswith(f".{weight}")), None)
        if ours is None or weight not in held:
            continue
        if not isinstance(model.get_submodule(ours.rpartition(".")[0]), nn.Linear):
            raise InputError(f"{held[weight].file}: {weight} is quantized, but it is no linear: minift keeps embeddings and norms full")
        packed[weight] = {name.removeprefix(f"{module}."): held[name] for name in [weight, *names]}
        for name in names:
            del plain[name]
        plain[weight] = held[weight]._replace(shape=wanted[ours].shape, dtype="F32")
    return plain, packed


def quantized(source: Stored, transposed: bool, scheme: Scheme, dtype: torch.dtype, device: torch.device | str) -> Quantized:
    """A stored matrix, cast to dtype and quantized, with double quantization. Raises InputError for NaN and infinities."""
    N, K = source.shape[::-1] if transposed else source.shape
    whole: dict[str, Tensor] = {}                                          # filled piece by piece: kept pieces would leave holes in memory
    filled: dict[str, int] = {}
    row = 0
    for piece in pieces(source, transposed, dtype):
        piece = piece.to(device)
        if not torch.isfinite(piece).all():
            n, k = (~torch.isfinite(piece)).nonzero()[0].tolist()
            raise InputError(
                f"{source.file}: {source.name} holds {piece[n, k].item()} in {dtype} at row {row + n}, column {k} of (output, input): "
                "one such number would make its whole block meaningless"
            )
        try:
            part = quantize(piece, scheme, double_quant=False)
        except InputError as error:
            raise InputError(f"{source.file}: {source.name}: from row {row} on: {error}") from None
        for name, values in tensors(part).items():
            if name not in whole:                                          # all but the last piece are as long as the first
                whole[name] = values.new_empty(math.ceil(len(values) * N / len(piece)), *values.shape[1:])
            start = filled.get(name, 0)
            whole[name][start : start + len(values)] = values
            filled[name] = start + len(values)
        row += len(piece)
    q = dataclasses.replace(with_tensors(part, whole), shape=(N, K))
    try:
        return checked(dataclasses.replace(q, absmax=shrink(q.absmax))) if isinstance(q, FourBit) else q
    except InputError as error:
        raise InputError(f"{source.file}: {source.name}: {error}") from None


def pieces(source: Stored, transposed: bool, dtype: torch.dtype) -> Iterator[Tensor]:
    """Some rows after the other, (rows, K) in dtype; so many that no block of 64 numbers is cut."""
    K = source.shape[0 if transposed else 1]
    even = 64 // math.gcd(64, K)                                           # as many rows hold whole blocks
    parts = [(0, read(source, True, dtype, "cpu"))] if transposed else slices(source, even, SLICE)
    for _, rows in parts:
        for piece in rows.split(max(1, PIECE // (even * K)) * even):
            yield piece.to(dtype)
