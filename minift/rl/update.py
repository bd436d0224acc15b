"""One optimizer step of a policy on answers that were rewarded.

    loss = sum over tokens t of w_t [ -min(r_t A_t, clip(r_t) A_t) + beta KL_t - c H_t ]        r_t = p(t) / p_old(t)

    A_t advantages, p_old the policy the answers were drawn from, KL_t an estimate of the distance to the reference (losses/kl.py), H_t the
    entropy, w_t how tokens are averaged (losses/policy.py: per answer, over all tokens, by a constant).

Everything is one number per token, flat: (n,) over the A answers, one after another, so there are no pads that could count (trap 15). The
weights are made of the whole step's lengths before it is cut into micro-batches, so the cut changes nothing. PPO adds a loss on the
values read from the same stream (`Critic`). Where an update is the first on its answers, p_old is p itself: r = 1 exactly, and no pass is
spent on it. Proved in tests/rl/test_update.py."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minift.data.branches import Tree, TreeBatch, rows_of
from minift.losses.kl import KL, k1, k2, k3
from minift.losses.policy import clip_share, clipped_surrogate
from minift.models.transformer import Transformer
from minift.train.answers import loss_of_stream
from minift.train.precision import Precision, autocast


@dataclass(frozen=True)
class Experience:
    """A answers with n tokens in all, and what is to be learned from them."""

    trees: Sequence[Tree]
    advantages: Tensor
    """(n,) float32"""
    weights: Tensor
    """(n,) float32: w_t."""
    old: Tensor | None = None
    """(n,): log p_old; None: the policy itself."""
    reference: Tensor | None = None
    """(n,): log p_ref; None if no KL is asked for."""
    support: Tensor | None = None
    """(n, V / 8) uint8: see rl/rollout.py."""
    old_values: Tensor | None = None
    """(n,): PPO's values when the answers were drawn."""
    returns: Tensor | None = None
    """(n,): what the values should have been."""

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(answer) for tree in self.trees for answer in tree.answers])

    def of_trees(self, chosen: Sequence[int]) -> "Experience":
        """The part of these trees, in this order."""
        ends = torch.tensor([0, *(sum(map(len, tree.answers)) for tree in self.trees)]).cumsum(0).tolist()
        places = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in chosen])
        tokens = {name: value[places] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, trees=[self.trees[i] for i in chosen], **tokens)

    def micro_batches(self, tokens: int) -> Iterator["Experience"]:
        """Parts of at most `tokens` tokens, prompts among them, or of one tree."""
        some: list[int] = []
        for i, tree in enumerate(self.trees):
            if some and sum(self.trees[j].size for j in some) + tree.size > tokens:
                yield self.of_trees(some)
                some = []
            some.append(i)
        yield self.of_trees(some)


@dataclass(frozen=True)
class Objective:
    """The numbers of the loss above."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    """beta, of a KL term in the loss."""
    kl: KL = "k3"
    """Its estimator."""
    entropy_coef: float = 0.0
    """c."""
    temperature: float = 1.0
    """At which the answers were drawn."""


Critic = Callable[[Tensor, TreeBatch, Experience], Tensor]
"""(stream (B T, C), batch, experience) -> the sum of the tokens' value losses, weighted."""


@dataclass(frozen=True)
class Seen:
    """What an update saw, by token, before its step."""

    loss: float
    logprobs: Tensor
    """(n,)"""
    entropy: Tensor
    """(n,)"""
    ratio: Tensor
    """(n,): p / p_old."""
    clipped: float
    """Share of the tokens whose gradient the clip cut off."""


def gradients(
    model: Transformer, experience: Experience, objective: Objective, tokens: int, precision: Precision = "fp32", critic: Critic | None = None,
    entropy: bool = True,
) -> Seen:
    """Add the loss's gradients to the model's; micro-batches of about `tokens` tokens. entropy: watch it, even if it is not in the loss.

    The model is run as it is: dropout off unless it is in training mode."""
    device, found, total = model.norm.weight.device, [], 0.0
    watched = entropy or objective.entropy_coef != 0
    for part in experience.micro_batches(tokens):
        part = replace(part, **{name: value.to(device) for name, value in vars(part).items() if isinstance(value, Tensor)})
        batch = rows_of(part.trees, model.can_branch()).to(device)
        with autocast(precision, device.type):
            stream = model.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches).flatten(0, 1)
            loss = token_loss(part, objective)
            scored = loss_of_stream(model.head, stream, batch, batch.lengths, loss, objective.temperature, part.support, watched)
            value = scored.loss if critic is None else scored.loss + critic(stream, batch, part)
        value.backward()
        total += value.item()
        found.append((scored.logprobs.cpu(), scored.entropy.cpu()))
    logprobs, spread = (torch.cat(parts) for parts in zip(*found))
    old = logprobs if experience.old is None else experience.old
    cut = clip_share(logprobs, old, experience.advantages, clip_low=objective.clip_low, clip_high=objective.clip_high)
    return Seen(total, logprobs, spread, (logprobs - old).exp(), float(cut))


def token_loss(part: Experience, objective: Objective) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """The loss of some tokens of `part`, for losses/logprobs.py."""
    estimate = {"k1": k1, "k2": k2, "k3": k3}[objective.kl]

    def loss(logprobs: Tensor, entropy: Tensor, some: slice) -> Tensor:
        old = logprobs.detach() if part.old is None else part.old[some]
        each = clipped_surrogate(logprobs, old, part.advantages[some], clip_low=objective.clip_low, clip_high=objective.clip_high)
        if objective.kl_coef:
            each = each + objective.kl_coef * estimate(logprobs, part.reference[some])
        if objective.entropy_coef:
            each = each - objective.entropy_coef * entropy
        return (part.weights[some] * each).sum()

    return loss


def take_step(optimizers: Sequence[torch.optim.Optimizer], clip: float) -> float:
    """Clip the gradient, take the step, forget the gradient; returns the gradient's norm before clipping. Raises FloatingPointError, the
    weights untouched, if it is not finite."""
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, clip or float("inf"))
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm.item()}: training stopped before the weights were touched. Try a lower --lr, or --precision fp32")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return norm.item()
