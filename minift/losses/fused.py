"""The next-token loss without the logits: the output head and the cross-entropy, some rows at a time.

    loss = - sum over targets t of log p(token_t)          h: (n, C), the stream where a target is predicted          W: (V, C), the head

The loss is a sum over tokens, so it goes through the head in chunks, with its gradients (losses/logprobs.py). Positions that are no target
never meet the head. The plain version is losses/sft.py's next_token; equal to it, in value and gradients, by tests/losses/test_fused.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.losses.logprobs import LOGIT_BYTES, loss_from_hidden


def next_token_from_hidden(
    hidden: Tensor, head: Tensor, token_ids: Tensor, loss_mask: Tensor, logit_bytes: int = LOGIT_BYTES
) -> tuple[Tensor, Tensor]:
    """hidden (B, T, C), head (V, C), token_ids (B, T) int64, loss_mask (B, T) bool -> next_token(hidden headT, token_ids, loss_mask):
    (sum of nats over the targets, number of targets), the sum in float32 (float64 for float64 inputs).

    Under autocast the products run in its dtype. Only once differentiable."""
    counted = loss_mask[:, 1:]
    places = F.pad(counted, (0, 1)).flatten().nonzero()[:, 0]                          # (n,): the positions that predict a target
    targets = token_ids[:, 1:][counted]                                                # (n,)
    nats = lambda logprobs, entropy, part: -logprobs.sum()
    each = torch.ones(len(targets), dtype=torch.int64)
    stream = hidden.flatten(0, 1).index_select(0, places)                              # (n, C)
    return loss_from_hidden(stream, head, targets, each, nats, logit_bytes=logit_bytes).loss, counted.sum()
