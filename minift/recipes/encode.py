"""Texts of a file to vectors, and an index of them that can be searched.

    folder/index.json, vectors.npy    search.py's index: which model made it is written down, and another is refused
    folder/texts.jsonl                the texts, in order

Proved in tests/recipes/test_encode.py. Left out: adding to an index."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from minift import folder as folders
from minift.data.records import find, names, records
from minift.embed import embed, fingerprint, pooling_of
from minift.errors import InputError
from minift.files import new_folder, recover, refuse_if_used, write_text
from minift.models.pooling import Mode
from minift.models.sentence_folder import MODULES, read_pooling
from minift.models.transformer import Transformer
from minift.quant import Scheme
from minift.recipes.loading import put_on
from minift.search import Index
from minift.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EmbedderChoice:
    """A model that makes vectors."""

    model: str = "base"
    """A checkpoint folder (an encoder, a sentence-transformers folder, any language model), or the bundled "base"."""
    adapter: Path | None = None
    """An adapter of `minift embed` on it."""
    pooling: Mode | None = None
    """How a text becomes one vector; none: as the adapter's or the model's folder says."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights."""
    quantize: Scheme | None = None
    """Keep the linears in 4 or 8 bits: nf4, fp4, int8 or int4."""

    def load(self) -> tuple[Transformer, Tokenizer]:
        model, tokenizer = folders.embedder(self.model, getattr(torch, self.dtype), self.device, self.quantize)
        if self.adapter is not None:
            put_on(model, recover(self.adapter), self.quantize)
            if (self.adapter / MODULES).exists():
                model.pooling = read_pooling(self.adapter)
        if self.pooling is not None:
            model.pooling = dataclasses.replace(pooling_of(model), mode=self.pooling)
        return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(EmbedderChoice):
    """Embed the texts of a file, and keep them as an index."""

    data: tuple[str, ...]
    """Files or globs: JSONL, JSON, CSV or TSV with a field of texts, or text files (a document each)."""
    out: Path
    """The index folder."""
    column: str = "text"
    """The field that holds the text."""
    prompt: str | None = None
    """The name of one of the model's prompts ("document"), or a text to be put before each; none: the model's default."""
    half: bool = False
    """Keep the vectors in float16: half the space."""
    overwrite: bool = False
    """Replace an earlier index in the folder."""


@dataclass(frozen=True)
class Result:
    index: Path
    texts: int


def run(config: Config, quiet: bool = False) -> Result:
    texts = read_column(config.data, config.column)
    refuse_if_used(config.out, config.overwrite)
    model, tokenizer = config.load()
    vectors = embed(model, tokenizer, texts, prompt=config.prompt)
    index = Index(vectors.half() if config.half else vectors, fingerprint(model))
    with new_folder(config.out, config.overwrite) as aside:
        index.save(aside, overwrite=True)
        write_text(aside / "texts.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    if not quiet:
        print(f"{len(texts)} texts, {vectors.shape[1]} numbers each; written: {config.out}")
    return Result(config.out, len(texts))


def read_column(data, column: str) -> list[str]:
    """The texts of one field of every record. Raises InputError naming file and line for one that is missing, empty or no text."""
    texts = []
    for path in find(data):
        for record in records(path):
            if column not in record.fields:
                raise InputError(f"{record.where}: no field {column!r}; found {names(record.fields)}: name the field of the texts with --column")
            text = record.fields[column]
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{record.where}: the field {column!r} is {text!r:.40}: wanted a text that is not empty")
            texts.append(text)
    return texts
