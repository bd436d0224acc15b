"""Train the embeddings of a few tokens only: the rows of words a fine-tuning adds to the vocabulary.

    E[id] = rows[i]   for id = ids[i], every other row as it was             E: (V, C) frozen      rows: (n, C)
    logits[id] = h rows[i]T   likewise, where the head is tied to the embedding

rows start as the base's own, so step 0 is the base exactly. Where a model's head is tied both sides share the trained rows, as they
share the frozen ones. `models.vocabulary` adds the tokens first (new rows start at the mean of the old ones, trap 43).
Equal to Hugging Face peft's "trainable tokens". Left out: other rows per module. Proved in tests/peft/test_tokens.py."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.errors import InputError
from minift.peft.targets import find, is_embedding, published_names, read_targets
from minift.peft.wrapper import base_at, base_modules


@dataclass(frozen=True)
class NewTokens:
    """The token ids whose rows train."""

    ids: tuple[int, ...]
    """Token ids, each once."""
    target: str = ""
    """The embedding; empty: the model's input embedding ("embed", or what get_input_embeddings() gives)."""

    peft_type = "TRAINABLE_TOKENS"

    def __post_init__(self):
        if not self.ids or len(set(self.ids)) != len(self.ids) or min(self.ids) < 0:
            raise InputError(f"ids of new tokens are {self.ids}: wanted at least one, none twice, none negative")

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        modules = base_modules(model)
        path = next(iter(find(model, [self.target]))) if self.target else _embedding(model, modules)
        embed = modules[path]
        if max(self.ids) >= len(embed.weight):
            raise InputError(f"token {max(self.ids)} is not in the vocabulary of {len(embed.weight)}: add it to the model first")
        rows = embed.weight.detach()[list(self.ids)]
        shared = nn.Parameter(rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True))
        sharing = [p for p, m in modules.items() if isinstance(m, nn.Linear) and m._parameters.get("weight") is embed.weight]
        return {path: EmbeddedRows(shared, self.ids, len(embed.weight)), **{p: HeadRows(shared, self.ids) for p in sharing}}

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        names = published_names(model)
        return {"token_indices": list(self.ids), "target_modules": names[next(iter(small))], "init_weights": True}

    @classmethod
    def from_file(cls, fields: dict) -> "NewTokens":
        target = read_targets(fields)
        if fields.get("init_weights") in (True, False):                           # how rows started; they are in the file
            fields.pop("init_weights")
        if not isinstance(target, str) and len(target) > 1:
            raise InputError(f"target_modules is {target}: minift trains new rows of one embedding")
        return cls(ids=tuple(fields.pop("token_indices", ())), target=target if isinstance(target, str) else target[0])


class EmbeddedRows(nn.Module):
    """base(ids), with the trained rows in place of some."""

    file_names = {"rows": "trainable_tokens_delta"}

    def __init__(self, rows: nn.Parameter, ids: tuple[int, ...], V: int):
        super().__init__()
        self.rows = rows                                                          # (n, C)
        place = torch.full((V,), -1, dtype=torch.int64, device=rows.device)
        place[list(ids)] = torch.arange(len(ids), device=rows.device)
        self.register_buffer("place", place, persistent=False)                    # (V,): which trained row, or -1

    def forward(self, base: nn.Embedding, ids: Tensor) -> Tensor:                 # (...) -> (..., C)
        y, place = base(ids), self.place[ids]                                     # (..., C), (...)
        return torch.where((place >= 0)[..., None], F.embedding(place.clamp(min=0), self.rows).to(y.dtype), y)

    def merged(self, base: nn.Embedding) -> dict[str, Tensor]:
        return {"weight": base.weight.detach().index_copy(0, (self.place >= 0).nonzero()[:, 0], self._in_order().to(base.weight.dtype))}

    def _in_order(self) -> Tensor:
        return self.rows.detach()[self.place[self.place >= 0]]


class HeadRows(nn.Module):
    """base(h), with the logits of some tokens from the trained rows."""

    file_names = {"rows": "trainable_tokens_delta"}

    def __init__(self, rows: nn.Parameter, ids: tuple[int, ...]):
        super().__init__()
        self.rows = rows                                                          # (n, C), the embedding's very rows
        self.register_buffer("ids", torch.tensor(ids, device=rows.device), persistent=False)

    def forward(self, base: nn.Linear, h: Tensor) -> Tensor:                      # (..., C) -> (..., V)
        y, new = base(h), F.linear(h, self.rows.to(h.dtype))                      # (..., V), (..., n)
        if base.bias is not None:
            new = new + base.bias[self.ids]
        return y.index_copy(-1, self.ids, new.to(y.dtype))

    def merged(self, base: nn.Linear) -> dict[str, Tensor]:
        return {"weight": base.weight.detach().index_copy(0, self.ids, self.rows.detach().to(base.weight.dtype))}


def _embedding(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    theirs = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    for path, module in modules.items():
        if is_embedding(module) and (path == "embed" if theirs is None else module is getattr(theirs, "base", theirs)):
            return path
    raise InputError("this model has no input embedding that can be found: name it with target")
