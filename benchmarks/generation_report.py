"""The tables of docs/generation_speed.md and their picture, from the numbers that benchmarks/generation.py stored: what was wanted and found, then every row.

Wanted were ratios to `generate` of transformers in float32. Speed is judged by CPU seconds, as in training_report.py; the first token, imports and help by the
clock, because somebody waits for them."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.training_report import number, verdict
from benchmarks.turns import between_marks, hardware, made_on

HF, OURS, INT8, PEERS, TRAIN = "HF generate", "minift", "minift, int8", "transformers, peft, trl", "minift, to train"
AIMS = {"15m-b1": (1.6, 2.0), "15m-b8": (1.45, 2.0), "110m-b1": (1.2, 1.6), "110m-b8": (1.2, 1.6)}
"""Wanted and hoped for: times less CPU seconds than `generate`."""
INT8_AIM, IMPORT_AIM, HELP_AIM = 2.0, 1 / 0.4, 1.0
"""int8 at batch 8; times less time to import; seconds of `minift --help`."""
SPEEDS = list(AIMS)
HEAD = "| work | | ms | tokens/s | minift beside it: less CPU seconds | less time | int8 beside it: less CPU seconds | peak MiB |"
FIRST = "| work | | ms to the first token | minift beside it: less time | less CPU seconds | int8 beside it: less time |"
AIMED = "| work | beside | wanted / hoped for | found | |"
START = "| a process that runs | ms | CPU ms | peak MiB |"


def line(key: str, row: dict) -> str:
    """What a row says: a line for each side."""
    case = key.split()[0]
    if case == "int8-loss":
        cost = lambda name: f"{row[name]:.4f} ({row[name] - row['full']:+.4f} nats per token)"
        return f"loss of the bundled model, {row['tokens']:,} tokens: {row['full']:.4f}, int8 {cost('int8')}, with all that linears read in 8 bits {cost('both')}"
    if case == "startup":
        return "\n".join(f"| {name} | {side['ms']:,} | {round(1000 * side['cpu_s']):,} | {side['peak_mib']:,} |" for name, side in row["sides"].items())
    lines = []
    for name, side in row["sides"].items():
        ours, int8 = row["faster"].get(name), row["faster"].get(f"{name} / {INT8}")
        say = lambda found, kind: number(found[kind]) if found else ""
        if case.endswith("first"):
            lines.append(f"| {case} | {name} | {side['ms']:,} | {say(ours, 'wall')} | {say(ours, 'cpu')} | {say(int8, 'wall')} |")
        else:
            speed = f"{1000 * row['tokens'] / max(1, side['ms']):,.0f}"
            lines.append(f"| {case} | {name} | {side['ms']:,} | {speed} | {say(ours, 'cpu')} | {say(ours, 'wall')} | {say(int8, 'cpu')} | {side['peak_mib']:,} |")
    return "\n".join(lines + [f"| {case} | {name} | {why} |" + " |" * (2 if case.endswith("first") else 5) for name, why in row.get("absent", {}).items()])


def aims(rows: Mapping[str, dict]) -> list[str]:
    """The table of what was wanted."""
    lines = []
    say = lambda work, beside, given, found, kind, wanted, hoped=None: lines.append(
        f"| {work} | {beside} | {given} | {number(found[kind])} | {verdict(found[kind], wanted, hoped)} |")  # fmt: skip
    for case, (wanted, hoped) in AIMS.items():
        faster = rows.get(f"{case} fp32", {}).get("faster", {})
        if HF in faster:
            say(case, HF, f"{wanted:g} / {hoped:g}", faster[HF], "cpu", wanted, hoped)
        others = [name for name in faster if " / " not in name and name != HF]
        if others:
            best = min(others, key=lambda name: faster[name]["cpu"]["median"])
            lines.append(f"| {case} | {best} | | {number(faster[best]['cpu'])} | |")
        if case.endswith("b8") and f"{HF} / {INT8}" in faster:
            say(f"{case}, int8", HF, f"{INT8_AIM:g}", faster[f"{HF} / {INT8}"], "cpu", INT8_AIM)
    for case in SPEEDS:
        faster = rows.get(f"{case}-first fp32", {}).get("faster", {})
        if HF in faster:
            say(f"{case}, first token", HF, "1", faster[HF], "wall", 1.0)
    start = rows.get("startup fp32", {"sides": {}, "faster": {}})
    for place, name in ((PEERS, "import minift"), (f"{PEERS} / {TRAIN}", "import what training needs")):
        if place in start["faster"]:
            say(name, f"import {PEERS}", f"{IMPORT_AIM:g}", start["faster"][place], "wall", IMPORT_AIM)
    if "minift --help" in start["sides"]:
        ms = start["sides"]["minift --help"]["ms"]
        lines.append(f"| minift --help | | under {HELP_AIM:g} s | {ms / 1000:.2f} s | {'met' if ms < 1000 * HELP_AIM else '**missed**'} |")
    return lines


def write_page(page: Path, values: dict) -> None:
    """The tables between the page's marks, and the picture beside it."""
    rows = values["rows"]
    divider = lambda head: "|" + "---|" * (head.count("|") - 1)
    table = lambda head, keys: [head, divider(head), *(line(f"{key} fp32", rows[f"{key} fp32"]) for key in keys if f"{key} fp32" in rows), ""]
    draw(page.with_suffix(".png"), {case: rows[f"{case} fp32"] for case in SPEEDS if f"{case} fp32" in rows}, hardware(values["machine"]))
    between_marks(page, [
        f"![tokens per second]({page.stem}.png)", "", AIMED, divider(AIMED), *aims(rows), "",
        *table(HEAD, SPEEDS), *table(FIRST, [f"{case}-first" for case in SPEEDS]), *table(START, ["startup"]),
        *([f"int8 is lossy: {line('int8-loss fp32', rows['int8-loss fp32'])}.", ""] if "int8-loss fp32" in rows else []),
        made_on(values, dict.fromkeys(("transformers", "peft", "trl"), "")),
    ])  # fmt: skip


def draw(file: Path, rows: Mapping[str, dict], where: str) -> None:
    """Tokens per second of every side, a panel for each work; the hardware below them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, max(1, len(rows)), figsize=(3.1 * max(1, len(rows)) + 1, 2.6), layout="constrained", squeeze=False)
    for axes, (case, row) in zip(panels[0], rows.items()):
        names = list(row["sides"])
        speeds = [1000 * row["tokens"] / max(1, row["sides"][name]["ms"]) for name in names]
        colors = [{OURS: "#d98c3f", INT8: "#ecc59c"}.get(name, "#2f5f8f") for name in names]
        bars = axes.barh(names, speeds, color=colors, height=0.6)
        axes.bar_label(bars, [f" {speed:,.0f}" for speed in speeds], fontsize=8)
        axes.set(title=f"{case}, tokens/s")
        axes.margins(x=0.25)
        axes.invert_yaxis()
        axes.grid(alpha=0.25, linewidth=0.6, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not panels[0][0]:
            axes.set_yticklabels([])
    figure.supxlabel(f"{where}; 128 tokens behind 128, greedy, float32", fontsize=8, color="#555555")
    figure.savefig(file, dpi=120)
    plt.close(figure)
