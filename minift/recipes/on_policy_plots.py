"""What a run on rewards leaves to look at: what the reward cost in distance from the reference, how far ratios strayed in the last step, and the
same prompts, answered again and again.

Proved in tests/recipes/test_on_policy.py."""

import json
from collections.abc import Sequence
from pathlib import Path

from minift.files import write_text
from minift.recipes.report import HELD_OUT, markdown_table, pyplot, running_mean
from minift.train.log import read_metrics

TRAIN, MEAN = "#9db8d2", "#2f5f8f"


def draw_rewards(folder: Path) -> Path:
    """folder/metrics.jsonl -> folder/rewards.png: reward by step, and held-out reward against the distance from the reference."""
    plt = pyplot()
    metrics = read_metrics(folder)
    steps, held_out = [m for m in metrics if "reward" in m], [m for m in metrics if "eval_reward" in m]
    distances = [m for m in held_out if "eval_kl" in m]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    rewards = [m["reward"] for m in steps]
    left.plot([m["step"] for m in steps], rewards, color=TRAIN, linewidth=0.8, label="training, each step")
    if len(rewards) > 20:
        left.plot([m["step"] for m in steps], running_mean(rewards, len(rewards) // 10), color=MEAN, linewidth=1.8, label="training, running mean")
    left.plot([m["step"] for m in held_out], [m["eval_reward"] for m in held_out], "o-", color=HELD_OUT, markersize=4, label="held out")
    left.set(title="Does the reward rise?", xlabel="step", ylabel="mean reward")
    left.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    left.legend(frameon=False, fontsize=9)
    if distances:
        right.plot([m["eval_kl"] for m in distances], [m["eval_reward"] for m in distances], "o-", color=HELD_OUT, markersize=4)
        for m in distances[:: max(1, len(distances) // 6)]:
            right.annotate(str(m["step"]), (m["eval_kl"], m["eval_reward"]), xytext=(3, -10), textcoords="offset points", fontsize=8)
    else:
        right.text(0.5, 0.5, "no distance was measured", transform=right.transAxes, ha="center")
    right.set(title="What does it cost? (numbers: steps)", xlabel="distance from the reference, nats per answer", ylabel="mean reward, held out")
    _save(figure, (left, right), folder / "rewards.png")
    return folder / "rewards.png"


def draw_ratios(folder: Path, ratios: Sequence[float], low: float, high: float) -> Path:
    """folder/ratios.png: the ratios of the last step's tokens, and the lines beyond which they stop counting."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.hist(ratios, bins=60, color=TRAIN)
    for line in (1 - low, 1 + high):
        axes.axvline(line, color=HELD_OUT, linewidth=1.2, linestyle="--")
    axes.set(title="How far did the policy stray from the one that drew?", xlabel="p / p of the policy that drew the token", ylabel="tokens", yscale="log")
    _save(figure, (axes,), folder / "ratios.png")
    return folder / "ratios.png"


def keep_samples(folder: Path, step: int, lines: Sequence[dict]) -> None:
    """Add a step's lines to samples.jsonl, in place of any that a run cut short has left there of this step or later ones."""
    file = folder / "samples.jsonl"
    old = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    kept = [line for line in old if line["step"] < step]
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*kept, *lines]))


def write_samples(folder: Path) -> None:
    """samples.md from samples.jsonl: the same prompts, answered at each evaluation."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [[line["step"], line["prompt"], line["answer"], f"{line['reward']:.3g}"] for line in sorted(lines, key=lambda line: line["prompt"])]
    write_text(folder / "samples.md", "# The same prompts, step by step\n\n" + markdown_table(["step", "prompt", "answer", "reward"], rows) + "\n")


def _save(figure, several, file: Path) -> None:
    plt = pyplot()
    for axes in several:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
