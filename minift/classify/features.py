"""Features of texts: what a frozen model makes of them, computed once and kept on disk.

    one text     v                          its embedding (embed.py)                                         (N, C)
    two texts    [u, v, |u - v|, u * v]     (Conneau et al. 2017, arXiv:1705.02364)                          (N, 4 C)

The file is named by a hash of everything the numbers depend on: the model's weights and pooling, the arithmetic, the prompt, the texts in their
order. So a second head on the same texts costs no pass through the model, and another model, text or prompt never meets the wrong file.
Proved in tests/classify/test_features.py. Left out: throwing old files away (delete the folder), features of several layers."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minift.embed import embed, fingerprint
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer
from minift.train.precision import Precision, autocast, fastest

BATCH_TOKENS = 4096


class Features(NamedTuple):
    vectors: Tensor
    """(N, C), of pairs (N, 4 C), float32, on the CPU."""
    file: Path | None
    """Where they are kept."""
    read: bool
    """They were there already."""


def default_cache() -> Path:
    """~/.cache/minift/features, or in $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minift" / "features"


def features(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], *, prompt: str | None = None, cache: Path | None = None,
    precision: Precision = "fp32", name: str | None = None, tokens: int = BATCH_TOKENS,
) -> Features:
    """Of each row's one text, or two. cache: the folder of the files; None: nothing is kept. name: the model's fingerprint, if it is known.

    Each different text runs through the model once. Raises InputError for an empty text."""
    device = model.embed.weight.device.type
    precision = fastest(device) if precision == "auto" else precision
    file = None if cache is None else cache / f"{_key(name or fingerprint(model), precision, prompt, texts)}.npy"
    if file is not None and file.exists():
        with contextlib.suppress(ValueError, EOFError):                               # a damaged file is made anew
            return Features(torch.from_numpy(np.load(file, allow_pickle=False)), file, True)
    different = list(dict.fromkeys(text for row in texts for text in row))
    place = {text: i for i, text in enumerate(different)}
    with autocast(precision, device):
        vectors = embed(model, tokenizer, different, prompt=prompt, tokens=tokens)
    sides = [vectors[[place[text] for text in column]] for column in zip(*texts)]
    found = sides[0] if len(sides) == 1 else torch.cat([*sides, (sides[0] - sides[1]).abs(), sides[0] * sides[1]], dim=1)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.stem}.{os.getpid()}.part")                     # a file is there whole or not at all
        with aside.open("wb") as opened:
            np.save(opened, found.numpy(), allow_pickle=False)
        aside.replace(file)
    return Features(found, file, False)


def _key(name: str, precision: str, prompt: str | None, texts: Sequence[tuple[str, ...]]) -> str:
    seen = hashlib.blake2b(repr((name, precision, prompt, torch.__version__)).encode(), digest_size=16)
    for row in texts:
        for text in row:
            own = text.encode()
            seen.update(len(own).to_bytes(8, "little") + own)                         # so that "ab", "c" is not "a", "bc"
        seen.update(b"\0row")
    return seen.hexdigest()
