"""What rounding a weight has cost, as a share of what was there.

    weight     ‖W - W^‖ / ‖W‖                        Frobenius norms; W: (N, K), W^ the rounded one
    block      the same over numbers that share a scale, the worst of them
    output     ‖X (W - W^)T‖ / ‖X WT‖                X: (tokens, K), inputs of calibration texts
               = sqrt(tr(D H DT) / tr(W H WT))       D = W - W^, H = 2 XT X: K x K numbers stand for all the tokens

The first two need no data and judge the rounding. The third is what the layers behind see, and what GPTQ and AWQ make small: theirs may
have a larger weight error than rounding to nearest has, which no other rounding to the same grid can beat there.
Proved in tests/quant/test_errors.py. Left out: signal-to-noise in decibels, which is -20 log10 of these."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.quant.blocks import FourBit
from minift.quant.int8 import Int8
from minift.quant.tensor import Quantized, dequantize


@dataclass(frozen=True)
class Error:
    """Of one linear."""

    weight: float
    worst_block: float
    """1: a block that came out as zeros."""
    output: float | None = None
    """None without calibration texts."""
    nearest: float | None = None
    """The output error that rounding to nearest would have had, with the same grid size."""


def error(weight: Tensor, q: Quantized) -> Error:
    """Of q as a picture of weight (N, K), without data."""
    W = weight.detach().float()
    D = W - dequantize(q, torch.float32)
    parts = ratio(in_blocks(D, q).norm(dim=1), in_blocks(W, q).norm(dim=1))                 # (blocks,)
    return Error(ratio(D.norm(), W.norm()).item(), parts.max().item())


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """weight, rounded: (N, K); hessian: (K, K), 2 XT X, whose factor cancels out."""
    W, H = weight.detach().float(), hessian.float()
    return ratio(quadratic(W - rounded.float(), H).sqrt(), quadratic(W, H).sqrt()).item()


def quadratic(D: Tensor, H: Tensor) -> Tensor:
    """tr(D H DT), (): twice the squared norm of X DT."""
    return ((D @ H) * D).sum().clamp(min=0)                                                 # rounding may take it below zero


def ratio(lost: Tensor, whole: Tensor) -> Tensor:
    """Nothing lost of nothing is 0; something lost of nothing is infinite."""
    return torch.where(lost == 0, 0.0, lost / whole)


def in_blocks(D: Tensor, q: Quantized) -> Tensor:
    """(N, K) -> (blocks, numbers that share a scale); a short block is filled up with zeros."""
    if isinstance(q, Int8):
        return D                                                                            # a row
    if isinstance(q, FourBit):
        return F.pad(D.flatten(), (0, -D.numel() % q.block_size)).view(-1, q.block_size)
    return F.pad(D, (0, -D.shape[1] % q.group_size)).reshape(-1, q.group_size)
