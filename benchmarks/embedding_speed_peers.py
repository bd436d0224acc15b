"""sentence-transformers' side of benchmarks/embedding_speed.py: its trainer, a bare loop on its model and loss, and `encode`.

The trainer is set so that it loses nothing by its defaults: fused AdamW, no logging, evaluation or saving, no worker processes, rows in order.
The bare loop has its texts as padded tokens beforehand, a tensor for each column, so that it does nothing but the step. bf16 is autocast in both."""

import json
import time
from pathlib import Path

from benchmarks.bare_loop import bare_loop
from benchmarks.embedding_speed_case import RATE, TEMPERATURE, Sizes, rows
from benchmarks.trainers import ticking, train
from benchmarks.turns import Gate


def trainer_step(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    trainer(gate, folder, "step", sizes.pairs, precision)


def trainer_real(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    trainer(gate, folder, "real", sizes.pairs, precision)


def loop_step(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    loop(gate, folder, "step", sizes.pairs, precision)


def loop_real(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    loop(gate, folder, "real", sizes.pairs, precision)


def loop_cached(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    loop(gate, folder, "gradcache", sizes.large, precision, sizes.small)


def body(folder: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder / "model"), device="cpu")


def objective(model, mini_batch: int = 0):
    from sentence_transformers.sentence_transformer import losses

    if mini_batch:
        return losses.CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch)
    return losses.MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)


def trainer(gate: Gate, folder: Path, case: str, size: int, precision: str) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from torch.utils.data import BatchSampler, SequentialSampler

    in_order = lambda dataset, batch_size, drop_last, **_: BatchSampler(SequentialSampler(dataset), batch_size, drop_last)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=size, max_steps=100_000, learning_rate=RATE, lr_scheduler_type="constant",
        optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=1.0, bf16=precision == "bf16", use_cpu=True, batch_sampler=in_order,
        dataloader_num_workers=0, save_strategy="no", eval_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    model = body(folder)
    texts = Dataset.from_list([{"anchor": anchor, "positive": positive} for anchor, positive in rows(folder, case)])
    train(gate, SentenceTransformerTrainer(model=model, args=arguments, train_dataset=texts, loss=objective(model), callbacks=[ticking(gate)]))


def loop(gate: Gate, folder: Path, case: str, size: int, precision: str, mini_batch: int = 0) -> None:
    model = body(folder).train()
    loss, given = objective(model, mini_batch), rows(folder, case)
    batches = [[model.preprocess(list(column)) for column in zip(*given[i : i + size])] for i in range(0, len(given) - size + 1, size)]
    columns_loss = lambda columns: loss([dict(column) for column in columns], None)              # the model adds to the dicts
    bare_loop(gate, model, columns_loss, batches, precision, RATE)


def encode(gate: Gate, folder: Path, sizes: Sizes, precision: str, size: int = 32) -> None:
    import numpy as np
    import torch

    model, texts = body(folder).eval(), rows(folder, "sentences")
    gate.open()
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            vectors = model.encode(texts, batch_size=size, show_progress_bar=False)
        np.save(folder / f"vectors-{size}.npy", vectors)
        gate.tick(0.0)


def encode_best(gate: Gate, folder: Path, sizes: Sizes, precision: str) -> None:
    """At the batch size that is fastest on a part of the texts; its own process looks for it, while nobody else computes."""
    model, texts, took = body(folder).eval(), rows(folder, "sentences")[: sizes.sample], {}
    for size in (4, 8, 16, 32, 64, 128):
        for _ in range(2):                                                   # the second time counts
            start = time.perf_counter()
            model.encode(texts, batch_size=size, show_progress_bar=False)
            took[size] = time.perf_counter() - start
    best = min(took, key=took.get)
    (folder / "best.json").write_text(json.dumps(best))
    encode(gate, folder, sizes, precision, best)
