"""The report of `minift quantize`: error by layer, bytes, perplexity; for a terminal, as Markdown, and as a picture.

Proved in tests/recipes/test_quantize.py."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from minift.evaluate.perplexity import Perplexity
from minift.quant.errors import Error
from minift.recipes.report import markdown_table, pyplot, terminal_table

INK, NEAREST = "#333333", "#bbbbbb"
COLORS = ["#2f5f8f", "#6d9dc5", "#a9c7e0", "#c4472b", "#3f7f4f", "#8fbf7f", "#d9a441", "#8a6db1"]


@dataclass(frozen=True)
class Size:
    """Bytes before and after."""

    before: int
    after: int
    numbers: int | None
    """How many numbers they hold; None where bits for each say little."""


@dataclass(frozen=True)
class Added:
    """Nats per token more after than before, a mean over windows."""

    nats: float
    interval: float | None
    """1.96 standard errors over windows: the 95 % interval is nats ± interval. None: too few windows to tell."""

    def __str__(self) -> str:
        return f"{self.nats:+.4f}" + (" (too few windows for an interval)" if self.interval is None else f" ± {self.interval:.4f}")


def layer_rows(errors: dict[str, Error]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row per linear, then the mean and the worst of all."""
    calibrated = any(e.output is not None for e in errors.values())
    header = ["linear", "weight error", "worst block"] + (["output error", "of rtn"] if calibrated else [])
    columns = [[e.weight for e in errors.values()], [e.worst_block for e in errors.values()]]
    if calibrated:
        columns += [[e.output for e in errors.values()], [e.nearest for e in errors.values()]]
    known = [[value for value in column if value is not None] for column in columns]
    lines = [*zip(errors, *columns), ("mean", *(sum(c) / len(c) for c in known)), ("worst", *map(max, known))]
    return header, [[name, *("–" if value is None else f"{value:.4f}" for value in values)] for name, *values in lines]


def kind_rows(errors: dict[str, Error]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row per kind of linear: means over its blocks, and the worst of all their parts."""
    calibrated = any(e.output is not None for e in errors.values())
    rows = []
    for kind, found in by_kind(errors).items():
        mean = lambda values: f"{sum(values) / len(values):.4f}" if None not in values else "–"
        row = [kind, str(len(found)), mean([e.weight for e in found.values()]), f"{max(e.worst_block for e in found.values()):.4f}"]
        if calibrated:
            row += [mean([e.output for e in found.values()]), mean([e.nearest for e in found.values()])]
        rows.append(row)
    header = ["linear", "times", "weight error", "worst block"] + (["output error", "of rtn"] if calibrated else [])
    return header, rows


def by_kind(errors: dict[str, Error]) -> dict[str, dict[int, Error]]:
    """Kind of linear -> block -> error. "blocks.3.mlp.up" is mlp.up in block 3; a linear outside the blocks stands alone, at 0."""
    kinds: dict[str, dict[int, Error]] = {}
    for path, found in errors.items():
        parts = path.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        kind, block = (path, 0) if place is None else (".".join(parts[place + 1 :]), int(parts[place]))
        kinds.setdefault(kind, {})[block] = found
    return kinds


def total_rows(sizes: dict[str, Size], before: Perplexity, after: Perplexity, added: Added) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what changed in sum."""
    number = lambda name, a, b: [name, f"{a:.4f}", f"{b:.4f}", f"{100 * (b / a - 1):+.2f} %"]
    rows = []
    for name, size in sizes.items():
        rows.append([f"MB of {name}", f"{size.before / 1e6:,.3f}", f"{size.after / 1e6:,.3f}", f"{size.before / size.after:.2f}x smaller"])
        if size.numbers is not None:
            rows.append(["bits per weight", f"{8 * size.before / size.numbers:.3f}", f"{8 * size.after / size.numbers:.3f}", ""])
    rows += [number("nats per token", before.nats_per_token, after.nats_per_token), number("perplexity", before.perplexity, after.perplexity)]
    if before.bits_per_byte is not None:
        rows.append(number("bits per byte", before.bits_per_byte, after.bits_per_byte))
    rows.append(["nats added, mean over windows", "", "", str(added)])
    return ["measure", "before", "after", "change"], rows


def console_tables(
    title: str, held: str, errors: dict[str, Error], sizes: dict[str, Size], before: Perplexity, after: Perplexity, added: Added
) -> list[Table]:
    return [terminal_table(title, *kind_rows(errors)), terminal_table(f"measured on {held}", *total_rows(sizes, before, after, added))]


def markdown(
    title: str, held: str, errors: dict[str, Error], sizes: dict[str, Size], before: Perplexity, after: Perplexity, added: Added, settings: dict
) -> str:
    """report.md."""
    chosen = "\n".join(f"- {name}: {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in settings.items())
    calibrated = any(e.output is not None for e in errors.values())
    meaning = "Weight error is ‖W − Ŵ‖ / ‖W‖, the worst block the largest such share among numbers with one scale."
    if calibrated:
        meaning += (" Output error is ‖X (W − Ŵ)ᵀ‖ / ‖X Wᵀ‖ on the calibration texts, and \"of rtn\" what rounding to nearest would have had with"
                    " groups of the same size. A calibrated method gives up some weight error for it.")    # fmt: skip
    return "\n\n".join([
        f"# {title}", f"Measured on {held}. ± is 1.96 standard errors over windows.",
        markdown_table(*total_rows(sizes, before, after, added)), "![error by layer](errors.png)",
        "## Error by layer", meaning, markdown_table(*layer_rows(errors)), "## Settings", chosen,
    ]) + "\n"    # fmt: skip


def draw_errors(file: Path, title: str, errors: dict[str, Error]) -> None:
    """One panel: error by block, a line for each kind of linear. With calibration the output error, rounding to nearest in grey behind it."""
    plt = pyplot()
    calibrated = any(e.output is not None for e in errors.values())
    figure, axes = plt.subplots(figsize=(8.0, 4.4), layout="constrained")
    for place, (kind, found) in enumerate(by_kind(errors).items()):
        if calibrated:
            axes.plot(list(found), [e.nearest for e in found.values()], "o--", color=NEAREST, linewidth=0.9, markersize=3, zorder=1)
        values = [e.output if calibrated else e.weight for e in found.values()]
        axes.plot(list(found), values, "o-", color=COLORS[place % len(COLORS)], linewidth=1.6, markersize=5, label=kind, zorder=2)
    if calibrated:
        axes.plot([], [], "o--", color=NEAREST, linewidth=0.9, markersize=3, label="the same, rounded to nearest")
    axes.set(title=f"Error by layer: {title}", xlabel="block", ylabel="relative output error" if calibrated else "relative error of the weights")
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.margins(x=0.06, y=0.12)                                 # no marker on the edge; from zero the lines would be one
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=130)
    plt.close(figure)

