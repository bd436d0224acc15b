"""What a model says of answers: their log-probabilities, or a loss made of those. Between data/branches.py and losses/logprobs.py.

    TreeBatch -> stream (B, T, C) -> the n places where an answer token is predicted (n, C) -> head, chunk by chunk -> log p (n,), loss

Prompts never meet the head. A head that has an adapter on it or lies in 4 bits has to be called, and then the (n, V) logits exist.
Proved in tests/train/test_answers.py."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minift.data.branches import TreeBatch
from minift.losses.logprobs import Loss, Scored, entropy_of, loss_from_hidden, of_tokens, unpack_support
from minift.models.linear import fast_products
from minift.peft.wrapper import plain_weight


def loss_of_answers(
    model: nn.Module,
    batch: TreeBatch,
    groups: Tensor | Sequence[int],
    loss: Loss,
    temperature: float = 1.0,
    support: Tensor | None = None,
    entropy: bool = False,
) -> Scored:
    """losses/logprobs.py's loss_from_hidden for the answers of `batch`; groups: tokens of each group (lengths: one answer each)."""
    hidden = model.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches)
    return loss_of_stream(model.head, hidden.flatten(0, 1), batch, groups, loss, temperature, support, entropy)


def loss_of_stream(
    head: nn.Module,
    stream: Tensor,
    batch: TreeBatch,
    groups: Tensor | Sequence[int],
    loss: Loss,
    temperature: float = 1.0,
    support: Tensor | None = None,
    entropy: bool = False,
) -> Scored:
    """The same of a stream (B T, C) that has been made already, for a model whose value head reads it too."""
    hidden, weight = stream.index_select(0, batch.places), plain_weight(head)           # (n, C): a prompt's last token once for each answer
    if weight is not None:
        with fast_products():
            return loss_from_hidden(hidden, weight, batch.tokens, groups, loss, temperature, support, entropy)
    logits = head(hidden)                                                               # (n, V)
    allowed = None if support is None else unpack_support(support, logits.shape[1])
    logprobs = of_tokens(logits, batch.tokens, temperature, allowed)
    spread = entropy_of(logits, temperature, allowed) if entropy else logprobs.new_empty(0)
    return Scored(loss(logprobs, spread, slice(0, len(logprobs))), logprobs.detach(), spread.detach())


@torch.no_grad()
def logprobs_of_answers(model: nn.Module, batch: TreeBatch, temperature: float = 1.0, support: Tensor | None = None) -> Tensor:
    """(n,): log p of every answer token, by the code that trains on them: equal policies give equal numbers (trap 13)."""
    zero = lambda logprobs, entropy, part: logprobs.new_zeros(())
    return loss_of_answers(model, batch, batch.lengths, zero, temperature, support).logprobs
