"""minift's side of benchmarks/training.py: what `minift sft` runs between reading its rows and writing its result.

`fit` with the recipe's own loss, the recipe's own batches of the real rows, the parameters that `choose_parameters` chose (or the adapter that all sides
read). Only settings that the other sides have too are set; a step's lines for metrics.jsonl are written as always."""

from functools import partial
from pathlib import Path

import torch

from benchmarks.training_case import CASES, RATE, Sizes, adapter, base, exact_rows, real_rows
from benchmarks.turns import Gate
from minift import peft
from minift.data.batches import Batch, Example, pad
from minift.peft.training import after_step, settled
from minift.quant.folder import read_model
from minift.recipes import sft
from minift.recipes.tuning import MethodConfig, choose_parameters, with_rate
from minift.train.loop import fit

ENDLESS = 10**9
SAME = dict(lr=RATE, schedule="constant", warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0)
NEVER = dict(epochs=ENDLESS, eval_every=ENDLESS)


def learn(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """All rows of one length."""
    config = MethodConfig(method=CASES[case].method.removeprefix("q"), precision=precision, **SAME, **NEVER)
    batches = [Batch(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in exact_rows(sizes, case)]
    train(gate, folder, case, config, lambda epoch: batches, lambda batch: 1.0)


def packed(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """Real rows in `minift sft`'s default batches."""
    config = MethodConfig(method="full", precision=precision, **SAME, **NEVER)
    train(gate, folder, case, config, sft.batches(examples(folder), config), thousand_tokens)


def bucketed(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    config = MethodConfig(method="full", precision=precision, batching="bucketed", **SAME, **NEVER)
    train(gate, folder, case, config, sft.batches(examples(folder), config), thousand_tokens)


def padded(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """The other sides' default batches: the rows as they come, 8 at a time."""
    config, rows = MethodConfig(method="full", precision=precision, **SAME, **NEVER), examples(folder)
    batches = [pad(rows[i : i + sizes.rows]) for i in range(0, len(rows) - sizes.rows + 1, sizes.rows)]
    train(gate, folder, case, config, lambda epoch: batches, thousand_tokens)


def unasked(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    """Real rows, no option but --method full."""
    config = with_rate(MethodConfig(method="full", **NEVER))
    train(gate, folder, case, config, sft.batches(examples(folder), config), thousand_tokens)


def examples(folder: Path) -> list[Example]:
    return [Example(asked + answer, [False] * len(asked) + [True] * len(answer)) for asked, answer in real_rows(folder)]


def thousand_tokens(batch: Batch) -> float:
    return batch.token_ids.count_nonzero().item() / 1000


def train(gate: Gate, folder: Path, case: str, config: MethodConfig, batches, work) -> None:
    model = read_model(base(folder, case), quantize="nf4" if CASES[case].method == "qlora" else None)
    if CASES[case].method == "full":
        choose_parameters(model, config)
    else:
        peft.load(model, adapter(folder, case))
    out = folder / "run"
    out.mkdir(exist_ok=True)
    last, tell = {}, partial(after_step, model)

    def each(model, batch):
        total, count = sft.loss(model, batch)
        last.update(loss=total.item() / int(count), work=work(batch))
        return total, count

    def after(step: int, steps: int) -> None:
        tell(step, steps)
        gate.tick(last["loss"], last["work"])

    gate.open()
    fit(model, batches, each, config, out, quiet=True, after_step=after, counts=partial(settled, model))
