"""The tables of docs/training_speed.md, from the numbers that benchmarks/training.py stored: what was wanted and what was found, then every row.

Wanted were ratios of CPU seconds, which other programs on the machine change less than the wall clock. "met" is said of the median over the rounds; where
the least ratio of a round stayed below what was wanted, that is said too. The picture is training_plot.py's."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.training_plot import draw
from benchmarks.turns import between_marks, hardware, made_on

TRAINER, TRL, BEST, OURS = "HF Trainer", "trl", "trl, its best mode", "minift"
SMALL_LORA, LARGE, NARROW = {TRAINER: (1.2, 1.5), TRL: (2.4, 3.0)}, {TRAINER: (1.1, 1.25), TRL: (1.8, 2.0)}, {TRAINER: (1.1, 1.3), TRL: (1.2, 1.4)}
AIMS: dict[str, dict[str, tuple[float, float | None]]] = {
    "full fp32": {TRAINER: (1.25, 1.45), TRL: (2.3, 2.7)}, "full bf16": {TRAINER: (1.35, 1.6), TRL: (2.3, 2.7)},
    "lora fp32": {TRAINER: (1.3, 1.5), TRL: (2.5, 3.0)}, "lora bf16": {TRAINER: (1.5, 1.8), TRL: (2.5, 3.0)},
    **{f"qlora {precision}": SMALL_LORA for precision in ("fp32", "bf16")},
    **{f"{method}-110m {precision}": LARGE for precision in ("fp32", "bf16") for method in ("full", "lora")},
    **{f"{method}-v4096 {precision}": NARROW for precision in ("fp32", "bf16") for method in ("full", "lora")},
    **{f"real {precision}": {TRAINER: (3.0, 4.0), TRL: (5.5, None), BEST: (2.8, 3.5)} for precision in ("fp32", "bf16")},
    "start fp32": {TRAINER: (1 / 0.5, None), TRL: (1 / 0.45, None), "torchtune": (1 / 0.75, None)},
}  # fmt: skip
"""What was wanted beforehand, and what was hoped for: times less CPU seconds than this one takes."""
MEMORY = {TRAINER: 0.6, TRL: 0.35}
"""Wanted: our peak memory as a share of theirs."""
ORDER = [
    f"{case} {precision}"
    for case in ("full", "lora", "qlora", "full-110m", "lora-110m", "full-v4096", "lora-v4096", "real", "defaults", "start") for precision in ("fp32", "bf16", "auto")
]  # fmt: skip
HEAD = "| work | dtype | beside | its ms | minift, ms | less CPU seconds | less time | peak MiB | ratio | losses apart |"
AIMED = "| work | dtype | beside | wanted / hoped for | found, CPU seconds | | peak memory: wanted | found | |"


def number(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def line(key: str, row: dict) -> str:
    """A line for each other side, and for each other way of ours; only the numbers, if ours were not measured."""
    case, precision = key.split()
    lines = []
    for name, side in row["sides"].items():
        if name == OURS:
            continue
        beside = f"| {case} | {precision} | {name} | {side['ms']:,} |"
        if name in row["faster"]:
            own, faster = row["sides"][OURS], row["faster"][name]
            apart = f"{row['apart']:.0e}" if "apart" in row else ""
            lines.append(f"{beside} {own['ms']:,} | **{number(faster['cpu']).replace(' (', '** (', 1)} | {number(faster['wall'])} | "
                         f"{side['peak_mib']:,} / {own['peak_mib']:,} | {own['peak_mib'] / side['peak_mib']:.2f} | {apart} |")  # fmt: skip
        else:
            lines.append(f"{beside} | {side['cpu_s']} CPU s | | {side['peak_mib']:,} | | |")
    for name, why in row.get("absent", {}).items():
        lines.append(f"| {case} | {precision} | {name} | {why} | | | | | | |")
    if not lines:
        own = row["sides"][OURS]
        lines = [f"| {case} | {precision} | | | {own['ms']:,} | {own['cpu_s']} CPU s | | {own['peak_mib']:,} | | |"]
    return "\n".join(lines)


def verdict(found: Mapping[str, float], wanted: float, hoped: float | None) -> str:
    if found["median"] < wanted:
        return "**missed**"
    if hoped is not None and found["median"] >= hoped:
        return "met, as hoped"
    return "met" if found["least"] >= wanted else "met, not in every round"


def best_mode(row: dict) -> str | None:
    """trl's own way to batch real rows that takes the least CPU seconds."""
    modes = [name for name in row["faster"] if name.startswith(TRL)]
    return min(modes, key=lambda name: row["faster"][name]["cpu"]["median"]) if modes else None


def aims(rows: Mapping[str, dict]) -> list[str]:
    """The table of what was wanted."""
    lines = []
    for key in ORDER:
        for name, (wanted, hoped) in AIMS.get(key, {}).items() if key in rows else ():
            row, (case, precision) = rows[key], key.split()
            side = best_mode(row) if name == BEST else name
            if side not in row["faster"]:
                continue
            found, given = row["faster"][side]["cpu"], f"{wanted:.2f}" + (f" / {hoped:.2f}" if hoped else "")
            ratio = row["sides"][OURS]["peak_mib"] / row["sides"][side]["peak_mib"]
            memory = f"{MEMORY[name]:g} | {ratio:.2f} | {'met' if ratio <= MEMORY[name] else '**missed**'}" if name in MEMORY and case != "start" else "| |"
            named = side if name != BEST else f"{name} ({side})"
            lines.append(f"| {case} | {precision} | {named} | {given} | {number(found)} | {verdict(found, wanted, hoped)} | {memory} |")
    return lines


def write_page(page: Path, values: dict) -> None:
    """The tables between the page's marks, and the picture beside it."""
    rows = values["rows"]
    divider = lambda head: "|" + "---|" * (head.count("|") - 1)
    kept = [key for key in ORDER if key in rows]
    draw(page.with_suffix(".png"), {key: rows[key] for key in kept}, AIMS, hardware(values["machine"]))
    between_marks(page, [
        f"![CPU seconds and memory beside the other libraries]({page.stem}.png)", "",
        AIMED, divider(AIMED), *aims(rows), "",
        HEAD, divider(HEAD), *(line(key, rows[key]) for key in kept), "",
        made_on(values, dict.fromkeys(("transformers", "peft", "trl", "bitsandbytes"), "")),
    ])  # fmt: skip
