"""What the measured table shows that tables written from memory get wrong: sentences made from its numbers, whichever way those fall.

Each finding is a function of the rows; one that the rows cannot answer (no full fine-tuning among them, say) returns "".
Proved in tests/recipes/test_compare.py."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from minift.recipes.compare_plots import kind
from minift.recipes.compare_row import OPTIONS
from minift.recipes.compare_table import forgetting, markdown, rank_correlation, share, size
from minift.recipes.compare_task import Measured, Task

Rows = dict[str, Measured]


def least_memory(rows: Rows) -> str:
    few, least = min(rows, key=lambda n: rows[n].trained), min(rows, key=lambda n: rows[n].training_bytes)
    rho = rank_correlation([r.trained for r in rows.values()], [r.training_bytes for r in rows.values()])
    link = f"Over all {len(rows)} methods the rank correlation of trained parameters and training memory is {rho:.2f} (1: the same order)."
    a, b = rows[few], rows[least]
    if few == least:
        return f"**Fewest trained is least memory, here.** {few}: {a.trained:,} numbers, {size(a.training_bytes)} above the loaded model. {link}"
    return (
        f"**Fewest trained parameters is not least memory.** {few} trains the fewest, {a.trained:,}, and needs {size(a.training_bytes)} above the"
        f" loaded model; {least} trains {b.trained / a.trained:,.0f} times as many and needs {size(b.training_bytes)}. {link}"
    )


def optimizer_is_not_memory(rows: Rows) -> str:
    small = {name: row for name, row in rows.items() if share(row) < 5}
    if "full" not in rows or not small:
        return ""
    full, states = rows["full"], lambda row: row.gradient_bytes + row.optimizer_bytes
    saved, kept = median(1 - states(r) / states(full) for r in small.values()), median(r.training_bytes / full.training_bytes for r in small.values())
    part = states(full) / full.training_bytes
    return (
        f"**Gradients and optimizer states are {100 * part:.0f} % of full fine-tuning's training memory here** ({size(states(full))} of"
        f" {size(full.training_bytes)}). Methods that train under 5 % ({len(small)} of {len(rows)}) save {100 * saved:.1f} % of them, and still take"
        f" {100 * kept:.0f} % of full's training memory (medians): the rest is activations, which no count of parameters shows. With a larger model"
        " and shorter texts the share of the states grows; with a smaller model and longer texts it shrinks."
    )


def step_time(rows: Rows) -> str:
    if "full" not in rows or len(rows) < 2:
        return ""
    pace = {name: row.ms_per_step / rows["full"].ms_per_step for name, row in rows.items() if name != "full"}
    slower = sorted((name for name in pace if pace[name] > 1.02), key=lambda name: -pace[name])
    quick, slow = min(pace, key=pace.get), max(pace, key=pace.get)
    opening = "Fewer trained parameters is not a faster step." if slower else "Every method steps faster than full fine-tuning, or as fast."
    named = f" ({', '.join(slower)})" if slower else ""
    return (
        f"**{opening}** Over 2 % longer per step than full fine-tuning: {len(slower)} of {len(pace)}{named}. The fastest, {quick}, takes"
        f" {pace[quick]:.2f} of full's time, the slowest, {slow}, {pace[slow]:.2f}: the forward pass and the gradient that flows through the frozen"
        " layers remain, and small modules add work of their own."
    )


def inference(rows: Rows) -> str:
    merging = {n: r.slowdown for n, r in rows.items() if kind(r) == "can be merged"}
    staying = {n: r.slowdown for n, r in rows.items() if kind(r) == "stays beside the model"}
    plain = [r.slowdown for r in rows.values() if r.whole]
    said = []
    if merging:
        said.append(
            f'**"No inference cost" means "once merged".** Left beside the weights, what can be merged takes {_range(merging)} times the'
            f" base's time to generate ({_listed(merging)}); merged it has the base's shape, and takes 1 by construction."
        )
    if staying:
        said.append(f"What cannot be merged keeps its {_range(staying)}: {_listed(staying)}.")
    if plain:
        said.append(f"The measurement's own error: whole checkpoints, which are 1 by construction, came out at {_range(dict(enumerate(plain)))}.")
    return " ".join(said)


def quality(task: Task, rows: Rows) -> str:
    loss, off = {n: r.mean("loss") for n, r in rows.items()}, {n: r.spread("loss") for n, r in rows.items()}
    best = min(loss, key=loss.get)
    rho = rank_correlation([r.trained for r in rows.values()], [-value for value in loss.values()])
    text = (
        f"**More trained parameters is {'not simply ' if rho < 0.9 else ''}better.** The rank correlation of trained parameters and quality is {rho:.2f}."
        f" The best held-out loss is {best}'s, {loss[best]:.3f}, with {share(rows[best]):.3g} % trained"
    )
    if "full" in rows and best != "full":
        beat = [name for name in rows if loss[name] < loss["full"]]
        text += f"; {len(beat)} of {len(rows) - 1} methods beat full fine-tuning ({loss['full']:.3f}) at this number of steps"
    if task.seeds == 1:
        return text + ". One seed tells nothing of chance: read no order out of small differences."
    close = [name for name in rows if name != best and loss[name] - loss[best] <= (off[name] ** 2 + off[best] ** 2) ** 0.5]
    if not close:
        return text + ". No other lies within one standard deviation of it."
    return text + f". Within one standard deviation of it: {', '.join(close)}. {task.seeds} seeds do not order those; a table without spreads would."


def frozen_forgets(task: Task, rows: Rows) -> str:
    ratio = {name: forgetting(task, row) for name, row in rows.items()}
    beside = {name: value for name, value in ratio.items() if not rows[name].whole}
    if not beside:
        return ""
    lost = [name for name, value in beside.items() if value > 1.01]
    rho = rank_correlation([r.mean("loss") for r in rows.values()], [-value for value in ratio.values()])
    opening = "A frozen base forgets all the same." if lost else "With these frozen bases nothing was forgotten."
    text = f"**{opening}** Perplexity on prose rises by over 1 % with {len(lost)} of {len(beside)} adapters; after / before is {_range(beside, 3)}"
    if "full" in ratio:
        more = [name for name in beside if ratio[name] > ratio["full"]]
        text += f", with full fine-tuning {ratio['full']:.3f}" + (f"; more than that: {', '.join(more)}" if more else "; none is above that")
    return text + (
        f". The base's weights are untouched, but the model with the adapter on is another one; taken off, it is the base again. Rank correlation"
        f" of how much is learned with how much is forgotten: {rho:.2f}."
    )


def files(rows: Rows) -> str:
    beside = {name: row.file_bytes / (4 * row.trained) for name, row in rows.items() if not row.whole}
    odd = {name: value for name, value in beside.items() if not 0.8 <= value <= 1.25}
    if not odd:
        return ""
    return (
        "**The file is not the trained parameters times four bytes** for "
        + ", ".join(f"{name} ({value:.2g} times that)" for name, value in sorted(odd.items(), key=lambda item: -item[1]))
        + ": names and headers outweigh a few numbers, some files hold more than was trained, others less (what is computed away at the end)."
    )


def rate_edges(task: Task, rows: Rows) -> str:
    low, high = ([name for name, row in rows.items() if row.rate == pick(map(float, row.search))] for pick in (min, max))
    edges = [f"the {word} rate was best for {len(names)} ({', '.join(names)})" for word, names in (("largest", high), ("smallest", low)) if names]
    if len(task.rates) < 3 or not edges:                                 # of two candidates, each is an edge
        return ""
    return (
        f"**A rate tuned for one is not tuned for all.** Of {len(task.rates)} candidates per method, {'; '.join(edges)}. Those would perhaps gain"
        " from a wider search; in a table with one rate for all, or each paper's own, the loss of the others is the rate's, not the method's."
    )


def findings(task: Task, rows: Rows) -> list[str]:
    if not rows:
        return []
    said = [
        least_memory(rows), optimizer_is_not_memory(rows), step_time(rows), inference(rows), quality(task, rows), frozen_forgets(task, rows), files(rows),
        rate_edges(task, rows),
    ]  # fmt: skip
    return [text for text in said if text]


def report(task: Task, rows: dict[str, Measured | str], left_out: Sequence[str], seconds: float) -> str:
    """The page: what was done, on what, the table, the pictures, and what they say."""
    good = {name: row for name, row in rows.items() if isinstance(row, Measured)}
    what = "say what a Python function does, from its signature" if task.docstrings else "answer the questions of the given file"
    spread = "± is the sample standard deviation over the seeds (order of the rows, new weights)" if task.seeds > 1 else "One seed: no spread is known"
    in_bits = f" in {task.quantize}" if task.quantize else ""
    why = "they need an option of their own, or train what is quantized" if task.quantize else "they need an option of their own"
    not_run = f" Left out, as {why}: {', '.join(left_out)}." if left_out else ""
    given = [f"{name} with {key} {value}" for name, options in OPTIONS.items() if name in rows for key, value in options.items()]
    own = f" Options other than the methods' own defaults: {', '.join(given)}." if given else ""
    said = "\n".join(f"- {text}" for text in findings(task, good))
    pictures = "![held-out loss against trained parameters](quality.png)\n\n![what each method costs](costs.png)" if good else ""
    return f"""# {len(good)} fine-tuning methods, measured

