"""profile.md and profile.png: where the time and the memory of a run's steps went, from the profile.json that the loop left (train/profile.py).

Proved in tests/recipes/test_profile.py."""

import json
from pathlib import Path

from minift.files import write_text
from minift.recipes.report import INK, markdown_table, pyplot
from minift.train.memory_kinds import KINDS
from minift.train.profile import PARTS

MB = 1e6
COLOURS = {
    "data": "#b9b9b9", "forward": "#9db8d2", "loss": "#e3b04b", "backward": "#2f5f8f", "optimizer": "#c4472b",
    "weights": "#9db8d2", "gradients": "#2f5f8f", "optimizer states": "#c4472b", "activations": "#e3b04b",
}  # fmt: skip
NARROW = 0.07
"""A piece with a smaller share of its bar has its number in the legend only."""


def write_profile(folder: Path, quiet: bool = False) -> Path | None:
    """The page and its picture beside profile.json; None if the run left none. Says what the page says first."""
    if not (folder / "profile.json").exists():
        return None
    found = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    draw_profile(folder, found)
    write_text(folder / "profile.md", page(found))
    if not quiet:
        print(f"{verdict(found)} More: {folder / 'profile.md'}")
    return folder / "profile.md"


def utilisation(found: dict) -> dict[str, float]:
    """Milliseconds, FLOP and FLOP per second of a timed step, and the last as a share of the peak."""
    ms = sum(found["ms"].values())
    tokens = found["counted_tokens"]
    flop = found["flop"] * (found["tokens"] / tokens if tokens else 1.0)                # the steps that were timed may have had other lengths
    return {"ms": ms, "flop": flop, "per_s": 1000 * flop / ms, "share": 1000 * flop / ms / found["peak"]}


def page(found: dict) -> str:
    use, timed = utilisation(found), found["timed"]
    name = "HFU" if found["checkpointing"] else "MFU"
    parts = [[part, f"{found['ms'][part]:.1f}", f"{found['ms'][part] / use['ms']:.0%}"] for part in PARTS]
    rate = [
        ["tokens through the model, pads included", f"{found['tokens']:,.0f} a step, {1000 * found['tokens'] / use['ms']:,.0f} a second"],
        ["arithmetic of a step", f"{use['flop'] / 1e9:,.1f} GFLOP"],
        ["reached", f"{use['per_s'] / 1e9:,.1f} GFLOP a second"],
        [f"matmul peak, {found['dtype']}, measured at the start", f"{found['peak'] / 1e9:,.1f} GFLOP a second"],
        [name, f"{use['share']:.1%}"],
    ]  # fmt: skip
    told, measured = found["foretold"], found["measured"]
    show = lambda size: "–" if size is None else f"{size / MB:,.1f}"
    memory = [[kind, show(told[kind]), show(measured[kind])] for kind in KINDS]
    memory.append(["together", show(None if None in told.values() else sum(told.values())), show(sum(measured.values()))])
    operators = [[name, str(calls), f"{ms:.1f}", f"{ms / found['traced_ms']:.0%}"] for name, calls, ms in found["operators"]]
    again = " With --checkpointing the second forward pass is in the backward part, and its arithmetic is counted." if found["checkpointing"] else ""
    return f"""# Where a step's time and memory go

{verdict(found)}

![time by part; memory by kind](profile.png)

Steps {timed[0]} to {timed[-1]} were timed, step {found["counted"]} counted, step {found["traced"]} traced (`trace.json.gz`: open it at ui.perfetto.dev). Products in
{found["dtype"]}; {found["device"]}, {found["threads"]} thread{'s' * (found["threads"] != 1)}, torch {found["torch"]}.

{markdown_table(["part", "ms a step", "share"], parts)}

Forward ends behind the model's last norm. The loss is the rest of the recipe's: the head, and where it goes through in chunks its gradient as well.
The optimizer's part has the clipping in it. Evaluation, saving and the log are between steps.{again}

{markdown_table(["", "a timed step"], rate)}

Arithmetic is that of matrix products, attention's whole square among them, two operations a multiply-add.

{markdown_table(["memory, MB", "predicted from shapes", "measured"], memory)}

The optimizer's are its states, and the averages of --ema. Activations are all other tensors alive at once in the forward and backward passes, at their largest; kernels' own scratch memory is not seen.

The ten operators that took most of the traced step:

{markdown_table(["operator", "calls", "ms", "share"], operators)}
"""


def verdict(found: dict) -> str:
    """What it means, in two or three sentences."""
    use, ms = utilisation(found), found["ms"]
    largest = max(PARTS, key=ms.get)
    outside = 1 - found["products_ms"] / found["traced_ms"]
    memory = max(KINDS, key=found["measured"].get)
    said = (
        f"A step takes {use['ms']:.1f} ms, {ms[largest] / use['ms']:.0%} of it in {_the(largest)}, and reaches {use['share']:.0%} of the matmul peak. "
        f"Of the traced step's operators {outside:.0%} of the time is outside matrix products and attention. "
        f"Most memory is {memory} ({found['measured'][memory] / sum(found['measured'].values()):.0%})."
    )
    if ms["data"] > 0.1 * use["ms"]:
        said += " The data is not ready when the step wants it: larger batches, or shorter rows, would help more than a faster model."
    return said


def _the(part: str) -> str:
    return {"data": "fetching data", "forward": "the forward pass", "loss": "the loss", "backward": "the backward pass", "optimizer": "the optimizer"}[part]


def draw_profile(folder: Path, found: dict) -> Path:
    """profile.png: time by part above, memory by kind predicted and measured below."""
    plt = pyplot()
    figure, (time, memory) = plt.subplots(2, 1, figsize=(7.6, 4.6), layout="constrained", height_ratios=(1, 1.7))
    use = utilisation(found)
    _bar(time, 0, found["ms"], "{:.0f}" if use["ms"] >= 100 else "{:.1f}", use["ms"])
    time.set(title=f"a step: {use['ms']:.0f} ms, {use['share']:.0%} of the matmul peak", xlabel="ms", yticks=[0], yticklabels=["time"], ylim=(-0.5, 0.5))
    names = {"optimizer": "optimizer states"}
    sides = [{names.get(kind, kind): (side[kind] or 0) / MB for kind in KINDS} for side in (found["foretold"], found["measured"])]
    widest = max(sum(side.values()) for side in sides)
    for place, side in zip((1, 0), sides):
        _bar(memory, place, side, "{:,.0f}" if widest >= 10 else "{:.2f}", widest)
    memory.set(title="memory while training", xlabel="MB", yticks=[1, 0], yticklabels=["predicted", "measured"], ylim=(-0.5, 1.5))
    for axes in (time, memory):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles))
        axes.legend(named.values(), named.keys(), frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(folder / "profile.png", dpi=130)
    plt.close(figure)
    return folder / "profile.png"


def _bar(axes, place: int, pieces: dict[str, float], form: str, widest: float) -> None:
    left = 0.0
    for name, size in pieces.items():
        axes.barh(place, size, left=left, height=0.62, color=COLOURS[name], label=name, edgecolor="white", linewidth=0.8)
        if size > NARROW * widest:
            dark = name in ("backward", "gradients", "optimizer", "optimizer states")
            axes.text(left + size / 2, place, form.format(size), ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
        left += size
