"""docs/classification.md and docs/classification.png from the stored numbers of benchmarks/classification.py."""

from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minift.recipes.report import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
WORDS = {
    "banking77-linear": ("Banking77, 77 intents", "frozen, linear head"), "banking77-mlp": ("", "frozen, MLP head"),
    "banking77-knn": ("", "frozen, 5 nearest neighbours"), "banking77-lora": ("", "LoRA, r = 16"), "banking77-full": ("", "all weights"),
    "sms-linear": ("SMS spam, 2 labels", "frozen, linear head"), "sms-full": ("", "all weights"),
}    # fmt: skip
PAIRS = {"sick-score-linear": "frozen, both sentences' vectors, linear head", "sick-score-full": "all weights, sentences read together"}


def write_page(found: dict) -> None:
    rows, machine = {row["name"]: row for row in found["rows"]}, found["machine"]
    table = []
    for name, (task, how) in WORDS.items():
        if name in rows:
            scores = rows[name]["scores"]
            table.append([task, how, f"**{scores['accuracy']:.4f}**", *(f"{scores[key]:.3f}" for key in ("f1_macro", "mcc", "ece")), f"{rows[name]['minutes']:.1f}"])
    text = f"""# What does it take to classify texts?

Made by `python -m benchmarks.classification`, which says how each number is measured. {machine["cpu"]}, {machine["threads"]} threads, torch {machine["torch"]}, commit {machine["commit"]}.
The model is all-MiniLM-L6-v2 throughout; a fifth of the texts is held out. One run each; the minutes are those of a busy machine, and of heads on features they
are nearly all the pass over the texts, which is done once.

{markdown_table(["", "", "accuracy", "macro F1", "MCC", "ECE", "minutes"], table)}
"""
    shots = {name: rows[name]["shots"] for name in ("shots-features", "shots-setfit") if name in rows}
    if shots:
        said = lambda values: f"{fmean(values):.3f} ± {stdev(values):.3f}"
        every = sorted({int(k) for own in shots.values() for k in own})
        cells = [[str(k), *(said(own[str(k)]) if str(k) in own else "" for own in shots.values())] for k in every]
        names = {"shots-features": "frozen, linear head", "shots-setfit": "SetFit, then the same head"}
        text += f"""
## From few rows

Banking77 again: accuracy on the same held-out rows, mean and standard deviation over draws of so many rows of each intent.

{markdown_table(["rows of each intent", *(names[name] for name in shots)], cells)}

![few-shot curves](classification.png)
"""
        _draw({names[name]: {int(k): values for k, values in own.items()} for name, own in shots.items()})
    pairs = [[how, f"**{rows[name]['scores']['spearman']:.3f}**", f"{rows[name]['scores']['pearson']:.3f}", f"{rows[name]['scores']['mae']:.3f}"]
             for name, how in PAIRS.items() if name in rows]    # fmt: skip
    if pairs:
        text += f"""
## Two sentences, one number (SICK relatedness, 1 to 5)

Learned from the 4,500 training pairs, measured on the 500 of the trial part.

{markdown_table(["", "Spearman", "Pearson", "off by (mean)"], pairs)}
"""
    if "cache" in rows:
        own = rows["cache"]
        times = [(title, f"{each['recomputed']:.1f} s", f"{each['from disk']:.1f} s", f"**{each['recomputed'] / each['from disk']:.0f}x**") for title, each in own["seconds"].items()]
        text += f"""
## Features that are kept

{own["heads"]} linear heads on the vectors of {own["texts"]:,} texts, each trained from its start. What is left with kept vectors is nearly all the heads' own
arithmetic, which grows with the labels.

{markdown_table(["", "the model run each time", "vectors from disk", ""], times)}
"""
    settings = "\n".join(f"    {name:<19}{', '.join(f'{key} {value}' for key, value in own.items())}" for name, own in found["settings"].items() if name in rows and own)
    (DOCS / "classification.md").write_text(f"{text}\nSettings:\n\n{settings}\n", encoding="utf-8")


def _draw(curves: dict[str, dict[int, list[float]]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, own), color in zip(curves.items(), ("#2f5f8f", "#c4472b")):
        for k, values in own.items():
            axes.plot([k] * len(values), values, "o", color=color, alpha=0.35, markersize=4)
        axes.plot(list(own), [fmean(values) for values in own.values()], "o-", color=color, label=name)
    axes.set(title="How many rows of each intent does it take?", xlabel="rows of each intent", ylabel="accuracy, held out", xscale="log", ylim=(None, 1))
    ticks = sorted({k for own in curves.values() for k in own})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(DOCS / "classification.png", dpi=130)
    plt.close(figure)
