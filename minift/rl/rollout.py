"""Rollouts: the policy answers prompts, and what is needed to learn from its answers is kept.

    P prompts, G answers to each -> P trees (data/branches.py), A = P G answers with n tokens in all

Drawn with the KV cache in one batch: prompts may be ragged, finished answers leave the batch (generate.py). Every token is drawn from

    p(token) = softmax(z / tau) over the tokens that top-k, top-p and min-p let through          z: the logits

and scored later under exactly that distribution: the same tau, and the same set of tokens, which is kept as bits with each token
(V / 8 bytes) where a filter cut any off. Scored over all tokens instead, as is usual, an unchanged policy would have ratios
other than 1 to itself (traps 13, 14; the set is kept as in DeepSeek-V3.2, arXiv:2512.02556, section 3.1).
The log-probabilities themselves are not taken from here: rounding differs between a cached step and a whole text. They are made by the
code that trains (train/answers.py), so that ratios start at 1 exactly.
Proved in tests/rl/test_rollout.py. Left out: a policy that samples while another copy learns, prompts cut to fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minift.data.branches import Tree
from minift.errors import InputError
from minift.generate import generate_ids
from minift.models.transformer import Transformer
from minift.sampling import Sampling, row_seeds


@dataclass(frozen=True)
class Rollout:
    """A answers, G to each prompt, prompt by prompt."""

    prompts: list[list[int]]
    answers: list[list[int]]
    """Token ids, the end token included if the answer ended by itself."""
    ended: list[bool]
    """False: cut off at the limit."""
    support: Tensor | None
    """(n, V / 8) uint8: which tokens each token was drawn from; None: from all."""

    @property
    def group(self) -> int:
        """G."""
        return len(self.answers) // len(self.prompts)

    @property
    def trees(self) -> list[Tree]:
        G = self.group
        return [Tree(prompt, self.answers[p * G : (p + 1) * G]) for p, prompt in enumerate(self.prompts)]

    @property
    def lengths(self) -> Tensor:
        """(A,) int64: tokens of each answer."""
        return torch.tensor([len(answer) for answer in self.answers])


def roll_out(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    group: int,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    eos_ids: Sequence[int],
    batch_size: int = 64,
) -> Rollout:
    """G = `group` answers to each of P prompts, drawn from the model as it is. seed: of all draws; the same model gives the same answers."""
    if sampling.temperature == 0:
        raise InputError("a rollout at temperature 0 has nothing to compare: every answer of a prompt would be the same; take 1.0, say")
    if sampling.repetition_penalty != 1.0:
        raise InputError("a repetition penalty changes the distribution with every token drawn, and could not be scored: leave it out")
    asked = [list(prompt) for prompt in prompts for _ in range(group)]
    filtered = any(value is not None for value in (sampling.top_k, sampling.top_p, sampling.min_p))
    supports = [[] for _ in asked] if filtered else None
    answers = generate_ids(
        model, asked, sampling, max_new_tokens=max_new_tokens, seed=row_seeds(seed, len(asked)), eos_ids=eos_ids, batch_size=batch_size,
        supports=supports, exact=True,
    )  # fmt: skip
    ended = [answer[-1] in set(eos_ids) for answer in answers]
    support = None if supports is None else torch.stack([bits for row in supports for bits in row])
    return Rollout([list(prompt) for prompt in prompts], answers, ended, support)
