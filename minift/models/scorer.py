"""A scorer: the decoder with K scores in place of its next-token logits. K = 1 is a reward model, or PPO's value; K > 1 a classifier.

    h = norm(blocks(embed[ids]))       (B, T, C)       s = h WT       (B, T, K)        W: (K, C), no bias

A text's score is read at its LAST REAL TOKEN, which is found by counting tokens, never by looking for a pad or an end token: an end token
inside the prompt, a pad that is the end token, pads on the left or the right, all leave it alone (trap 11). The tail of a batch knows
where its texts end (TreeBatch.ends); `last_tokens` counts it from lengths.
Scores are float32 under autocast: two rewards that differ by 1 % would be one number in bfloat16.
Checkpoint folders are transformers' ...ForSequenceClassification (folder.py reads and writes them as any model). W starts as
normal(0, 1 / sqrt(C + 1)) (Stiennon et al. 2020, arXiv:2009.01325, appendix B: small enough that no score is large at first).
Left out: a bias, an MLP as the head, scores averaged over tokens. Proved in tests/models/test_scorer.py, tests/parity/test_reward_model.py."""

import dataclasses

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.cache import KVCache
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer


class Scorer(Transformer):
    """`Scorer(config)` has random weights, and config.labels scores. There is no output head, so none is stored or trained."""

    def __init__(self, config: ModelConfig):
        if config.labels < 1:
            raise InputError(f"labels is {config.labels}: a scorer gives at least one score")
        super().__init__(config)
        del self.head
        self.score = nn.Linear(config.hidden_size, config.labels, bias=False)               # (K, C)
        if self.score.weight.device.type != "meta":
            start(self.score)

    @classmethod
    def on(cls, model: Transformer, labels: int = 1, seed: int = 0) -> "Scorer":
        """A scorer with the body of a language model, whose modules it takes over (quantized ones too), and a new head. The model's own
        head is dropped."""
        if isinstance(model, Scorer) or "_peft" in model.__dict__:
            raise InputError("a scorer is made of a plain language model: this one has scores already, or an adapter")
        with torch.device("meta"):
            scorer = cls(dataclasses.replace(model.config, labels=labels))
        for name, child in list(model._modules.items()):
            if name != "head":
                setattr(scorer, name, child)
        weight = torch.empty(labels, model.config.hidden_size)
        scorer.score.weight = nn.Parameter(weight)
        start(scorer.score, torch.Generator().manual_seed(seed))
        scorer.score.to(model.norm.weight.device)
        return scorer.train(model.training)

    def forward(
        self,
        token_ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        branches: Tensor | None = None,
        cache: KVCache | None = None,
        capture: dict | None = None,
    ) -> Tensor:
        """Scores (B, T, K) at every position. Arguments as of Transformer.forward."""
        doors = dict(positions=positions, segments=segments, branches=branches, cache=cache, capture=capture)
        return self.scores(self.hidden(token_ids, embeds=embeds, **doors))

    def at(self, places: Tensor, token_ids: Tensor, *, segments: Tensor | None = None, branches: Tensor | None = None) -> Tensor:
        """places (m,) int64 in the B T places of token_ids -> scores (m, K) there; the head sees no other place."""
        stream = self.hidden(token_ids, segments=segments, branches=branches)               # (B, T, C)
        return self.scores(stream.flatten(0, 1)[places])

    def rewards(self, batch) -> Tensor:
        """(A,): the first score of each answer of a data.branches.TreeBatch, read at its last token."""
        one_each = not self.can_branch() and int(batch.branches.max()) == 1                 # one answer behind its prompt is plain text
        return self.at(batch.ends, batch.token_ids, segments=batch.segments, branches=None if one_each else batch.branches)[:, 0]

    def scores(self, stream: Tensor) -> Tensor:
        """(..., C) -> (..., K), in float32."""
        with torch.autocast(stream.device.type, enabled=False):
            return self.score(stream.to(self.score.weight.dtype)).float()


def last_tokens(lengths: Tensor, T: int) -> Tensor:
    """lengths (B,) of right-padded rows of T places -> (B,): the flat place of each row's last real token."""
    if not ((1 <= lengths) & (lengths <= T)).all():
        raise InputError(f"lengths are {lengths.tolist()}: a row of {T} places holds 1 to {T} tokens")
    return torch.arange(len(lengths), device=lengths.device) * T + lengths - 1


def start(head: nn.Linear, generator: torch.Generator | None = None) -> None:
    """normal(0, 1 / sqrt(C + 1)). A seed gives the same head on every device: draw on the CPU."""
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5, generator=generator)
