"""What embeddings are worth on held-out rows, before and after.

    pairs     each anchor searches all held-out positives: MRR@10, nDCG@10, recall@1 (evaluate/retrieval.py); alignment of the pairs, and
              uniformity of all their texts (Wang and Isola 2020, arXiv:2005.10242): lower is better of both, and each alone is easy to have
    scored    Spearman and Pearson of the cosine with the scores (evaluate/similarity.py)
    nli       how often the classifier that learns beside the model is right
    labelled  how often the nearest other text has one's own label
    texts     uniformity of the cloud

report.md holds them, and with --dims for every width; dims.png draws that, alignment.png the two of pairs. Proved in tests/recipes/test_embed.py."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minift.evaluate.retrieval import retrieval
from minift.evaluate.similarity import alignment, sts, uniformity
from minift.files import write_text
from minift.recipes.report import TRAIN, markdown_table, pyplot
from minift.search import Index

Encode = Callable[..., Tensor]
"""texts, "query" or "document" [, dim] -> (N, C)."""
Judge = Callable[[Tensor, Tensor], Sequence[str]]
"""Vectors of first texts, of second ones -> the label of each pair."""
MAIN = ("mrr@10", "spearman", "accuracy", "nearest", "uniformity")
"""The picture shows the first of these that there is."""


def measured(rows: Sequence, encode: Encode, dim: int | None = None, judge: Judge | None = None) -> dict[str, float]:
    """The numbers of these rows, of the first `dim` numbers of the vectors or of all."""
    shape = rows[0].shape
    first = [row.texts[0] for row in rows]
    if shape == "pairs":
        return _retrieval(rows, encode, dim)
    if shape == "scored":
        found = sts(encode(first, "query", dim), encode([row.texts[1] for row in rows], "query", dim), [row.score for row in rows])
        return {name: found[name] for name in ("spearman", "pearson")}
    vectors = encode(first, "query", dim)
    if judge is not None:
        said = judge(vectors, encode([row.texts[1] for row in rows], "query", dim))
        return {"accuracy": float(np.mean([label == row.label for label, row in zip(said, rows)]))}
    if shape in ("texts", "nli"):
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
    vectors, asked = encode(documents, "document", dim), encode(anchors, "query", dim)
    _, found = Index(vectors, "this run's").search(asked, k)
    scores = retrieval({anchor: [documents[j] for j in own] for anchor, own in zip(anchors, found)}, relevant, (1, 10))
    own, place = {anchor: i for i, anchor in enumerate(anchors)}, {document: i for i, document in enumerate(documents)}
    close = alignment(asked[[own[row.texts[0]] for row in rows]], vectors[[place[row.texts[1]] for row in rows]])
    return {**{name: scores[name] for name in ("mrr@10", "ndcg@10", "recall@1")}, "alignment": close, "uniformity": uniformity(torch.cat([asked, vectors]))}


def write_report(folder: Path, before: dict[str, float], after: dict[str, float], rows: Sequence, measure: Callable[[int], dict[str, float]], config) -> None:
    """report.md, and dims.png where there are dims: measure(dim) -> the numbers of the first so many; alignment.png where rows are pairs."""
    table = markdown_table(["", "before", "after"], [[name, f"{before[name]:.4f}", f"{after[name]:.4f}"] for name in after])
    text = f"# Embeddings: {len(rows)} held-out rows\n\n{table}\n"
    if config.dims:
        found = {dim: measure(dim) for dim in sorted(config.dims)}
        names = list(next(iter(found.values())))
        main = next(name for name in MAIN if name in names)
        text += "\n" + markdown_table(["numbers of a vector", *names], [[str(dim), *(f"{own[name]:.4f}" for name in names)] for dim, own in found.items()]) + "\n"
        _draw_dims(folder, {dim: own[main] for dim, own in found.items()}, main)
    if "alignment" in after:
        _draw_alignment(folder, before, after)
    write_text(folder / "report.md", text)


def _draw_dims(folder: Path, found: dict[int, float], name: str) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(list(found), list(found.values()), "o-", color=TRAIN)
    axes.set(title="How much of a vector does the search need?", xlabel="numbers of each vector that are kept", ylabel=f"{name}, held out", xscale="log")
    axes.set_xticks(list(found), [str(dim) for dim in found], minor=False)
    axes.minorticks_off()
    _finish(figure, axes, folder / "dims.png")


def _draw_alignment(folder: Path, before: dict[str, float], after: dict[str, float]) -> None:
    """The two numbers as a place: down and to the left is better."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(4.8, 4.0), layout="constrained")
    (x0, y0), (x1, y1) = ((found["uniformity"], found["alignment"]) for found in (before, after))
    axes.annotate("", (x1, y1), (x0, y0), arrowprops=dict(arrowstyle="->", color=TRAIN))
    for x, y, word in ((x0, y0, "before"), (x1, y1, "after")):
        axes.plot([x], [y], "o", color=TRAIN, fillstyle="none" if word == "before" else "full")
        axes.annotate(word, (x, y), (6, 6), textcoords="offset points")
    axes.set(title="Partners close, everything else spread", xlabel="uniformity (spread to the left)", ylabel="alignment (partners close: down)")
    axes.margins(0.25)
    axes.xaxis.set_major_locator(plt.MaxNLocator(4))                                 # numbers of four digits side by side
    _finish(figure, axes, folder / "alignment.png")


def _finish(figure, axes, file: Path) -> None:
    plt = pyplot()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
