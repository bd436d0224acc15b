"""Two pictures of the measured table: what a trained parameter buys, and what it does not tell.

Labels are placed one by one at the nearest spot around their point that no earlier label, point or bar covers.
Proved in tests/recipes/test_compare.py."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")                                  # no window: pictures go to files
import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

from minift.recipes.compare_table import forgetting
from minift.recipes.compare_task import Measured, Task

INK = "#333333"
KINDS = {"a whole checkpoint": ("s", "#777777"), "can be merged": ("o", "#2f5f8f"), "stays beside the model": ("^", "#c4472b")}
"""What generating costs later decides the mark: nothing, nothing once merged, something always."""


def kind(row: Measured) -> str:
    return "a whole checkpoint" if row.whole else "can be merged" if row.mergeable else "stays beside the model"


def draw_quality(file: Path, task: Task, rows: dict[str, Measured]) -> list[Bbox]:
    """Held-out loss against trained parameters. Returns the boxes of the labels, in pixels."""
    figure, axes = plt.subplots(figsize=(9.6, 6.0), dpi=130, layout="constrained")   # label places are in pixels of this dpi
    for name, (mark, color) in KINDS.items():
        some = [row for row in rows.values() if kind(row) == name]
        if some:
            x, y, bars = [r.trained for r in some], [r.mean("loss") for r in some], [r.spread("loss") for r in some]
            axes.errorbar(x, y, bars, fmt=mark, color=color, markersize=6, elinewidth=1.1, capsize=2.5, label=name, zorder=3)
    base, losses, dashes = task.before.loss, [row.mean("loss") for row in rows.values()], dict(color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if base > max(losses) + 0.5 * (max(losses) - min(losses)) > min(losses):   # far above them all, it would press them together
        axes.plot([], [], **dashes, label=f"the base model: {base:.2f}, above the picture")
    else:
        axes.axhline(base, **dashes, label=f"the base model: {base:.2f}")
    axes.set_xscale("log")
    axes.margins(0.12, 0.09)
    many = "" if task.seeds == 1 else f"; bars: ± standard deviation over {task.seeds} seeds"
    axes.set(xlabel="trained parameters (log axis)", ylabel="held-out loss after training, nats per token (lower is better)")
    axes.set_title(f"What a trained parameter buys: {task.steps} steps of {task.batch_tokens} tokens{many}", fontsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
    points = [(row.trained, row.mean("loss"), row.spread("loss")) for row in rows.values()]
    boxes = place_labels(axes, list(rows), points, line=task.before.loss)
    figure.savefig(file)
    plt.close(figure)
    return boxes


def place_labels(axes, names: Sequence[str], points: Sequence[tuple[float, float, float]], line: float) -> list[Bbox]:
    """Write each name beside its point (x, y, half the length of its bar), the most crowded ones first, and none on the level `line`."""
    figure = axes.figure
    figure.canvas.draw()                                                  # now the layout, and with it every pixel, is known
    figure.set_layout_engine("none")
    pixel = axes.transData.transform
    centres = [pixel((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in centres]
    taken += [Bbox([pixel((x, y - bar)) - (3, 0), pixel((x, y + bar)) + (3, 0)]) for x, y, bar in points]
    legend, inside, boxes = axes.get_legend(), axes.get_window_extent(), {}
    level = pixel((points[0][0], line))[1]
    taken.append(Bbox.from_extents(inside.x0, level - 1, inside.x1, level + 1))
    if legend is not None:
        taken.append(legend.get_window_extent())
    crowd = lambda i: sum(math.dist(centres[i], other) < 60 for other in centres)
    for i in sorted(range(len(names)), key=lambda i: (-crowd(i), i)):
        label = axes.text(0, 0, names[i], transform=None, fontsize=8.5, color=INK, ha="center", va="center", zorder=4)
        bare = label.get_window_extent()
        width, height = bare.width + 3, bare.height + 1
        best = None
        for away in range(0, 260, 6):                                     # pixels between the point's box and the label's
            for angle in range(0, 360, 20):
                dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                cx, cy = centres[i][0] + dx * (8 + away + width / 2), centres[i][1] + dy * (8 + away + height / 2)
                box = Bbox.from_extents(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
                hits = sum(box.overlaps(other) for other in taken) + 100 * (not fits)
                if best is None or hits < best[0]:
                    best = hits, box, away
            if best[0] == 0:
                break
        _, box, away = best
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        label.set_position(middle)
        if away > 6:
            end = (min(max(centres[i][0], box.x0), box.x1), min(max(centres[i][1], box.y0), box.y1))
            inverse = axes.transData.inverted().transform
            axes.plot(*zip(inverse(centres[i]), inverse(end)), color=INK, linewidth=0.5, alpha=0.6, zorder=2, scalex=False, scaley=False)
        taken.append(box)
        boxes[i] = box
    return [boxes[i] for i in range(len(names))]


def draw_costs(file: Path, task: Task, rows: dict[str, Measured]) -> None:
    """Four bars for each method, the one with the fewest trained parameters on top: would they tell the same, all would grow downwards."""
    order = sorted(rows, key=lambda name: rows[name].trained)
    panels = [
        ("trained parameters (log axis)", [rows[n].trained for n in order], "{:,.0f}"),
        ("training memory above\nthe loaded model, MB", [rows[n].training_bytes / 1e6 for n in order], "{:.0f}"),
        ("ms per training step", [rows[n].ms_per_step for n in order], "{:.0f}"),
        ("generation, not merged:\ntimes the base's seconds", [rows[n].slowdown for n in order], "{:.2f}"),
        ("forgetting: perplexity on prose,\nafter / before", [forgetting(task, rows[n]) for n in order], "{:.3f}"),
    ]
    figure, all_axes = plt.subplots(1, len(panels), figsize=(14, 1.4 + 0.27 * len(order)), sharey=True, layout="constrained")
    colors = [KINDS[kind(rows[name])][1] for name in order]
    for axes, (title, values, form) in zip(all_axes, panels):
        start = 1 if "/ before" in title or "times" in title else 0       # of a ratio, what counts is the distance from 1
        axes.barh(range(len(order)), [value - start for value in values], left=start, color=colors, height=0.7)
        axes.set_title(title, fontsize=9.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.set_ylim(len(order) - 0.4, -0.6)                             # the first on top
        if "log" in title:
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 3, max(values) * 30)
        elif start:
            axes.axvline(1, color=INK, linewidth=0.8)
            low, high = min(1, *values), max(1, *values)
            axes.set_xlim(low - 0.15 * (high - low or 1), high + 0.3 * (high - low or 1))
        else:
            axes.set_xlim(0, max(values) * 1.25)
        for place, value in enumerate(values):
            axes.annotate(form.format(value), (max(value, start), place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK)
    all_axes[0].set_yticks(range(len(order)), order, fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for _, color in KINDS.values()]
    figure.legend(handles, KINDS, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)