**Task.** {what[0].upper() + what[1:]}; model `{task.model}`{in_bits}; {len(task.train):,} rows to learn from, {len(task.valid)} that choose the rate, {len(task.judged)} that judge.
Every method: {task.steps} steps of at most {task.batch_tokens} tokens, the same rows in the same order, {task.precision}, AdamW, cosine; the best of {len(task.rates)} rates
({", ".join(f"{rate:g}" for rate in task.rates)} times its default), {task.seeds} seed{"s" if task.seeds > 1 else ""}. {spread}.{not_run}{own}

**Machine.** {machine()}. {sum(row.seconds for row in good.values()) / 60:.1f} minutes for the rows, one at a time; {seconds / 60:.1f} minutes for this call.

{markdown(task, rows)}
{pictures}

## What tables written from memory get wrong

{said}

## How it was measured

Each method ran in a process of its own. *Peak memory* is the largest resident size of that process while it trains: Python and torch
(the greater part with a small model), the model, the rows, activations, gradients, optimizer. *Above the loaded model* is what came on top of
the process with model and rows loaded. *ms/step* is a median over all steps but each run's first ones, validation excluded. *Generation* is timed in turns
with a plain base model, not merged. *Forgetting* is perplexity after / before on {len(task.windows)} windows of {len(task.windows[0].ids)} tokens of held-out text. *File* counts the
safetensors files of the result. The validation rows chose each rate; nothing was chosen on the judged rows. All numbers of all seeds: `rows/*.json`; raw: `table.csv`.
"""


def machine() -> str:
    """The processor, how many of its cores, and the versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}"


def _range(values: dict, digits: int = 2) -> str:
    low, high = f"{min(values.values()):.{digits}f}", f"{max(values.values()):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(values.items(), key=lambda item: -item[1]))
