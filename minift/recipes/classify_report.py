"""What a classifier's run leaves for people.

    report.md        the scores beside what always answering the same would get, each label's precision, recall and F1, the clearest mistakes
    confusion.png    which label is taken for which (single); each label's F1 (multi)
    reliability.png  when it says 80 %, is it right in 80 %? (single)
    scatter.png      the predicted numbers against the true ones (regression)

Proved in tests/recipes/test_classify.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minift.classify.classifier import Classifier
from minift.data.classified import Classified, targets
from minift.evaluate.calibration import reliability
from minift.evaluate.classification import confusion_matrix, multi_label, single_label
from minift.evaluate.correlation import regression
from minift.files import write_text
from minift.recipes.report import HELD_OUT, INK, TRAIN, markdown_table, pyplot

MAIN = {"single": "accuracy", "multi": "f1_micro", "regression": "spearman"}
"""The score that is told first."""
SHOWN = {
    "single": ("accuracy", "f1_macro", "mcc", "auroc", "ece"), "multi": ("f1_micro", "f1_macro", "f1_samples", "accuracy", "auroc_macro"),
    "regression": ("spearman", "pearson", "rmse", "mae"),
}    # fmt: skip
NAMED, MANY = 100, 40
"""Labels that have room for their names along an axis; those from which on letters are small."""
LONG = 160
"""Characters of a text in report.md."""


def measured(problem: str, scores: Tensor, answers: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """scores (N, K), answers as data/classified.py's targets -> every score, those of single labels too."""
    if problem == "regression":
        return regression(scores[:, 0], answers)
    return single_label(scores, answers, labels) if problem == "single" else multi_label(scores, answers, labels)


def summary(problem: str, found: dict[str, float]) -> str:
    return ", ".join(f"{name} {found[name]:.4f}" for name in SHOWN[problem])


def baseline(problem: str, answers: Tensor, labels: Sequence[str], train: Tensor) -> dict[str, float]:
    """The same scores of always giving the training rows' most frequent label, the labels that most of them have, or their mean."""
    if problem == "regression":
        return measured(problem, train.mean().expand(len(answers), 1), answers, labels)
    if problem == "multi":
        return measured(problem, (train.mean(0) - 0.5).expand(len(answers), -1), answers, labels)
    shares = torch.bincount(train, minlength=len(labels)) / len(train)
    return measured(problem, shares.clamp(min=1e-6).log().expand(len(answers), -1), answers, labels)


def write_report(folder: Path, data, scores: Tensor, answers: Tensor, found: dict[str, float], mistakes: int) -> None:
    """report.md and the pictures of the problem. data: a recipes.classify_task.Data."""
    plain = baseline(data.problem, answers, data.labels, targets(data.train, data.labels))
    same = {"single": "always the most frequent label", "multi": "always the labels that most rows have", "regression": "always the mean"}[data.problem]
    text = [f"# {len(data.valid)} held-out rows, {len(data.train)} to train on\n"]
    text.append(markdown_table(["", "classifier", same], [[name, f"{found[name]:.4f}", f"{plain[name]:.4f}"] for name in SHOWN[data.problem]]) + "\n")
    if data.problem != "regression":
        rows = [[name, *(f"{found[f'{metric}[{name}]']:.3f}" for metric in ("precision", "recall", "f1"))] for name in data.labels]
        text.append(f"## Each label\n\n{markdown_table(['label', 'precision', 'recall', 'F1'], rows)}\n")
    if data.problem == "single":
        text.append(f"## Most often confused\n\n{_confused(confusion_matrix(scores.argmax(1), answers, len(data.labels)), data.labels)}\n")
    text.append(f"## The clearest mistakes\n\n{_mistakes(data, scores, answers, mistakes)}\n")
    write_text(folder / "report.md", "\n".join(text))
    if data.problem == "regression":
        _draw_scatter(folder, scores[:, 0], answers, found)
    elif data.problem == "multi":
        _draw_bars(folder, data.labels, found)
    else:
        _draw_confusion(folder, confusion_matrix(scores.argmax(1), answers, len(data.labels)), data.labels, found)
        _draw_reliability(folder, scores, answers)


def _confused(table: np.ndarray, labels: Sequence[str], count: int = 10) -> str:
    """A table of the pairs of labels with the most rows."""
    wrong = [(int(table[t, p]), labels[t], labels[p]) for t, p in np.ndindex(*table.shape) if t != p and table[t, p]]
    shown = [[true, said, str(rows)] for rows, true, said in sorted(wrong, key=lambda one: -one[0])[:count]]
    return markdown_table(["true label", "said", "rows"], shown) if shown else "None."


def _mistakes(data, scores: Tensor, answers: Tensor, count: int) -> str:
    """A table of the rows whose right answer was thought the least likely, or is furthest off."""
    if data.problem == "regression":
        cost = (scores[:, 0] - answers).abs()
    elif data.problem == "single":
        cost = torch.where(scores.argmax(1) == answers, -1.0, 1 - scores.softmax(1)[torch.arange(len(answers)), answers])
    else:
        cost = torch.where(((scores > 0) == (answers > 0)).all(1), -1.0, (scores.sigmoid() - answers).abs().amax(1))
    worst = [i for i in cost.argsort(descending=True, stable=True).tolist() if cost[i] > 0][:count]
    if not worst:
        return "None."
    said = Classifier(data.problem, list(data.labels), data.found.sides, None, None).said
    return markdown_table(["where", "text", "wanted", "said"], [[_where(data.valid[i]), *_texts(data.valid[i]), *_both(data.valid[i], said(scores[i]))] for i in worst])


