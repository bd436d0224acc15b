"""What a policy is held to while it learns from rewards, and what it says of a rollout's tokens.

    log p_ref(token_t)          (n,), at the rollout's temperature, over the tokens it could have drawn: as the policy's own (traps 13, 14)

With an adapter the reference is the policy with the adapter off; a policy that trains its own weights needs a second model for it.
Proved in tests/rl/test_reference.py."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from minift.data.branches import rows_of
from minift.models.transformer import Transformer
from minift.rl.rollout import Rollout
from minift.rl.update import Experience
from minift.train.answers import logprobs_of_answers
from minift.train.precision import Precision, autocast


class Reference:
    """Another model; or the policy inside a context that makes it what it was (`off`, peft.disabled); or, with neither, nothing."""

    def __init__(self, model: Transformer | None = None, off: Callable[[Transformer], contextlib.AbstractContextManager] | None = None):
        self.model, self.off = model, off

    def logprobs(self, policy: Transformer, rollout: Rollout, temperature: float, tokens: int, precision: Precision) -> Tensor | None:
        """(n,), or None without a reference."""
        if self.model is not None:
            return logprobs_of(self.model, rollout, temperature, tokens, precision)
        if self.off is None:
            return None
        with self.off(policy):
            return logprobs_of(policy, rollout, temperature, tokens, precision)


@torch.no_grad()
def logprobs_of(model: Transformer, rollout: Rollout, temperature: float, tokens: int, precision: Precision) -> Tensor:
    """(n,) on the CPU: log p of a rollout's tokens as they were drawn, in the micro-batches of `tokens` tokens that training has."""
    device, was_training, found = model.norm.weight.device, model.training, []
    nothing = torch.zeros(int(rollout.lengths.sum()))
    model.eval()
    try:
        for part in Experience(rollout.trees, nothing, nothing, support=rollout.support).micro_batches(tokens):
            batch = rows_of(part.trees, model.can_branch()).to(device)
            with autocast(precision, device.type):
                support = None if part.support is None else part.support.to(device)
                found.append(logprobs_of_answers(model, batch, temperature, support).cpu())
    finally:
        model.train(was_training)
    return torch.cat(found)
