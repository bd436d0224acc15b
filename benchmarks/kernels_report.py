"""docs/kernels.md and its pictures, made from stored results alone, so that they can be made again.

The picture is the roofline: FLOP per byte of a case to the right, FLOP per second that each provider reached upwards, both logarithmic;
above them the line that the run's own copy and bf16 product draw. All providers of a case stand over the same intensity, that of the
least bytes; a provider that moves more of them stands lower.
Proved in tests/benchmarks/test_kernels.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.measure import RESULTS

DOCS = RESULTS.parents[1] / "docs"
START, END = "<!-- measured: made by benchmarks/kernels_report.py -->", "<!-- end of measured -->"
OURS = "minift"
COLOURS = {OURS: "#c4472b", "torch eager": "#9db8d2", "torch.compile": "#2f5f8f"}
NOTHING = "No GPU has been measured yet: there is no benchmarks/results/kernels-*.json.\n"
INTRODUCTION = f"""# How fast are the kernels?

`python -m benchmarks.kernels` answers on the GPU it finds, in at most 8 minutes, and writes the tables below. A kernel that is not right
prints no speed. The percentage is that of the roofline: the time that the least bytes (each input read once, each output written once) or
FLOPs of the case would take at the rate of a copy or of a bf16 product measured in the same process. Times are medians over rounds in which
every provider had its turn, the cache emptied before each, launches left out below 50 us (CUDA graphs); in brackets stand the 20th and the
80th percentile. A ratio is the median of those within the rounds, in brackets the interval that 95 % of resampled rounds give; above 1
minift is faster, below 1 it loses. `minift kernel NAME` shows a kernel's maths, its bounds on four GPUs, and what the compiler made of it.