def _where(row: Classified) -> str:
    return row.where.rpartition("/")[2]


def _texts(row: Classified) -> list[str]:
    text = " ⏐ ".join(row.texts)
    return [text if len(text) <= LONG else text[: LONG - 1] + "…"]


def _both(row: Classified, said: dict) -> list[str]:
    if "score" in said:
        return [f"{row.answer:g}", f"{said['score']:.3g}"]
    if "labels" in said:
        return [", ".join(row.answer) or "none", ", ".join(said["labels"]) or "none"]
    return [f"{row.answer} ({said['probabilities'][row.answer]:.1%})", f"{said['label']} ({said['probability']:.1%})"]


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _save(folder: Path, figure, name: str) -> None:
    plt = pyplot()
    figure.savefig(folder / name, dpi=130)
    plt.close(figure)


def _draw_confusion(folder: Path, table: np.ndarray, labels: Sequence[str], found: dict[str, float]) -> None:
    plt = pyplot()
    K = len(labels)
    size = max(4.2, 2.4 + (0.32 if K < 30 else 0.17) * K) if K <= NAMED else 8.0
    shares = table / table.sum(1, keepdims=True).clip(1)
    figure, axes = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=f"Which label is taken for which: {found['accuracy']:.1%} right", xlabel="said", ylabel="true label")
    if K <= NAMED:
        short = [name if len(name) <= 24 else name[:23] + "…" for name in labels]
        letters = 9 if K < 20 else 7 if K <= MANY else 6
        axes.set_xticks(range(K), short, rotation=90 if K > 6 or max(map(len, short)) > 8 else 0, fontsize=letters)
        axes.set_yticks(range(K), short, fontsize=letters)
        for t, p in np.ndindex(K, K):
            if table[t, p] or K <= 12:                                           # of many labels nearly all cells are empty
                axes.text(p, t, str(table[t, p]), ha="center", va="center", color="white" if shares[t, p] > 0.55 else INK, fontsize=letters)
    figure.colorbar(picture, label="share of the true label's rows", shrink=0.8)
    _save(folder, figure, "confusion.png")


def _draw_reliability(folder: Path, scores: Tensor, answers: Tensor) -> None:
    plt = pyplot()
    chances = scores.softmax(1).amax(1)
    bins = reliability(chances.clamp(0, 1), (scores.argmax(1) == answers).float())
    width, middles = bins.edges[1] - bins.edges[0], (bins.edges[1:] + bins.edges[:-1]) / 2
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(5.4, 5.6), layout="constrained", sharex=True, height_ratios=(3, 1))
    there = bins.counts > 0
    upper.plot([0, 1], [0, 1], ":", color=INK, linewidth=1, label="what it should be")
    upper.bar(middles[there], bins.accuracy[there], width * 0.92, color=TRAIN, label="share that is right")
    upper.plot(bins.confidence[there], bins.accuracy[there], "o", color=HELD_OUT, markersize=4, label="at the mean confidence")
    upper.set(title=f"Is it right as often as it says? ECE {bins.ece:.3f}", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.bar(middles, bins.counts, width * 0.92, color=TRAIN)
    lower.set(xlabel="probability given to the answer", ylabel="rows", yscale="log")
    for axes in (upper, lower):
        _plain(axes)
    _save(folder, figure, "reliability.png")


def _draw_bars(folder: Path, labels: Sequence[str], found: dict[str, float]) -> None:
    plt = pyplot()
    order = sorted(labels, key=lambda name: np.nan_to_num(found[f"f1[{name}]"], nan=-1))[-MANY:]
    figure, axes = plt.subplots(figsize=(6.4, 1.4 + 0.28 * len(order)), layout="constrained")
    axes.barh(range(len(order)), [found[f"f1[{name}]"] for name in order], color=TRAIN)
    axes.set_yticks(range(len(order)), order, fontsize=9)
    axes.set(title=f"F1 of each label (micro {found['f1_micro']:.3f})", xlabel="F1, held out", xlim=(0, 1))
    _plain(axes)
    _save(folder, figure, "confusion.png")


def _draw_scatter(folder: Path, said: Tensor, answers: Tensor, found: dict[str, float]) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(5.2, 5.0), layout="constrained")
    ends = [min(answers.min(), said.min()).item(), max(answers.max(), said.max()).item()]
    axes.plot(ends, ends, ":", color=INK, linewidth=1)
    axes.scatter(answers, said, s=12, alpha=0.4, color="#2f5f8f", linewidths=0)
    axes.set(title=f"Spearman {found['spearman']:.3f}, off by {found['mae']:.3g} on average", xlabel="true number", ylabel="said")
    _plain(axes)
    _save(folder, figure, "scatter.png")
