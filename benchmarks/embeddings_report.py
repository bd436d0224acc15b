"""docs/embeddings.md and docs/embeddings.png from the stored numbers of benchmarks/embeddings.py."""

from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minift.recipes.report import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
WORDS = {
    "base-lora": "the bundled 5.9M decoder, LoRA", "base-full": "the bundled 5.9M decoder, all weights",
    "minilm-lora": "all-MiniLM-L6-v2, LoRA", "minilm-full": "all-MiniLM-L6-v2, all weights",
}    # fmt: skip


def write_page(found: dict) -> None:
    rows, machine = found["rows"], found["machine"]
    of = lambda name: [row for row in rows if row["name"] == name]
    mean = lambda name, when, key: fmean(row[when][key] for row in of(name))
    table = []
    for name in WORDS:
        if of(name):
            before, after = (mean(name, when, "mrr@10") for when in ("before", "after"))
            table.append([WORDS[name], f"{before:.3f}", f"**{after:.3f}**", f"{after / before:.2f}x", f"{mean(name, 'before', 'recall@1'):.3f} → {mean(name, 'after', 'recall@1'):.3f}",
                          f"{fmean(row['minutes'] for row in of(name)):.1f}", str(len(of(name)))])    # fmt: skip
    first = rows[0]["after"] if "queries" in rows[0]["after"] else next(row["after"] for row in rows if "queries" in row["after"])
    text = f"""# What does fine-tuning do for embeddings?

Made by `python -m benchmarks.embeddings`, which says how each number is measured. {machine["cpu"]}, {machine["threads"]} threads, torch {machine["torch"]}, commit {machine["commit"]}.

## A docstring finds its function

{first["queries"]} summary lines of unseen modules search the code of {first["documents"]} functions (docstrings taken out). Learned from the standard library's other modules: InfoNCE, batches of 64.

{markdown_table(["", "MRR@10 before", "after", "", "recall@1", "minutes", "seeds"], table)}
"""
    if of("matryoshka"):
        dims = of("matryoshka")[-1]["dims"]
        text += f"""
## How much of a vector is needed?

The decoder again, all weights, taught with `--dims {" ".join(dims)}` so that the first numbers of a vector are an embedding too.

{markdown_table(["numbers kept", "untuned", "tuned with --dims"], [[dim, f"{own['before']:.3f}", f"{own['after']:.3f}"] for dim, own in dims.items()])}

![quality against dimension](embeddings.png)
"""
        draw({int(dim): own for dim, own in dims.items()})
    if of("sick"):
        before, after = ({key: mean("sick", when, key) for key in ("spearman", "pearson")} for when in ("before", "after"))
        text += f"""
## Related sentences (SICK)

all-MiniLM-L6-v2, CoSENT on 4,500 pairs, measured on the 500 of the trial part: Spearman {before["spearman"]:.3f} → **{after["spearman"]:.3f}**, Pearson {before["pearson"]:.3f} → {after["pearson"]:.3f}.
"""
    tuned = [row["cosqa"] for row in rows if "cosqa" in row]
    if tuned:
        text += f"""
## Web queries find Python code (CoSQA, dev)

{tuned[0]["before"]["queries"]} queries with an answer, {tuned[0]["before"]["documents"]} functions; the model tuned on docstrings above never saw such queries: MRR@10 {fmean(own["before"]["mrr@10"] for own in tuned):.3f} → {fmean(own["after"]["mrr@10"] for own in tuned):.3f}.
"""
    settings = "\n".join(f"    {name:<12}{', '.join(f'{key} {value}' for key, value in own.items())}" for name, own in found["settings"].items() if of(name))
    (DOCS / "embeddings.md").write_text(f"{text}\nSettings:\n\n{settings}\n", encoding="utf-8")


def draw(dims: dict[int, dict[str, float]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for when, color, label in (("after", "#2f5f8f", "tuned with Matryoshka"), ("before", "#999999", "untuned")):
        axes.plot(list(dims), [own[when] for own in dims.values()], "o-", color=color, label=label)
    axes.set(title="How much of a vector does the search need?", xlabel="numbers of each vector that are kept", ylabel="MRR@10", xscale="log", ylim=(0, None))
    axes.set_xticks(list(dims), [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(DOCS / "embeddings.png", dpi=130)
    plt.close(figure)
