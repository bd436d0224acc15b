"""Pre-training: a tokenizer and a small decoder from nothing but text.

    text -> sentencepiece tokenizer (V pieces) -> rows of T tokens -> next-token loss on every token

Without --data the text is the documentation on this machine (minift/data/pydocs.py); this is how the bundled base model was
made, with the command in docs/base_model.md. With --data, any text, JSONL, CSV or JSON files.
Documents lie end to end in the rows, each its own segment, so no token looks into another document.
Progress is judged by bits per byte of held-out text: unlike nats per token it does not depend on the tokenizer.
Proved in tests/recipes/test_pretrain.py. Left out: data mixing, curricula, several machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch

from minift import folder as folders
from minift import tokenizer as tokenizers
from minift.data import pydocs
from minift.data.batches import micro_batches, stream_rows
from minift.data.sources import read_texts
from minift.data.split import split_rows
from minift.errors import InputError
from minift.losses.sft import next_token
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer
from minift.train.loop import LoopConfig, Outcome, fit
from minift.train.precision import autocast
from minift.train.run import open_run


@dataclass(frozen=True, kw_only=True)
class Config(LoopConfig):
    """Train a tokenizer and a small LLaMA-shaped model from scratch."""

    out: Path
    """The run folder; the model is written to its folder `model`."""
    data: tuple[str, ...] = ()
    """Text, JSONL, JSON or CSV files or globs; none: the Python documentation on this machine."""
    packages: tuple[str, ...] = pydocs.BASE_PACKAGES
    """Without --data: whose docstrings; "python" is the standard library."""
    tokenizer: Path | None = None
    """Use this folder's tokenizer instead of training one."""
    vocab_size: int = 4096
    """Pieces of a newly trained tokenizer."""
    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    mlp_size: int = 704
    context: int = 512
    """T: tokens per row."""
    batch_size: int = 16
    """Rows per micro-batch."""
    dropout: float = 0.0
    dtype: str = "bfloat16"
    """Of the weights as written."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    model: Path
    """The written model folder."""
    bits_per_byte: float
    """Of the validation text, rows of T tokens."""


def run(config: Config, quiet: bool = False) -> Result:
    train_texts, valid_texts = texts(config)
    tokenizer = tokenizers.load(config.tokenizer) if config.tokenizer else tokenizers.train(train_texts, config.vocab_size)
    model = Transformer(shape(config, tokenizer))
    train_ids, valid_ids = ([document(tokenizer, text) for text in side] for side in (train_texts, valid_texts))
    folder = open_run(config.out, "pretrain", config, config.overwrite, config.resume)

    valid = micro_batches(stream_rows(valid_ids, min(config.context, sum(map(len, valid_ids)) // 2), seed=0), config.batch_size)
    nats_to_bits = sum(map(len, valid_ids)) / sum(len(text.encode()) for text in valid_texts) / log(2)   # tokens per byte / ln 2

    def loss(model, batch):
        return next_token(model(batch.token_ids, segments=batch.segments), batch.token_ids, batch.loss_mask)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        model.eval()
        with autocast(config.precision):
            sums = [loss(model, batch) for batch in valid]
        nats = sum(total.item() for total, _ in sums) / sum(count.item() for _, count in sums)
        return {"loss": nats, "bits_per_byte": nats * nats_to_bits}

    def epoch(number: int):
        return micro_batches(stream_rows(train_ids, config.context, config.seed + number), config.batch_size, config.seed + number)

    torch.manual_seed(config.seed)
    outcome = fit(model, epoch, loss, config, folder, evaluate, config.resume, quiet)
    folders.save(model.to(getattr(torch, config.dtype)), tokenizer, folder / "model", overwrite=True)
    return Result(outcome, folder / "model", evaluate()["bits_per_byte"])


def texts(config: Config) -> tuple[Sequence[str], Sequence[str]]:
    """(training texts, validation texts)."""
    if not config.data:
        return pydocs.documents("train", config.packages), pydocs.documents("valid", config.packages)
    return split_rows(read_texts(config.data), fraction=0.05, seed=config.seed, key=lambda text: text)


def shape(config: Config, tokenizer: Tokenizer) -> ModelConfig:
    if config.hidden_size % config.heads:
        raise InputError(f"--hidden-size {config.hidden_size} is not a multiple of --heads {config.heads}")
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=config.hidden_size, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads, mlp_size=config.mlp_size, max_positions=2 * config.context, dropout=config.dropout,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )


def document(tokenizer: Tokenizer, text: str) -> list[int]:
    """BOS, the text, EOS: the model learns to end as well as to go on."""
    ids = tokenizer.encode(text)
    return ids if tokenizer.eos_id is None or ids[-1:] == [tokenizer.eos_id] else ids + [tokenizer.eos_id]
