"""GPTQ: round a weight column by column, and let the columns still to come make up for each one's error (Frantar et al. 2022, arXiv:2210.17323).

    least ‖X WT - X W^T‖^2, whose second derivative in each row of W^ is H = 2 XT X         W: (N, K)      X: (tokens, K)      H: (K, K)
    H^-1 = UT U, U upper triangular (Cholesky); then for k = 1 ... K
        W^[:, k] = round(W[:, k])                         on the grid of k's group, fixed from the weights as they are when it is reached
        e = (W[:, k] - W^[:, k]) / U[k, k]
        W[:, k:] = W[:, k:] - e U[k, k:]                  the best answer of the columns not yet rounded (eq. 2, by Cholesky as in step 3)

Inside a group only its own columns are changed at once; those behind it get the sum of its errors in one product (the paper's lazy batches).
To H's diagonal 1 % of its mean is added, so that it has an inverse. If H is a multiple of the identity, U[k, j] = 0 behind the diagonal
and nothing is left of all this but rounding to nearest.
Left out: the order by falling diagonal of H ("act-order"), which costs a permutation in the format; other grids than int4's.
Proved in tests/quant/test_gptq.py; measured in docs/int4.md."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minift.quant import int4
from minift.quant.calibrate import quantize_blocks
from minift.quant.errors import Error
from minift.quant.int4 import Int4


def quantize_model(model: nn.Module, batches: Sequence[Tensor], group_size: int = 128) -> dict[str, Error]:
    """Each linear of the model's blocks in int4, in place. batches: token ids (B, T) of calibration texts, without pads.

    Returns path -> error. Raises InputError as calibrate.quantize_blocks does."""
    return quantize_blocks(model, batches, group_size, lambda weight, inputs: gptq(weight, inputs.hessian, group_size))


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, group_size: int = 128, damping: float = 0.01) -> Int4:
    """weight: (N, K), any float dtype; hessian: (K, K). Computed in float32, the Cholesky factor in float64."""
    W, U = weight.detach().float().clone(), inverse_factor(hessian, damping)                     # (N, K), (K, K)
    numbers, scales, zeros = torch.empty_like(W, dtype=torch.uint8), [], []
    for start in range(0, W.shape[1], group_size):
        group = slice(start, min(start + group_size, W.shape[1]))
        scale, zero = int4.grid(W[:, group], group_size)                                         # (N, 1): one group
        errors = torch.empty_like(W[:, group])
        for k in range(group.start, group.stop):
            numbers[:, k : k + 1] = int4.codes(W[:, k : k + 1], scale, zero, 1)
            rounded = (numbers[:, k].float() - zero[:, 0].float()) * scale[:, 0].float()         # (N,)
            e = (W[:, k] - rounded) / U[k, k]                                                    # (N,)
            W[:, k : group.stop] -= e[:, None] * U[k, k : group.stop]
            errors[:, k - start] = e
        W[:, group.stop :] -= errors @ U[group, group.stop :]
        scales.append(scale)
        zeros.append(zero)
    return int4.pack(numbers, torch.cat(scales, 1), torch.cat(zeros, 1), weight.dtype, group_size)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U (K, K) float32, upper triangular, with UT U = (H + damping * mean(diag H) I)^-1. Without any input H is 0, and U the identity."""
    H, eye = hessian.double(), torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    mean = H.diagonal().mean()
    damped = H + damping * mean * eye if mean > 0 else eye
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()
