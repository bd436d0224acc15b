"""One row of the compare table: one method, measured in a process of its own, so that its memory is its own.

    for each candidate rate   load, attach, train with seed 0, loss on the validation rows      the best rate's run is seed 0's
    for each further seed     load, attach, train at that rate
    for each seed             loss, ROUGE-L and PEP 257 on held-out rows; perplexity on text of pre-training's kind

Every method gets the same rows in the same order, as many candidate rates and as many steps. What is measured, and how:
    memory        the largest resident size of the process while it trains: Python, torch, the model, the rows, activations, gradients,
                  optimizer; and the part of it that came on top of the loaded model. Read before any evaluation, which may need more
    time          between two training passes, median over all steps of all runs but the first of each run (warm-up)
    slowdown      time to generate the same number of tokens, the method (not merged) against a plain base model, in turns; median of ratios
A child's ru_maxrss begins at its parent's size (Linux keeps it over fork and exec), so where there is /proc, that is read instead.
Proved in tests/recipes/test_compare.py. Left out: memory of GPUs."""

import json
import math
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minift import folder as folders
from minift import peft
from minift import tokenizer as tokenizers
from minift.data.batches import Batch, Example
from minift.data.examples import build, prompt_ids
from minift.errors import InputError
from minift.evaluate.forgetting import forgetting
from minift.evaluate.perplexity import Perplexity
from minift.files import write_text
from minift.generate import generate_ids
from minift.models.transformer import Transformer
from minift.peft.training import after_step
from minift.recipes import sft
from minift.recipes.compare_task import Measured, Quality, Task
from minift.recipes.docstrings import scores
from minift.recipes.loading import use_template
from minift.recipes.methods import METHODS
from minift.tokenizer import Tokenizer
from minift.train.kept import Checkpoints
from minift.train.loop import fit

WARM_UP = 3
"""Steps at the start of each run that are not timed."""

OPTIONS = {"bitfit": {"add_missing": "true"}}
"""Method -> options that differ from its defaults: the bundled model has no biases, so BitFit gives it some, which start at zero."""


