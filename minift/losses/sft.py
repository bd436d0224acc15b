"""The loss of supervised fine-tuning and of pre-training: how surprised the model is by each next token.

    loss = - sum over targets t of log p(token_t | tokens before t)          p = softmax(logits)

Returns a SUM and a COUNT, never a mean: a mean per micro-batch, averaged again over micro-batches, weighs the tokens of short
ones too much (trap 1). The training loop divides once, by all target tokens of the optimizer step.
Proved in tests/losses/test_sft.py."""

import torch.nn.functional as F
from torch import Tensor


def next_token(logits: Tensor, token_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """logits (B, T, V), token_ids (B, T) int64, loss_mask (B, T) bool -> (sum of nats over the targets, number of targets).

    loss_mask[b, t] says that token t is a target; it is predicted by the logits at t - 1, so the mask's first column never
    counts. The sum is float32 whatever the logits are. A batch without any target gives 0, with zero gradients (trap 6)."""
    targets, counted = token_ids[:, 1:], loss_mask[:, 1:]
    labels = targets.masked_fill(~counted, -100)                                       # (B, T-1); -100: not in the sum
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total, counted.sum()
