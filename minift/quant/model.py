"""A model's linears in 4 or 8 bits; embeddings, norms and the output head stay as they are.

    quantize_model(model, "nf4")             each nn.Linear becomes a Linear4bit (or Linear8bit), in place
    dequantize_model(model)                  and back: the rounded weights as plain linears

The head reads the final stream straight into probabilities and is often the embedding matrix too, so nobody rounds it (bitsandbytes
neither). Proved in tests/quant/test_model.py."""

import torch
from torch import nn

from minift.errors import InputError
from minift.quant.linear import QuantizedLinear
from minift.quant.tensor import Scheme

HEADS = ("head", "lm_head", "score", "classifier")
"""Names of output heads: the last part of the path."""


def quantizable(model: nn.Module, skip: tuple[str, ...] = HEADS) -> dict[str, nn.Linear]:
    """Path -> linear to be quantized. A name in `skip` leaves out the modules whose path is it or ends in it."""
    kept = lambda path: any(path == name or path.endswith("." + name) for name in skip)
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and not kept(path)}


def to_quantize(model: nn.Module, skip: tuple[str, ...] = HEADS) -> dict[str, nn.Linear]:
    """The same, or InputError: if there is none, or one that is quantized already or holds NaN or an infinity."""
    found = quantizable(model, skip)
    done = next((path for path, module in found.items() if isinstance(module, QuantizedLinear)), None)
    if done:
        raise InputError(f"{done} is in {found[done].q.scheme} already: quantizing twice would add the errors. Start from the full weights")
    if not found:
        raise InputError(f"this model has no linear to quantize (left out by name: {', '.join(skip)})")
    for path, module in found.items():
        if not torch.isfinite(module.weight).all():
            place = (~torch.isfinite(module.weight)).nonzero()[0].tolist()
            value = module.weight[tuple(place)].item()
            raise InputError(f"{path}: the weight holds {value} at {place}: one such number would make its whole block meaningless")
    return found


@torch.no_grad()
def quantize_model(
    model: nn.Module, scheme: Scheme, block_size: int | None = None, double_quant: bool = True, skip: tuple[str, ...] = HEADS
) -> None:
    """Replace each linear in place, one at a time: the peak is the model plus one matrix.

    Raises InputError if there is none, or one that is quantized already, before anything is changed."""
    found = to_quantize(model, skip)
    for path, module in found.items():
        try:
            put(model, path, QuantizedLinear.of(module, scheme, block_size, double_quant))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


@torch.no_grad()
def dequantize_model(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace each quantized linear by a plain one with the rounded weight, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            put(model, path, plain(module, dtype))


def plain(module: QuantizedLinear, dtype: torch.dtype | None = None) -> nn.Linear:
    """The nn.Linear with the same (rounded) weight, in module's dtype or `dtype`."""
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    linear.weight = nn.Parameter(module.weight.to(dtype or module.q.dtype), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach().to(dtype or module.bias.dtype), requires_grad=False)
    return linear.train(module.training)


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set model.path to module."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