@dataclass
class Watch:
    """sft's loss, noting for each training pass when it began, on how many tokens it worked, and how large the process had been by then."""

    resident: int
    """Bytes in memory with the model loaded and nothing attached."""
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    peak: int = 0

    def __call__(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        self.tokens.append(batch.token_ids.numel() if batch.segments is None else int((batch.segments > 0).sum()))
        self.peak = memory()[1]
        self.times.append(time.perf_counter())
        return sft.loss(model, batch)

    def seconds(self) -> list[float]:
        """From one pass to the next, without the first WARM_UP if there are more."""
        between = [b - a for a, b in zip(self.times, self.times[1:])]
        return between[WARM_UP:] or between


@dataclass
class Trained:
    model: Transformer
    config: sft.MethodConfig
    loss: float
    """On the validation rows."""
    counts: peft.Counts
    optimizer_bytes: int
    watch: Watch


def work(task: Task, method: str) -> Measured:
    """Search, train, evaluate. Raises what the method raises."""
    began = time.perf_counter()
    tokenizer = tokenizers.load(folders.locate(task.model))
    use_template(tokenizer, [*task.train, *task.valid, *task.judged], None)
    making = dict(max_length=task.max_length)
    train_set, valid_set, judged_set = (build(rows, tokenizer, **making)[0] for rows in (task.train, task.valid, task.judged))
    sides, search, watches, best = (tokenizer, train_set, valid_set), {}, [], None
    for factor in task.rates:
        rate = factor * METHODS[method].lr
        try:
            run = train(task, method, rate, 0, *sides)
        except FloatingPointError:                                     # diverged: a rate like the others, only the worst
            search[f"{rate:g}"] = math.inf
            continue
        search[f"{rate:g}"] = run.loss
        watches.append(run.watch)
        if best is None or run.loss < best.loss:
            best = run
    if best is None:
        raise FloatingPointError(f"the loss was not finite at any of the rates {', '.join(search)}")
    qualities = [judge(task, best.model, tokenizer, judged_set)]
    file_bytes, slow, refusal = finished(task, best, tokenizer)
    for seed in range(1, task.seeds):
        run = train(task, method, best.config.lr, seed, *sides)
        watches.append(run.watch)
        qualities.append(judge(task, run.model, tokenizer, judged_set))
    step = statistics.median([seconds for watch in watches for seconds in watch.seconds()])
    return Measured(
        trained=best.counts.trained,
        total=best.counts.total,
        file_bytes=file_bytes,
        gradient_bytes=best.counts.bytes,
        optimizer_bytes=best.optimizer_bytes,
        peak_bytes=watches[0].peak,
        training_bytes=watches[0].peak - watches[0].resident,
        ms_per_step=1000 * step,
        tokens_per_s=statistics.median([tokens for watch in watches for tokens in watch.tokens]) / step,
        slowdown=slow,
        whole=METHODS[method].whole,
        unmergeable=refusal,
        rate=best.config.lr,
        search=search,
        qualities=tuple(qualities),
        seconds=time.perf_counter() - began,
    )


def train(
    task: Task, method: str, rate: float, seed: int, tokenizer: Tokenizer, train_set: Sequence[Example], valid_set: Sequence[Example]
) -> Trained:
    """One run from the base model."""
    config = sft.MethodConfig(
        method=method, options=OPTIONS.get(method, {}), lr=rate, seed=seed, epochs=1e6, max_steps=task.steps, eval_every=task.steps, batch_tokens=task.batch_tokens,
        precision=task.precision, quantize=task.quantize,
    )  # fmt: skip
    model, _ = folders.decoder(task.model, quantize=sft.loaded_in(config))
    watch = Watch(memory()[0])
    sft.choose_parameters(model, config, tokenizer)
    counts = peft.trainable(model)
    with tempfile.TemporaryDirectory() as folder:
        tell = lambda step, steps: after_step(model, step, steps)
        outcome = fit(model, sft.batches(train_set, config), watch, config, Path(folder), quiet=True, after_step=tell)
        states = Checkpoints(Path(folder)).newest()["optimizers"]
    if outcome.stopped == "interrupted":
        raise KeyboardInterrupt
    loss = sft.evaluate(model, valid_set, config)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss is {loss}")
    kept = [value for state in states for values in state["state"].values() for value in values.values()]
    optimizer_bytes = sum(value.nbytes for value in kept if isinstance(value, torch.Tensor) and value.ndim)     # 0-d: a step counter
    return Trained(model, config, loss, counts, optimizer_bytes, watch)


def judge(task: Task, model: Transformer, tokenizer: Tokenizer, judged_set: Sequence[Example]) -> Quality:
    found = scores(model, tokenizer, task.judged, judged_set, task.new_tokens, one_line=task.docstrings)
    text = forgetting(model, task.windows, Perplexity(math.log(task.before.perplexity), task.window_targets))
    return Quality(found.loss, found.rouge_l, found.pep257 if task.docstrings else None, text.after.perplexity)


def finished(task: Task, run: Trained, tokenizer: Tokenizer) -> tuple[int, float, str | None]:
    """(bytes of the result's tensors, slowdown of generation, why it cannot be merged)."""
    with tempfile.TemporaryDirectory() as folder:
        written = sft.write_result(run.model, tokenizer, run.config, Path(folder), base=task.model)
        file_bytes = sum(file.stat().st_size for file in written.rglob("*.safetensors"))
    base, _ = folders.decoder(task.model, quantize=task.quantize)
    prompts = [prompt_ids(row, tokenizer) for row in task.judged[:8]]
    slow = slowdown(base, run.model, prompts, task.rounds)
    if not peft.names(run.model):
        return file_bytes, slow, None
    try:
        peft.merge(run.model)
    except InputError as error:
        return file_bytes, slow, str(error)
    return file_bytes, slow, None


def slowdown(base: Transformer, model: Transformer, prompts: Sequence[Sequence[int]], rounds: int, new_tokens: int = 16) -> float:
    """Median over `rounds` of (seconds of model / seconds of base), each pair measured back to back, in alternating order."""

    def seconds(one: Transformer) -> float:
        start = time.perf_counter()
        generate_ids(one, prompts, max_new_tokens=new_tokens, eos_ids=())
        return time.perf_counter() - start

    seconds(base), seconds(model)                                       # warm-up
    ratios = []
    for number in range(rounds):
        first, second = (base, model) if number % 2 else (model, base)
        taken = {id(first): seconds(first), id(second): seconds(second)}
        ratios.append(taken[id(model)] / taken[id(base)])
    return statistics.median(ratios)


def memory() -> tuple[int, int]:
    """Bytes of this process in memory: (now, at most until now). Without /proc, the second stands for both."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return most, most


def main(arguments: Sequence[str]) -> None:
    """FOLDER METHOD: read FOLDER/task.json, write FOLDER/rows/METHOD.json: the numbers, or the first line of what went wrong."""
    folder, method = Path(arguments[0]), arguments[1]
    try:
        row = {"method": method, **asdict(work(Task.read(folder / "task.json"), method))}
    except Exception as error:
        traceback.print_exc()
        text = (str(error) or "no message").splitlines()[0]
        row = {"method": method, "error": text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"}
    write_text(folder / "rows" / f"{method}.json", json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
