"""A checkpoint's parameters one at a time, for who compares it with a model and has no room for two.

    tuned = Parameters("folder")
    change = tuned["blocks.0.attention.q.weight"] - model.blocks[0].attention.q.weight

Names and shapes are those of our Transformer, checked as read_model checks them; nothing is read before it is asked for.
Proved in tests/models/test_folder.py."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minift.models.folder import match, read_config, skeleton, wanted_tensors
from minift.models.stored import read, stored


class Parameters(Mapping[str, Tensor]):
    """Our parameter name -> its tensor, read in float32 at each look-up; a tied head is there under both its names."""

    def __init__(self, folder: str | Path):
        self.config = read_config(folder)
        self._found = match(self.config, wanted_tensors(self.config, skeleton(self.config)), stored(Path(folder)), Path(folder))
        if self.config.tie_embeddings:
            self._found["head.weight"] = self._found["embed.weight"]

    def __getitem__(self, name: str) -> Tensor:
        return read(*self._found[name], torch.float32, "cpu")

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found                             # Mapping would read the tensor to find out
