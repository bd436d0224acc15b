"""An encoder: a transformer whose tokens see the whole text, read once, not written token by token (Devlin et al. 2018, arXiv:1810.04805).

    h = blocks(embed_norm(embed[ids] + positions + types))                      (B, T, C)
    mask     logits = norm(act(h W1T + b1)) embedT + b                          (B, T, V)       which token is hidden here?
    pooler   p = tanh(h[first] WpT + bp)                                        (B, C)          what the first token ([CLS]) has gathered
    labels   scores = p WsT + bs                                                (B, K)          K > 0: a classifier on the pooler

The blocks, their weights in files and every adapter are the decoder's: an encoder is ModelConfig(causal=False) with one of these tops.
Embeddings of texts are made from h (embed.py), with no top at all. DistilBERT's classifier has relu in tanh's place.
Left out: dropout on attention weights (attention.py), next-sentence prediction, ModernBERT (two rotations, a joined gate, windows both ways).
Proved in tests/models/test_encoder.py, equal to transformers in tests/parity/test_encoders.py."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.linear import Linear
from minift.models.mlp import ACTIVATIONS
from minift.models.norm import make_norm
from minift.models.ragged import Ragged
from minift.models.scorer import start
from minift.models.transformer import Transformer


class Encoder(Transformer):
    """`Encoder(config)` has random weights; folder.read_model fills in a checkpoint's."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        C, V, K = config.hidden_size, config.vocab_size, config.labels
        masked, pooled = config.top == "mask", config.top == "pooler"
        if K and not pooled:
            raise InputError(f"a classifier reads the pooler, and top is {config.top!r}")
        self.transform, self.transform_norm = (Linear(C, C), make_norm(config)) if masked else (None, None)
        self.head = nn.Linear(C, V) if masked else None                                         # (V, C), with a bias
        self.pooler = nn.Linear(C, C) if pooled else None
        self.score = nn.Linear(C, K) if K else None
        if masked:
            self.head.weight = self.embed.weight
        for part in filter(None, (self.transform, self.head, self.pooler, self.score)):
            self._start(part)

    @classmethod
    def on(cls, model: "Encoder", labels: int, seed: int = 0) -> "Encoder":
        """A classifier with the body of an encoder, whose modules it takes over, its pooler if it has one, and a new head."""
        if not isinstance(model, Encoder) or model.config.labels or "_peft" in model.__dict__:
            raise InputError("a classifier is made of a plain encoder: this is none, has labels already, or an adapter")
        with torch.device("meta"):
            made = cls(dataclasses.replace(model.config, labels=labels, top="pooler"))
        new = {"score": labels} | ({} if model.pooler is not None else {"pooler": model.config.hidden_size})
        for name, child in list(model._modules.items()):
            if name not in ("head", "transform", "transform_norm", *new):
                setattr(made, name, child)
        generator = torch.Generator().manual_seed(seed)
        for name, rows in new.items():
            part = nn.Linear(model.config.hidden_size, rows)
            start(part, generator)
            nn.init.zeros_(part.bias)
            setattr(made, name, part.to(model.embed.weight.device))
        return made.train(model.training)

    def forward(self, token_ids: Tensor | None = None, *, segments: Tensor | None = None, ragged: Ragged | None = None, **doors) -> Tensor:
        """What the top says of B texts: logits (B, T, V), scores (B, K), pooled (B, C), or without a top the stream (B, T, C).

        Arguments as of Transformer.forward; of a padded batch each row is one text that begins at its first place."""
        stream = self.hidden(token_ids, segments=segments, ragged=ragged, **doors)                # (B, T, C)
        if self.config.top == "none":
            return stream
        if self.config.top == "mask":
            return self.masked(stream)
        first = stream[:, 0] if ragged is None else stream[0, ragged.firsts().to(stream.device)]  # (B, C)
        return self.scores(first) if self.config.labels else self.pooled(first)

    def masked(self, stream: Tensor) -> Tensor:
        """(..., C) -> logits (..., V) of the token that belongs at each place."""
        return self.head(self.transform_norm(ACTIVATIONS[self.config.activation](self.transform(stream))))

    def pooled(self, first: Tensor) -> Tensor:
        """(..., C) of first tokens -> (..., C)."""
        out = self.pooler(first)
        return F.relu(out) if self.config.family == "distilbert" else torch.tanh(out)

    def scores(self, first: Tensor) -> Tensor:
        """(..., C) of first tokens -> (..., K), at least in float32. Dropout, while training, between the pooler and the head."""
        pooled = F.dropout(self.pooled(first), self.config.dropout, self.training and self.config.dropout > 0)
        with torch.autocast(first.device.type, enabled=False):
            scores = self.score(pooled.to(self.score.weight.dtype))
            return scores.to(torch.promote_types(scores.dtype, torch.float32))
