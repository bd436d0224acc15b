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
from typing import Literal

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
from minift.recipes.profile_report import write_profile
from minift.recipes.report import draw_loss
from minift.tokenizer import Tokenizer
from minift.train.loop import LoopConfig, Outcome, fit
from minift.train.optim import optimizers_of
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
    """C: width of the residual stream."""
    layers: int = 6
    """Blocks."""
    heads: int = 4
    """H: query heads; a head is C / H wide."""
    kv_heads: int = 4
    """Key and value heads; fewer than H is grouped-query attention."""
    mlp_size: int = 704
    """Width inside the MLP."""
    context: int = 512
    """T: tokens per row."""
    batch_size: int = 16
    """Rows per micro-batch."""
    dropout: float = 0.0
    """On the embedding and on each residual branch, while training."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
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

    @property
    def interrupted(self) -> bool:
        return self.outcome.stopped == "interrupted"


def run(config: Config, quiet: bool = False) -> Result:
    train_texts, valid_texts = texts(config)
    tokenizer = tokenizers.load(config.tokenizer) if config.tokenizer else tokenizers.train(train_texts, config.vocab_size)
    torch.manual_seed(config.seed)
    model = Transformer(shape(config, tokenizer))
    train_ids, valid_ids = ([document(tokenizer, text) for text in side] for side in (train_texts, valid_texts))
    held_out = min(config.context, max(2, sum(map(len, valid_ids)) // 2))                # a row of 1 token would have no target
    valid = micro_batches(stream_rows(valid_ids, held_out, seed=0), config.batch_size)
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

    epoch(0)                                                                             # too short a text is refused before a folder is made,
    optimizers_of(config.optimizer, model, config.lr, config.weight_decay, config.betas, config.projection)      # and what an optimizer refuses
    folder = open_run(config.out, "pretrain", config, config.overwrite, config.resume)
    outcome = fit(model, epoch, loss, config, folder, evaluate, config.resume, quiet)
    folders.save(model.to(getattr(torch, config.dtype)), tokenizer, folder / "model", overwrite=True)
    draw_loss(folder, "Pre-training")
    write_profile(folder, quiet)
    result = Result(outcome, folder / "model", evaluate()["bits_per_byte"])
    if not quiet:
        print(f"{result.bits_per_byte:.3f} bits per byte of {len(valid_texts)} held-out texts; written: {result.model}")
    return result


def texts(config: Config) -> tuple[Sequence[str], Sequence[str]]:
    """(training texts, validation texts)."""
    if not config.data:
        return pydocs.documents("train", config.packages), pydocs.documents("valid", config.packages)
    return split_rows(read_texts(config.data), fraction=0.05, seed=config.seed, key=lambda text: text)


def shape(config: Config, tokenizer: Tokenizer) -> ModelConfig:
    for name in ("hidden_size", "layers", "heads", "kv_heads", "mlp_size"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: wanted 1 or more")
    if config.hidden_size % (2 * config.heads):
        raise InputError(f"--hidden-size {config.hidden_size} is not a multiple of twice --heads {config.heads}: a head needs an even width to rotate")
    if config.heads % config.kv_heads:
        raise InputError(f"--heads {config.heads} is not a multiple of --kv-heads {config.kv_heads}: each key head serves as many query heads")
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=config.hidden_size, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads, mlp_size=config.mlp_size, max_positions=2 * config.context, dropout=config.dropout,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )


def document(tokenizer: Tokenizer, text: str) -> list[int]:
    """BOS, the text, EOS: the model learns to end as well as to go on."""
    ids = tokenizer.encode(text)
    return ids if tokenizer.eos_id is None or ids[-1:] == [tokenizer.eos_id] else ids + [tokenizer.eos_id]