{START}
{NOTHING}{END}
"""


def time(us: dict[str, float]) -> str:
    return f"{us['median']:,.1f} ({us['p20']:,.1f} to {us['p80']:,.1f})"


def ratio(faster: dict[str, float]) -> str:
    return f"{faster['median']:.2f}x ({faster['low']:.2f} to {faster['high']:.2f})"


def right(accuracy: dict) -> str:
    """What the accuracy check found, in a few words."""
    if accuracy["failure"]:
        return f"WRONG: {accuracy['failure']}"
    return f"error {accuracy['error']:.1e} of {accuracy['allowed']:.1e} allowed" if accuracy["allowed"] else "equal to the bit"


def case_lines(name: str, record: dict) -> Iterator[str]:
    """What the terminal shows of a kernel once its process has ended."""
    yield f"{name}: {record['state']}"
    for case, c in record["cases"].items():
        if "accuracy" in c:
            yield f"  {case}: {right(c['accuracy'])}"
        for provider, row in c.get("providers", {}).items():
            told = [f"{time(row['us'])} us"]
            told += [f"{100 * row['roofline']:.0f} % of the roofline"] if "roofline" in row else []
            told += [f"minift is {ratio(row['ours_faster'])} as fast"] if "ours_faster" in row else []
            yield f"    {provider}: {', '.join(told + ([row['note']] if 'note' in row else []))}"
        for provider, why in c.get("missing", {}).items():
            yield f"    {provider}: {why}"
    yield from (f"  FAILED {trouble}" for trouble in record["troubles"])


def table(kernels: dict[str, dict]) -> list[str]:
    """Markdown: a line per provider of every case that was right."""
    lines = ["| kernel | case | bound, us | | median, us | of the roofline | minift's speed | peak memory, MiB | |",
             "|---|---|---:|---|---:|---:|---:|---:|---|"]  # fmt: skip
    for name, record in kernels.items():
        for case, c in record["cases"].items():
            for provider, row in c.get("providers", {}).items():
                first = [name, case, f"{c['bound_us']:,.1f} ({c['bound_by']})"] if provider == OURS else ["", "", ""]
                faster = ratio(row["ours_faster"]) if "ours_faster" in row else ""
                remark = "; ".join([*([right(c["accuracy"])] if provider == OURS else []), *([row["note"]] if "note" in row else [])])
                cells = [*first, provider, time(row["us"]), f"{100 * row['roofline']:.0f} %", faster, f"{row['peak_bytes'] / 2**20:,.1f}", remark]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def hardware(record: dict) -> str:
    """What a kernel was measured on and with, in a sentence."""
    card, after, ceilings = record.get("card", {}), record.get("card_after", {}), record["ceilings"]
    read = f"driver {card['driver_version']}, SM clock {card['clocks.sm']} MHz before and {after.get('clocks.sm', '?')} after (at most \
{card['clocks.max.sm']}), {card['power.draw']} W of {card['power.limit']}" if "driver_version" in card else "clocks and power not read"
    versions = ", ".join(f"{name} {record[name] or 'not installed'}" for name in ("torch", "triton", "bitsandbytes"))
    return (f"copy {ceilings['copy'] / 1e12:.2f} TB/s, bf16 product {ceilings['matmul'] / 1e12:.0f} TFLOP/s; {card.get('name', 'unknown')}, {read}; "
            f"{versions}, Python {record['python']}; commit {record['commit'] or 'unknown'}, {record['date'][:10]}")  # fmt: skip


def section(result: dict, picture: str) -> list[str]:
    """The part of the page about one stored file."""
    measured = {name: record for name, record in result["kernels"].items() if "ceilings" in record}
    lines = [f"## {result['gpu']}", "", *table(measured), ""]
    if any(points(result)):
        lines += [f"![roofline]({picture})", ""]
    told: dict[str, list[str]] = {}
    for name, record in measured.items():
        told.setdefault(hardware(record), []).append(name)
    lines += [f"- {', '.join(names)}: {text}." for text, names in told.items()]
    missing = {f"{provider} ({why})" for r in measured.values() for c in r["cases"].values() for provider, why in c.get("missing", {}).items()}
    lines += [f"- Not run: {', '.join(sorted(missing))}."] if missing else []
    lines += [f"- **{name} failed**: {'; '.join(record['troubles'])}." for name, record in result["kernels"].items() if record["troubles"]]
    return [*lines, ""]


def points(result: dict) -> Iterator[tuple[str, str, float, float]]:
    """(provider, kernel and case, FLOP per byte, FLOP per second). A case without FLOPs has no place on a logarithmic axis."""
    for name, record in result["kernels"].items():
        for case, c in record["cases"].items():
            for provider, row in c.get("providers", {}).items():
                if c["flops"]:
                    yield provider, f"{name}, {case}", c["flops"] / c["bytes"], c["flops"] / (row["us"]["median"] / 1e6)


def draw(result: dict, file: Path) -> None:
    """The roofline picture of one stored file."""
    dots = list(points(result))
    ceilings = [record["ceilings"] for record in result["kernels"].values() if "ceilings" in record]
    copy, matmul = (max(c[name] for c in ceilings) for name in ("copy", "matmul"))
    figure, axes = plt.subplots(figsize=(9.6, 6.0), layout="constrained")
    span = sorted([x for _, _, x, _ in dots] + [matmul / copy])
    left, right = span[0] / 3, span[-1] * 3
    axes.plot([left, matmul / copy, right], [left * copy, matmul, matmul], color="#333333", linewidth=1.4)
    axes.annotate(f"copy {copy / 1e12:.2f} TB/s", (left, left * copy), xytext=(6, -14), textcoords="offset points", fontsize=8)
    axes.annotate(f"bf16 product {matmul / 1e12:.0f} TFLOP/s", (right, matmul), xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=8)
    others = iter(("#6b8e4e", "#8a5a9e", "#b8862b", "#4e8a8e", "#777777"))
    for provider in dict.fromkeys(provider for provider, *_ in dots):
        colour, ours = COLOURS.get(provider) or next(others, "#777777"), provider == OURS
        xs, ys = zip(*((x, y) for of, _, x, y in dots if of == provider))
        axes.scatter(xs, ys, s=44 if ours else 22, color=colour, label=provider, zorder=3 if ours else 2, alpha=0.9)
    leftmost = {label.split(",")[0]: (x, y) for provider, label, x, y in sorted(dots, key=lambda dot: -dot[2]) if provider == OURS}
    for number, (kernel, place) in enumerate(reversed(leftmost.items())):                       # staggered: neighbours stay readable
        axes.annotate(kernel, place, xytext=(-6, (5, 16, 27)[number % 3]), textcoords="offset points", ha="right", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(left, right), xlabel="FLOP per byte", ylabel="FLOP per second")
    axes.set_title(f"{result['gpu']}: what was reached, under what could be")
    axes.grid(alpha=0.25, linewidth=0.6, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write_page(files: list[Path], docs: Path = DOCS) -> Path:
    """The page, a section per stored file, between its two marks; what stands around them is kept. Pictures beside it."""
    page = docs / "kernels.md"
    text = page.read_text(encoding="utf-8") if page.exists() else INTRODUCTION
    lines: list[str] = []
    for file in files:
        result, picture = json.loads(file.read_text(encoding="utf-8")), docs / f"{file.stem}.png"
        if any(points(result)):
            draw(result, picture)
        lines += section(result, picture.name)
    before, _, rest = text.partition(START)
    page.write_text(f"{before}{START}\n" + ("\n".join(lines) if lines else NOTHING) + END + rest.partition(END)[2], encoding="utf-8")
    return page
