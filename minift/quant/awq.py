"""AWQ: make the columns that read large inputs larger before rounding, and those inputs smaller (Lin et al. 2023, arXiv:2306.00978).

    X WT = (X / s) (W s)T                       s: (K,), so nothing changes until W s is rounded         W: (N, K)      X: (tokens, K)
    s = mean |X|^alpha / sqrt(max s min s)      alpha: the best of 0, 0.05, ... 0.95 by ‖X WT - (X / s) round(W s)T‖ on calibration texts

A column scaled up by s is rounded s times as finely, as long as it does not set its group's grid. alpha = 0 is rounding to nearest; as it
is among those tried, nothing is lost on the calibration texts by trying. X / s costs nothing: 1 / s goes into whatever makes X,

    norm1 -> q k v          norm2 -> gate up          v -> out          up -> down, with a gate (it is a plain factor there)

with one s for all linears that read the same X. Where nothing takes a factor, s stays 1: out behind grouped-query attention (several heads
read one row of v) and behind q, k, v interleaved by head; down behind an activation without a gate.
Left out: the search for a smaller grid (clipping); the paper's error of a whole attention or MLP where this sums the errors of its linears.
Proved in tests/quant/test_awq.py; measured in docs/int4.md."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.block import Block
from minift.models.norm import OffsetRMSNorm
from minift.quant import int4
from minift.quant.calibrate import Inputs, blocks_of, quantize_blocks
from minift.quant.errors import Error, quadratic

STEPS = 20
"""Values of alpha that are tried."""


def quantize_model(model: nn.Module, batches: Sequence[Tensor], group_size: int = 128) -> dict[str, Error]:
    """Each linear of a Transformer's blocks in int4, in place; norms, v and up take up the scales. batches: token ids (B, T), without pads.

    Returns path -> error, of the scaled weights. Raises InputError as calibrate.quantize_blocks does, and for blocks not minift's own."""
    for path, block in blocks_of(model).items():
        if not isinstance(block, Block):
            why = "AWQ has to know what makes a linear's inputs, and knows minift's blocks only; GPTQ needs not"
            raise InputError(f"{path} is a {type(block).__name__}: {why}")
    scale = lambda block, inputs: rescale(block, inputs, group_size)
    return quantize_blocks(model, batches, group_size, lambda weight, inputs: int4.quantize(weight, group_size), scale)


class Place(NamedTuple):
    """Linears that read one X, and the way to divide it."""

    readers: tuple[str, ...]
    """Names inside the block."""
    divide: Callable[[Tensor], None]
    """Change what makes X so that it makes X / s."""


def places(block: Block) -> list[Place]:
    """Where s can go."""
    attention, mlp, config = block.attention, block.mlp, block.attention.config
    read1 = ("attention.q", "attention.k", "attention.v") if config.qkv == "separate" else ("attention.qkv",)
    read2 = ("mlp.up",) if mlp.gate is None else ("mlp.gate", "mlp.up")
    if block.norm2 is None:                                                              # both branches read norm1
        found = [Place(read1 + read2, lambda s: divide_norm(block.norm1, s))]
    else:
        found = [Place(read1, lambda s: divide_norm(block.norm1, s)), Place(read2, lambda s: divide_norm(block.norm2, s))]
    if config.heads == config.kv_heads and config.qkv in ("separate", "joined"):
        values = attention.v if config.qkv == "separate" else attention.qkv
        found.append(Place(("attention.out",), lambda s: divide_rows(values, s)))
    if mlp.gate is not None:
        found.append(Place(("mlp.down",), lambda s: divide_rows(mlp.up, s)))
    return found


@torch.no_grad()
def rescale(block: Block, inputs: dict[str, Inputs], group_size: int) -> None:
    """Scale the block's weights without changing its function, and `inputs` with them. All scales are found before any is applied: dividing
    a row of v or up would change what its own error counts."""
    found = places(block)
    scales = [search([block.get_submodule(name).weight for name in place.readers], inputs[place.readers[0]], group_size) for place in found]
    for (readers, divide), s in zip(found, scales):
        divide(s)
        for name in readers:
            linear = block.get_submodule(name)
            linear.weight.data = (linear.weight.float() * s).to(linear.weight.dtype)
        inputs |= dict.fromkeys(readers, inputs[readers[0]].divided(s))


def search(weights: list[Tensor], inputs: Inputs, group_size: int) -> Tensor:
    """The s (K,) with which the weights (N, K), read by the same X, lose least in sum; of equals the first, s = 1."""
    best, least = torch.ones_like(inputs.magnitude), None
    for step in range(STEPS):
        s = scales(inputs.magnitude / inputs.tokens, step / STEPS)
        rounded = [int4.dequantize(int4.quantize(W.float() * s, group_size)) / s for W in weights]
        lost = sum(quadratic(W.float() - r, inputs.hessian) for W, r in zip(weights, rounded)).item()
        if least is None or lost < least:
            best, least = s, lost
    return best


def scales(mean: Tensor, alpha: float) -> Tensor:
    """(K,), around 1. mean: mean |X| of each of K inputs; one that is always 0 counts as 1e-4."""
    s = mean.clamp(min=1e-4) ** alpha
    return s / (s.max() * s.min()).sqrt()


def divide_norm(norm: nn.Module, s: Tensor) -> None:
    """Its output becomes 1 / s of what it was, weights and biases in float32 in between."""
    offset = norm.offset if isinstance(norm, OffsetRMSNorm) else 0.0
    norm.weight.data = ((norm.weight.float() + offset) / s - offset).to(norm.weight.dtype)
    if getattr(norm, "bias", None) is not None:
        norm.bias.data = (norm.bias.float() / s).to(norm.bias.dtype)


def divide_rows(linear: nn.Linear, s: Tensor) -> None:
    """The last len(s) outputs (all of v or up, the third third of qkv) become 1 / s of what they were."""
    weight, first = linear.weight.float(), len(linear.weight) - len(s)
    factor = torch.cat([torch.ones(first, device=s.device), 1 / s])                      # (N,)
    linear.weight.data = (weight * factor[:, None]).to(linear.weight.dtype)
    if linear.bias is not None:
        linear.bias.data = (linear.bias.float() * factor).to(linear.bias.dtype)
