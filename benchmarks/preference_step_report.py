"""The table of docs/preference_speed.md, from the numbers that benchmarks/preference_step.py stored."""

from pathlib import Path

from benchmarks.turns import between_marks, made_on

AIMS = {
    ("dpo", "trl"): (3.2, 4.0), ("dpo", "loop"): (1.15, 1.4), ("reward", "trl"): (1.05, 1.3), ("grpo", "trl"): (1.9, 2.5),
    ("rloo", "trl"): (1.9, 2.5), ("ppo", "trl"): (1.4, 2.0),
}  # fmt: skip
"""What was wanted beforehand, and what was hoped for: times as fast, wall clock."""
HEAD = "| step | dtype | beside | its ms | minift, ms | faster, wall clock | wanted | faster, CPU seconds | peak MiB | ratio | losses apart |"


def own(name: str) -> str:
    """Which of our sides another one is compared with: the one that treats the reference alike."""
    return "minift, once" if "once" in name else "minift"


def line(key: str, row: dict) -> str:
    """A line for each other side; only its numbers, if ours were not measured."""
    case, precision = key.split()
    lines = []
    for name, side in row["sides"].items():
        if name.startswith("minift"):
            continue
        beside = f"| {case} | {precision} | {name} | {side['ms']:,} |"
        if name not in row["faster"]:
            lines.append(f"{beside} | | | {side['cpu_s']} CPU s | {side['peak_mib']:,} | | |")
            continue
        ours, faster = row["sides"][own(name)], row["faster"][name]
        wall, cpu = (f"{faster[kind]['median']:.2f} ({faster[kind]['least']:.2f} to {faster[kind]['most']:.2f})" for kind in ("wall", "cpu"))
        wanted = "{:g} / {:g}".format(*AIMS[case, name]) if (case, name) in AIMS else ""
        apart = f"{row['apart']:.0e}" if "apart" in row else ""
        lines.append(f"{beside} {ours['ms']:,} | **{wall.split(' ')[0]}** {wall.split(' ', 1)[1]} | {wanted} | {cpu} | {side['peak_mib']:,} / {ours['peak_mib']:,} | "
                     f"{ours['peak_mib'] / side['peak_mib']:.2f} | {apart} |")  # fmt: skip
    if not lines:
        lines = [f"| {case} | {precision} | | | {' / '.join(str(side['ms']) for side in row['sides'].values())} | | | | "
                 f"{' / '.join(str(side['peak_mib']) for side in row['sides'].values())} | | |"]  # fmt: skip
    return "\n".join(lines)


def write_page(page: Path, values: dict) -> None:
    """The table between the page's marks."""
    rows = values["rows"]
    order = [f"{case} {precision}" for precision in ("fp32", "bf16") for case in ("dpo", "reward", "grpo", "rloo", "ppo")]
    between_marks(page, [
        HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(line(key, rows[key]) for key in order if key in rows), "",
        made_on(values, {"transformers": "", "trl": " (PPO: trl 1.0.0)"}),
    ])  # fmt: skip
