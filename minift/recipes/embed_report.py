"""What embeddings are worth on held-out rows, before and after.

    pairs     each anchor searches all held-out positives: MRR@10, nDCG@10, recall@1 (evaluate/retrieval.py)
    scored    Spearman and Pearson of the cosine with the scores (evaluate/similarity.py)
    labelled  how often the nearest other text has one's own label
    texts     uniformity of the cloud

report.md holds them, and with --dims for every width; dims.png draws that. Proved in tests/recipes/test_embed.py."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from minift.evaluate.retrieval import retrieval
from minift.evaluate.similarity import sts, uniformity
from minift.files import write_text
from minift.recipes.report import TRAIN, markdown_table
from minift.search import Index

Encode = Callable[..., Tensor]
"""texts, "query" or "document" [, dim] -> (N, C)."""
MAIN = {"pairs": "mrr@10", "scored": "spearman", "labelled": "nearest", "texts": "uniformity"}
"""The number that the picture shows."""


def measured(rows: Sequence, encode: Encode, config, dim: int | None = None) -> dict[str, float]:
    """The numbers of these rows, of the first `dim` numbers of the vectors or of all."""
    shape = rows[0].shape
    first = [row.texts[0] for row in rows]
    if shape == "pairs":
        return _retrieval(rows, encode, dim)
    if shape == "scored":
        found = sts(encode(first, "query", dim), encode([row.texts[1] for row in rows], "query", dim), [row.score for row in rows])
        return {name: found[name] for name in ("spearman", "pearson")}
    vectors = encode(first, "query", dim)
    if shape == "texts":
        return {"uniformity": uniformity(vectors)}
    _, nearest = Index(vectors, "this run's").search(vectors, min(2, len(vectors)))
    other = [next(int(j) for j in own if j != i) for i, own in enumerate(nearest)]
    return {"nearest": float(np.mean([rows[i].label == rows[j].label for i, j in enumerate(other)]))}


def _retrieval(rows: Sequence, encode: Encode, dim: int | None) -> dict[str, float]:
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row.texts[0], set()).add(row.texts[1])
    documents, anchors = list(dict.fromkeys(row.texts[1] for row in rows)), list(relevant)
    k = min(10, len(documents))
    _, found = Index(encode(documents, "document", dim), "this run's").search(encode(anchors, "query", dim), k)
    scores = retrieval({anchor: [documents[j] for j in own] for anchor, own in zip(anchors, found)}, relevant, (1, 10))
    return {name: scores[name] for name in ("mrr@10", "ndcg@10", "recall@1")}


def write_report(folder: Path, before: dict[str, float], after: dict[str, float], rows: Sequence, encode: Encode, config) -> None:
    """report.md, and dims.png where there are dims."""
    table = markdown_table(["", "before", "after"], [[name, f"{before[name]:.4f}", f"{after[name]:.4f}"] for name in after])
    text = f"# Embeddings: {len(rows)} held-out rows\n\n{table}\n"
    if config.dims:
        found = {dim: measured(rows, encode, config, dim) for dim in sorted(config.dims)}
        names = list(next(iter(found.values())))
        text += "\n" + markdown_table(["numbers of a vector", *names], [[str(dim), *(f"{own[name]:.4f}" for name in names)] for dim, own in found.items()]) + "\n"
        _draw(folder, {dim: own[MAIN[rows[0].shape]] for dim, own in found.items()}, MAIN[rows[0].shape])
    write_text(folder / "report.md", text)


def _draw(folder: Path, found: dict[int, float], name: str) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(list(found), list(found.values()), "o-", color=TRAIN)
    axes.set(title="How much of a vector does the search need?", xlabel="numbers of each vector that are kept", ylabel=f"{name}, held out", xscale="log")
    axes.set_xticks(list(found), [str(dim) for dim in found], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "dims.png", dpi=130)
    plt.close(figure)
