"""Where a token stands: rotary embeddings (Su et al. 2021, arXiv:2104.09864) and ALiBi (Press et al. 2021, arXiv:2108.12409).

RoPE turns each pair of numbers (x_i, x_{i + R/2}) of a head by the angle p * f_i, where p is the position, R the rotated width
and f_i = theta^(-2i / R). Query and key then meet in q . k, which depends on the difference of their positions only.
We pair the first half with the second ("half-split", as Hugging Face stores weights), not neighbours; docs/conventions.md.

ALiBi adds slope_h * (key position - query position) to the attention score of head h: a penalty that grows with distance.

Everything is computed in float32 from the config at each forward, never kept in a buffer: a buffer would be rounded by
`model.to(torch.bfloat16)`, which cannot even hold the integers above 256 (trap 35). Left out: YaRN and LongRoPE.
Proved in tests/models/test_transformer.py and, against transformers, in tests/parity/test_families.py."""

import math

import torch
from torch import Tensor

from minift.models.config import ModelConfig


def frequencies(config: ModelConfig, positions: Tensor, segments: Tensor | None) -> Tensor:
    """f_i, float32, shape (R/2,); or with "dynamic" scaling, which looks at the length of each token's text, (B, T, R/2)."""
    device = positions.device
    width = config.rope_dim or config.head_dim                                     # R
    theta, scaling = config.rope_theta, config.rope_scaling
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    if scaling is None:
        return 1.0 / theta**exponents
    if scaling.kind == "linear":                                                   # positions are squeezed into the old range
        return 1.0 / theta**exponents / scaling.factor
    if scaling.kind == "dynamic":                                                  # the base grows with the length (NTK-aware)
        trained = scaling.original_max_positions or config.max_positions
        lengths = text_lengths(positions, segments).clamp(min=trained).float()                                    # (B, T)
        stretch = scaling.factor * lengths / trained - (scaling.factor - 1)
        return 1.0 / (theta * stretch ** (width / (width - 2)))[:, :, None] ** exponents                          # (B, T, R/2)
    return _llama3(1.0 / theta**exponents, config)


def _llama3(freqs: Tensor, config: ModelConfig) -> Tensor:
    """LLaMA 3.1: slow frequencies are divided by the factor, fast ones kept, those between blended linearly."""
    scaling = config.rope_scaling
    trained = scaling.original_max_positions or config.max_positions
    turns = trained * freqs / (2 * math.pi)                                        # full turns within the trained context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * freqs + (1 - keep) * freqs / scaling.factor


def text_lengths(positions: Tensor, segments: Tensor | None) -> Tensor:
    """positions (B, T) -> (B, T): one more than the last position of the text each token belongs to, its row or its segment."""
    if segments is None:
        return positions.amax(dim=1, keepdim=True).expand_as(positions) + 1
    same = segments[:, :, None] == segments[:, None, :]                            # (B, T, T)
    return (positions[:, None, :] * same).amax(dim=2) + 1


def rotation(config: ModelConfig, positions: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle: positions (B, T) int -> two tensors (B, 1, T, R/2), float32; the 1 is for the heads."""
    angles = (positions[:, :, None].float() * frequencies(config, positions, segments))[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, D) by the angles; numbers beyond the rotated width pass unchanged. Computed in float32, returned in x's dtype."""
    if torch.compiler.is_compiling():
        return rotate_plainly(x, cos, sin)
    return Rotation.apply(x, cos, sin) if x.requires_grad and torch.is_grad_enabled() else rotated(x, cos, sin)


def rotate_plainly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as a formula; what Rotation is held against, and what a compiler makes fast by itself."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """rotate_plainly with one new tensor instead of a dozen."""
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.empty_like(x, dtype=torch.float32)
    torch.mul(first, cos, out=turned[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned[..., half : 2 * half]).addcmul_(first, sin)
    if x.shape[-1] > 2 * half:
        turned[..., 2 * half :] = x[..., 2 * half :]
    return turned.to(x.dtype)


class Rotation(torch.autograd.Function):
    """rotate_plainly without intermediate tensors. Its gradient is the rotation back, which autograd would find in a dozen passes."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, dy: Tensor):
        cos, sin = ctx.saved_tensors
        return Rotation.apply(dy, cos, -sin), None, None


def alibi_slopes(heads: int, device: torch.device | str) -> Tensor:
    """(H,) float32: 2^(-8/n), 2^(-16/n), ... for n heads; if H is no power of two, the rest come from every other slope of 2n."""
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)
