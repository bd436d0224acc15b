"""docs/training_speed.png: how many times less CPU seconds than the other libraries, with the range over the rounds and what was wanted; peak memory."""

from collections.abc import Mapping
from pathlib import Path

TRAINER, TRL, OURS = "HF Trainer", "trl", "minift"
COLORS = {TRAINER: "#2f5f8f", TRL: "#9db8d2", OURS: "#d98c3f"}


def draw(file: Path, rows: Mapping[str, dict], aims: Mapping[str, Mapping[str, tuple[float, float | None]]], where: str) -> None:
    """where: the hardware, below the panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = [key for key in rows if OURS in rows[key]["sides"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 1.4 + 0.42 * len(keys)), sharey=True, layout="constrained", width_ratios=(3, 2))
    for offset, peer in ((-0.18, TRAINER), (0.18, TRL)):
        there = [(place, rows[key]["faster"][peer]["cpu"]) for place, key in enumerate(keys) if peer in rows[key]["faster"]]
        spread = [[f["median"] - f["least"] for _, f in there], [f["most"] - f["median"] for _, f in there]]
        left.barh([p + offset for p, _ in there], [f["median"] for _, f in there], xerr=spread, height=0.34, color=COLORS[peer], ecolor="#555555", label=f"beside {peer}")
        wanted = [(place + offset, aims[key][peer][0]) for place, key in enumerate(keys) if peer in aims.get(key, {}) and peer in rows[key]["faster"]]
        left.plot([w for _, w in wanted], [p for p, _ in wanted], "|", color="#111111", markersize=12, markeredgewidth=2, label=None if offset > 0 else "wanted")
    left.axvline(1, color="#555555", linewidth=1)
    left.set(title="Times less CPU seconds than the other takes", yticks=range(len(keys)), yticklabels=keys)
    for offset, side in ((-0.26, TRAINER), (0.0, TRL), (0.26, OURS)):
        there = [(place, rows[key]["sides"][side]["peak_mib"]) for place, key in enumerate(keys) if side in rows[key]["sides"]]
        right.barh([p + offset for p, _ in there], [mib for _, mib in there], height=0.25, color=COLORS[side], label=side)
    right.set(title="Peak memory of the process, MiB")
    left.invert_yaxis()                                                     # the axis is shared
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.24 / figure.get_figheight()), ncols=3)
    figure.supxlabel(where, fontsize=8, color="#555555")
    figure.savefig(file, dpi=120)
    plt.close(figure)
