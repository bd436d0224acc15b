"""What a lesson looks at, as arrays: attention maps, rotations, the stream of vectors, which tokens count.

Nothing here draws: a picture is ten lines of matplotlib in the notebook. Nothing here computes a second time what the model
computes: the numbers come through `capture`, from the very forward pass that makes the logits.
T tokens of one text, H heads, D head width, C model width, V vocabulary, L blocks. Proved in tests/test_watch.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minift.data.batches import Example
from minift.models.config import ModelConfig
from minift.models.rope import rotate, rotation
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer


def attention(model: Transformer, ids: Sequence[int], segments: Sequence[int] | None = None) -> Tensor:
    """Who looks where: (L, H, T, T) float32; row t of a head is what token t takes from tokens 0..t, and sums to 1."""
    seen = _captured(model, ids, segments)
    return torch.stack([seen[f"blocks.{layer}.attention.weights"][0] for layer in range(model.config.layers)])


def looking_back(weights: Tensor, back: int) -> Tensor:
    """weights (L, H, T, T) -> (L, H): the mean share that a token gives to the one `back` places before it."""
    return weights.diagonal(-back, dim1=-2, dim2=-1).mean(-1)


def reach(weights: Tensor) -> Tensor:
    """weights (L, H, T, T) -> (L, H): how many places back a head looks, a mean over its attention and over the tokens."""
    T = weights.shape[-1]
    back = torch.arange(T)[:, None] - torch.arange(T)                                            # (T, T)
    return (weights * back).sum(-1).mean(-1)


def stream(model: Transformer, ids: Sequence[int]) -> Tensor:
    """The vectors that the blocks read and write: (L + 1, T, C), after the embedding and after each block."""
    seen = _captured(model, ids, None)
    return torch.stack([seen["embed"][0], *(seen[f"blocks.{layer}.hidden"][0] for layer in range(model.config.layers))])


@torch.no_grad()
def lens(model: Transformer, ids: Sequence[int]) -> Tensor:
    """(L + 1, T - 1): nats of each next token if the last norm and the head read the stream at that depth already ("logit lens",
    nostalgebraist 2020). Its last row is the model's own loss."""
    targets = torch.tensor(ids)[1:]                                                              # (T-1,)
    logs = model.head(model.norm(stream(model, ids)[:, :-1])).float().log_softmax(-1)            # (L+1, T-1, V)
    return -logs[:, torch.arange(len(targets)), targets]


def rotated(config: ModelConfig, x: Tensor, positions: Sequence[int]) -> Tensor:
    """The vector x (D,) as it enters attention at each position: (P, D). RoPE pairs number i with number i + D/2."""
    cos, sin = rotation(config, torch.tensor(positions)[None])                                   # (1, 1, P, D/2)
    return rotate(x.expand(1, 1, len(positions), -1), cos, sin)[0, 0]


def marks(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """[(piece, does it count in the loss), ...], one for each of the T tokens."""
    return [(tokenizer.piece(i), counts) for i, counts in zip(example.ids, example.loss_mask, strict=True)]


@torch.no_grad()
def _captured(model: Transformer, ids: Sequence[int], segments: Sequence[int] | None) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        model(torch.tensor([ids]), segments=None if segments is None else torch.tensor([segments]), capture=seen)
    finally:
        model.train(was_training)
    return seen
