"""One vector for a text: what a text's hidden states (L, C) become.

    cls       h[0]                                     BERT's first token, which was trained to gather
    mean      sum_t h[t] / L                           Sentence-BERT's choice (Reimers and Gurevych 2019, arXiv:1908.10084)
    max       max_t h[t], each number by itself
    last      h[L - 1]                                 decoders: the only token that has seen all others
    weighted  sum_t (t + 1) h[t] / sum_t (t + 1)       decoders: later tokens have seen more (SGPT, Muennighoff 2022, arXiv:2202.08904)

Where tokens are counted, pads are not there: texts lie end to end (ragged.py), so a mean is over a text's own tokens and a last token is the
text's (traps 9-11). A decoder may be let see the whole text while it embeds (`bidirectional`; LLM2Vec, BehnamGhader et al. 2024,
arXiv:2404.05961): it was not made for that, and has to be tuned with it. `normalize` divides by the length of the vector, after which a dot product is a cosine.
Proved in tests/models/test_pooling.py, equal to sentence-transformers in tests/parity/test_sentence_transformers.py. Left out: several poolings
side by side, dense layers behind them, leaving a prompt's tokens out of the mean."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.models.ragged import Ragged

Mode = Literal["cls", "mean", "max", "last", "weighted"]


@dataclass(frozen=True)
class Pooling:
    """How a model's folder says its embeddings are made."""

    mode: Mode = "mean"
    normalize: bool = True
    """Divide each vector by its length."""
    max_length: int | None = None
    """Tokens of a text that are read, special ones included; None: as many as the model has positions."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Name -> what is put before a text of that kind ("query": "query: ")."""
    default_prompt: str | None = None
    """The name of the one that is put before a text of no stated kind."""
    bidirectional: bool = False
    """A decoder's tokens see the whole text. Its next tokens are still predicted as ever."""


def pool(stream: Tensor, ragged: Ragged, mode: Mode) -> Tensor:
    """Hidden states (N, C) of texts that lie as `ragged` says -> (B, C), at least float32."""
    return torch.cat([_run(states, mode) for states in ragged.batches(stream.to(torch.promote_types(stream.dtype, torch.float32)))])


def _run(states: Tensor, mode: Mode) -> Tensor:
    """(texts, L, C) of one length -> (texts, C)."""
    if mode == "cls":
        return states[:, 0]
    if mode == "last":
        return states[:, -1]
    if mode == "max":
        return states.amax(1)
    if mode == "mean":
        return states.mean(1)
    weights = torch.arange(1, states.shape[1] + 1, dtype=states.dtype, device=states.device)
    return torch.einsum("nlc,l->nc", states, weights / weights.sum())


def shortened(vectors: Tensor, dim: int | None, normalize: bool) -> Tensor:
    """The first `dim` numbers of each vector (..., C), and then their length made 1: Matryoshka's order."""
    vectors = vectors if dim is None else vectors[..., :dim]
    return F.normalize(vectors, dim=-1) if normalize else vectors
