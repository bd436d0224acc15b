"""The tables of docs/embedding_speed.md, from the numbers that benchmarks/embedding_speed.py stored."""

from pathlib import Path

from benchmarks.turns import between_marks, made_on

AIMS = {"step": 1.1, "real": 2.0, "encode": 1.5}
"""What was wanted beforehand: times as fast as sentence-transformers, wall clock."""
BEST = "at its best batch size"
HEAD = "| | dtype | beside | its ms | minift, ms | faster, wall clock | wanted | faster, CPU seconds | peak MiB | apart |"
MEMORY = "| pairs of a batch | in memory at once | ms | peak MiB | above the loaded model |"
KINDS = {"minift, 32 at once": ("32", "32"), "minift, 512 at once": ("512", "512"), "minift": ("512", "32"), "sentence-transformers": ("512, sentence-transformers", "32")}


def line(key: str, row: dict) -> str:
    """A line for each other side; only its numbers, if ours were not measured."""
    case, precision = key.split()
    if case == "gradcache":
        return memory(row)
    lines = []
    for name, side in row["sides"].items():
        if name == "minift":
            continue
        named = f"{name}, {row['best']}" if name == BEST else name
        beside = f"| {case} | {precision} | {named} | {side['ms']:,} |"
        if name not in row["faster"]:
            lines.append(f"{beside} | | | {side['cpu_s']} CPU s | {side['peak_mib']:,} | |")
            continue
        ours, faster = row["sides"]["minift"], row["faster"][name]
        wall, cpu = (f"{faster[kind]['median']:.2f} ({faster[kind]['least']:.2f} to {faster[kind]['most']:.2f})" for kind in ("wall", "cpu"))
        lines.append(f"{beside} {ours['ms']:,} | **{wall.split(' ')[0]}** {wall.split(' ', 1)[1]} | {AIMS[case]:g} | {cpu} | {side['peak_mib']:,} / {ours['peak_mib']:,} | {row['apart']:.0e} |")
    return "\n".join(lines or [f"| {case} | {precision} | | | {row['sides']['minift']['ms']:,} | | | | {row['sides']['minift']['peak_mib']:,} | |"])


def memory(row: dict) -> str:
    """gradcache: a line a side."""
    lines = [f"| {KINDS[name][0]} | {KINDS[name][1]} | {side['ms']:,} | {side['peak_mib']:,} | {side['added_mib']:,} |" for name, side in row["sides"].items()]
    return "\n".join(lines)


def write_page(page: Path, values: dict) -> None:
    """The tables between the page's marks."""
    rows = values["rows"]
    order = [f"{case} {precision}" for case in ("step", "real", "encode") for precision in ("fp32", "bf16")]
    tables = [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(line(key, rows[key]) for key in order if key in rows), ""]
    if "gradcache fp32" in rows:
        tables += [MEMORY, "|" + "---|" * (MEMORY.count("|") - 1), memory(rows["gradcache fp32"]), ""]
    between_marks(page, [
        *tables,
        made_on(values, {"transformers": "", "sentence-transformers": ""}),
    ])  # fmt: skip
