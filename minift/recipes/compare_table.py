"""The measured table: for people in Markdown and in the terminal, for programs in CSV.

Qualities are means over the seeds, with the sample standard deviation behind ±; costs are of one row's process (compare_row.py says how).
Proved in tests/recipes/test_compare.py."""

import csv
import io
from collections.abc import Sequence

from minift.recipes.compare_task import Measured, Task
from minift.recipes.report import markdown_table

COSTS = [
    "method", "trained", "of all", "file", "gradients + optimizer", "peak memory", "above the loaded model", "ms/step", "tokens/s",
    "generation takes", "merged",
]  # fmt: skip
QUALITIES = ["method", "learning rate", "held-out loss", "ROUGE-L", "PEP 257", "perplexity on prose", "forgetting"]


def markdown(task: Task, rows: dict[str, Measured | str]) -> str:
    """Both tables, and what failed."""
    text = markdown_table(QUALITIES, quality_rows(task, rows)) + "\n\n" + markdown_table(COSTS, cost_rows(rows)) + "\n"
    failed = [f"- **{name}**: {row}" for name, row in rows.items() if isinstance(row, str)]
    return text + ("\nFailed:\n\n" + "\n".join(failed) + "\n" if failed else "")


def cost_rows(rows: dict[str, Measured | str]) -> list[list[str]]:
    return [[name, *(_costs(row) if isinstance(row, Measured) else ["failed"] + ["–"] * (len(COSTS) - 2))] for name, row in rows.items()]


def quality_rows(task: Task, rows: dict[str, Measured | str]) -> list[list[str]]:
    """The base model first: the "before" of every method."""
    b = task.before
    base = ["base, untrained", "–", f"{b.loss:.3f}", f"{b.rouge_l:.3f}", _percent(b.pep257), f"{b.perplexity:.1f}", "1"]
    dead = ["failed"] + ["–"] * (len(QUALITIES) - 2)
    return [base] + [[name, *(_qualities(task, row) if isinstance(row, Measured) else dead)] for name, row in rows.items()]


def short_table(task: Task, rows: dict[str, Measured | str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for the terminal: the columns that fit."""
    header = ["method", "trained", "memory", "ms", "loss", "PEP 257", "forgets"]
    table = [["base", "–", "–", "–", f"{task.before.loss:.3f}", _percent(task.before.pep257), "1"]]
    for name, row in rows.items():
        if isinstance(row, str):
            table.append([name, "failed", *["–"] * 5])
            continue
        costs, qualities = _costs(row), _qualities(task, row)
        table.append([name, costs[0], costs[5], costs[6], qualities[1], qualities[3].split(" ±")[0], qualities[5]])
    return header, table


def _costs(row: Measured) -> list[str]:
    merged = "is a checkpoint" if row.whole else "yes: 1x" if row.mergeable else "no"
    return [
        f"{row.trained:,}", f"{share(row):.3g} %", size(row.file_bytes), size(row.gradient_bytes + row.optimizer_bytes), size(row.peak_bytes),
        size(row.training_bytes), f"{row.ms_per_step:.0f}", f"{row.tokens_per_s:,.0f}", f"{row.slowdown:.2f}x", merged,
    ]  # fmt: skip


def _qualities(task: Task, row: Measured) -> list[str]:
    pep257 = "–" if task.before.pep257 is None else _percent(row.mean("pep257")) + _spread(row, 100 * row.spread("pep257"), 0)
    return [
        f"{row.rate:g}",
        f"{row.mean('loss'):.3f}" + _spread(row, row.spread("loss"), 3),
        f"{row.mean('rouge_l'):.3f}" + _spread(row, row.spread("rouge_l"), 3),
        pep257,
        f"{row.mean('perplexity'):.1f}" + _spread(row, row.spread("perplexity"), 1),
        f"{forgetting(task, row):.3f}",
    ]


def csv_table(task: Task, rows: dict[str, Measured | str]) -> str:
    """One line per method, raw numbers; bytes are bytes, shares are shares."""
    out = io.StringIO()
    lines = [{"method": name, **csv_fields(task, row)} for name, row in rows.items() if isinstance(row, Measured)]
    failed = [{"method": name, "error": row} for name, row in rows.items() if isinstance(row, str)]
    header = list(lines[0]) if lines else ["method", "error"]
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*lines, *failed])
    return out.getvalue()


def csv_fields(task: Task, row: Measured) -> dict[str, object]:
    plain = ["gradient_bytes", "optimizer_bytes", "peak_bytes", "training_bytes", "ms_per_step", "tokens_per_s", "slowdown", "whole", "mergeable"]
    before = task.before
    fields: dict[str, object] = {"trained": row.trained, "total": row.total, "share": share(row) / 100, "file_bytes": row.file_bytes}
    fields |= {name: getattr(row, name) for name in plain} | {"rate": row.rate, "seeds": len(row.qualities)}
    for name in ("loss", "rouge_l", "pep257", "perplexity"):
        known = getattr(before, name) is not None
        fields |= {f"{name}_before": getattr(before, name), f"{name}_after": row.mean(name) if known else None}
        fields |= {f"{name}_spread": row.spread(name) if known and len(row.qualities) > 1 else None}
    return {**fields, "forgetting": forgetting(task, row), "seconds": round(row.seconds, 1), "error": None}


def forgetting(task: Task, row: Measured) -> float:
    """Perplexity on text of pre-training's kind, after / before."""
    return row.mean("perplexity") / task.before.perplexity


def share(row: Measured) -> float:
    """Per cent of all parameters, the method's own among them, that are trained."""
    return 100 * row.trained / row.total


def size(count: float) -> str:
    """Bytes for people: 1 kB is 1000 bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}" if count < 999.5 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count:.0f} B"


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    return [sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho: 1 if both order the methods alike, -1 if in reverse, 0 if one tells nothing of the other."""
    x, y = ranks(a), ranks(b)
    mean = (len(x) + 1) / 2
    dot = lambda p, q: sum((i - mean) * (j - mean) for i, j in zip(p, q))
    spread = (dot(x, x) * dot(y, y)) ** 0.5
    return dot(x, y) / spread if spread else 0.0


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _spread(row: Measured, value: float, digits: int) -> str:
    return f" ± {value:.{digits}f}" if len(row.qualities) > 1 else ""
