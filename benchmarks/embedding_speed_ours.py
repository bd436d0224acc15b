"""minift's side of benchmarks/embedding_speed.py: the recipe's own loss in the training loop, `minift.embed` for the vectors.

`fit` with `EmbedLoss` is what `minift embed --method full` runs, in rows of as many tokens as it takes by default."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.embedding_speed_case import RATE, TEMPERATURE, Sizes, rows
from benchmarks.turns import Gate
from minift import folder as folders
from minift.embed import embed, token_ids
from minift.models.pooling import Pooling
from minift.recipes.embed import Config, EmbedLoss
from minift.recipes.embed_rows import Row, Rows
from minift.train.loop import fit


def learn_step(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn(gate, folder, "step", sizes.pairs, precision)


def learn_real(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn(gate, folder, "real", sizes.pairs, precision)


def learn_small(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn(gate, folder, "gradcache", sizes.small, precision)


def learn_large(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn(gate, folder, "gradcache", sizes.large, precision)


def learn_cached(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    learn(gate, folder, "gradcache", sizes.large, precision, sizes.small)


def learn(gate: Gate, folder: Path, case: str, size: int, precision: str, mini_batch: int = 0) -> None:
    model, tokenizer = folders.load(folder / "model")
    config = Config(data=("rows",), out=folder / "out", loss="infonce", method="full", lr=RATE, temperature=TEMPERATURE, schedule="constant", warmup=0.0,
                    weight_decay=0.0, betas=(0.9, 0.999), clip=1.0, precision=precision, mini_batch=mini_batch, max_steps=10**6, epochs=10**6, save_every=10**9)  # fmt: skip
    pooling: Pooling = model.pooling
    given = Rows([Row("", tuple(pair)) for pair in rows(folder, case)], lambda texts, side: token_ids(model, tokenizer, texts, pooling), config)
    batches = [given.batch(range(i, i + size)) for i in range(0, len(given.rows) - size + 1, size)]
    loss, last = EmbedLoss(config, pooling), {}

    def each(model, batch):
        total, count = loss(model, batch)
        last["loss"] = total.item() / count
        return total, count

    (folder / "run").mkdir(exist_ok=True)
    gate.open()
    fit(model, lambda epoch: batches, each, config, folder / "run", quiet=True, after_step=lambda step, steps: gate.tick(last["loss"]))


def encode(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    model, tokenizer = folders.load(folder / "model")
    texts = rows(folder, "sentences")
    gate.open()
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            vectors = embed(model, tokenizer, texts)
        np.save(folder / "vectors-minift.npy", vectors.numpy())
        gate.tick(0.0)
