"""The picture of a run on pairs: the two log-probabilities apart, and how often the chosen answer has gained more than the rejected one.

The loss only sees the difference of the two, so both may fall while it does. Proved in tests/recipes/test_dpo.py."""

from collections.abc import Mapping
from pathlib import Path

from minift.recipes.report import HELD_OUT, pyplot, running_mean
from minift.train.log import read_metrics

CHOSEN, REJECTED = "#2f7d4f", HELD_OUT


def draw_preferences(folder: Path, before: Mapping[str, float], beta: float | None = None, labelled: bool = False) -> Path:
    """folder/metrics.jsonl -> folder/preferences.png: log-probabilities of chosen and rejected answers since the start, and the accuracy.

    beta: of a loss with a reference; a step's rewards by beta are log-probabilities against the reference, which, unlike those of the
    step's own answers, can be compared from batch to batch. labelled: the answers are desirable and undesirable ones, not pairs."""
    plt = pyplot()
    metrics = read_metrics(folder)
    steps = [m for m in metrics if "accuracy" in m]
    held_out = [{"step": 0, **{f"eval_{name}": value for name, value in before.items()}}, *(m for m in metrics if "eval_accuracy" in m)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    width = max(1, len(steps) // 20)
    for name, color, label in (("chosen", CHOSEN, "desirable" if labelled else "chosen"), ("rejected", REJECTED, "undesirable" if labelled else "rejected")):
        if beta is not None:
            moved = [(m[f"reward_{name}"] - before[f"reward_{name}"]) / beta for m in steps]
            left.plot([m["step"] for m in steps], running_mean(moved, width), color=color, alpha=0.35, linewidth=1.2, label=f"{label}, training")
        left.plot([m["step"] for m in held_out], [m[f"eval_{name}"] - before[name] for m in held_out], "o-", color=color, markersize=4, label=f"{label}, held out")
    left.axhline(0, color="#999999", linewidth=0.8)
    left.set(title="Which of the two moves?", ylabel="log p(answer) against the start, nats")
    accuracies = [m["accuracy"] for m in steps]
    right.plot([m["step"] for m in steps], running_mean(accuracies, width), color="#9db8d2", linewidth=1.2, label="training")
    right.plot([m["step"] for m in held_out], [m["eval_accuracy"] for m in held_out], "o-", color="#2f5f8f", markersize=4, label="held out")
    right.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    asked = "is the chosen answer likelier" if beta is None else "has the chosen answer gained more"
    question = "How often " + ("has an answer moved its label's way?" if labelled else f"{asked}?")
    right.set(title=question, ylabel=f"share of {'answers' if labelled else 'pairs'}", ylim=(0, 1.02))
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "preferences.png", dpi=130)
    plt.close(figure)
    return folder / "preferences.png"
