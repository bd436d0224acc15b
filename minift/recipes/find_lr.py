"""Find a learning rate for `minift sft`: the same options, one short run in which the rate rises at every step, and a picture of it.

    minift find-lr --data your.jsonl --model path/to/checkpoint --out runs/rate --method lora

Writes lr.json (the rates, the losses, the two rules' rates) and lr.png; no weights. What the sweep does and which rule its suggestion comes from
is in train/lr_finder.py. Proved in tests/recipes/test_find_lr.py. Left out: other recipes' losses."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from minift.errors import InputError, RunError
from minift.files import write_text
from minift.recipes import sft
from minift.recipes.report import HELD_OUT, INK, TRAIN, pyplot
from minift.train.lr_finder import Sweep, rates_between, sweep
from minift.train.neftune import noisy
from minift.train.run import open_run

WITHOUT_EFFECT = ("lr", "epochs", "max_steps", "schedule", "cooldown", "warmup", "eval_every", "patience", "save_every", "tensorboard", "profile", "ema", "compile",
                  "samples", "new_tokens", "resume")  # fmt: skip
"""Options of sft that a sweep has no use for."""


@dataclass(frozen=True, kw_only=True)
class Config(sft.Config):
    """Find a learning rate: raise it step by step until the loss bursts. Takes the options that sft would be given."""

    lowest: float = 1e-6
    """The rate of the first step."""
    highest: float = 1.0
    """The rate of the last step, if the loss has not burst before."""
    steps: int = 100
    """Optimizer steps from the lowest rate to the highest, in equal factors."""


@dataclass(frozen=True)
class Result:
    sweep: Sweep
    written: Path
    """lr.json; lr.png stands beside it."""


def run(config: Config, quiet: bool = False) -> Result:
    defaults = {field.name: field.default for field in fields(config)}
    for name in WITHOUT_EFFECT:
        if getattr(config, name) != defaults[name]:
            raise InputError(f"--{name.replace('_', '-')} has no effect on a search for the rate: leave it out")
    rates = rates_between(config.lowest, config.highest, config.steps)
    ready = sft.prepare(sft.with_rate(config))
    if config.checkpointing:
        ready.model.checkpointing = True
    folder = open_run(config.out, "find-lr", config, config.overwrite)
    say = (lambda text: None) if quiet else print
    say(ready.said)
    loss = noisy(sft.loss, config.neftune) if config.neftune else sft.loss
    seen = sweep(ready.model, sft.batches(ready.train_set, config), loss, config, rates)
    numbers = {
        "suggestion": seen.suggestion, "rule": "a tenth of the rate with the lowest smooth loss", "steepest": seen.rates[seen.steepest],
        "lowest_loss_at": seen.rates[seen.lowest], "rates": seen.rates, "losses": seen.losses, "smooth": seen.smooth,
    }  # fmt: skip
    write_text(folder / "lr.json", json.dumps(numbers, indent=2) + "\n")
    draw(seen, folder / "lr.png", f"{config.method}, {config.optimizer}")
    if seen.suggestion is None:
        raise RunError(f"the loss never fell between {seen.rates[0]:.1e} and {seen.rates[-1]:.1e} ({folder / 'lr.png'}): pass a smaller --lowest, or look at the data")
    say(f"{len(seen.rates)} steps from {seen.rates[0]:.1e} to {seen.rates[-1]:.1e}: the smooth loss fell from {seen.smooth[0]:.3f} to {seen.smooth[seen.lowest]:.3f}"
        f" at {seen.rates[seen.lowest]:.1e}, most steeply at {seen.rates[seen.steepest]:.1e}; written: {folder / 'lr.json'}, lr.png")
    if seen.open_end:
        say(f"the loss still fell at the highest rate: pass a --highest above {config.highest:g} to see where that ends")
    say(f"suggested: --lr {seen.suggestion:.1e} (a tenth of the rate with the lowest loss)")
    return Result(seen, folder / "lr.json")


def draw(seen: Sweep, path: Path, title: str) -> None:
    """Losses over rates, with the two rules' rates marked. The axis ends a little above where the loss began: a burst is no news."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    axes.plot(seen.rates, seen.losses, color=TRAIN, linewidth=0.8, label="each step")
    axes.plot(seen.rates, seen.smooth, color="#2f5f8f", linewidth=1.8, label="smooth")
    paper = dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.5)                   # the words stand on the curve of the steps
    for place, name, left in ((seen.steepest, "steepest", True), (seen.lowest, "lowest", False)):
        axes.plot(seen.rates[place], seen.smooth[place], "o", color=INK, markersize=5)
        axes.annotate(f"{name} {seen.rates[place]:.1e}", (seen.rates[place], seen.smooth[place]), xytext=(-8 if left else 8, -14), textcoords="offset points",
                      ha="right" if left else "left", fontsize=8, color=INK, bbox=paper)  # fmt: skip
    if seen.suggestion is not None:
        axes.axvline(seen.suggestion, color=HELD_OUT, linewidth=1.2, linestyle="--", label=f"suggested {seen.suggestion:.1e}")
    low, high = min(seen.losses), max(seen.smooth[: seen.lowest + 1])
    margin = max(high - low, 0.01)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, nats per token", title=title, ylim=(low - 0.15 * margin, high + 0.35 * margin))
    axes.set_xlim(seen.rates[0] / 1.2, seen.rates[-1] * 1.2)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
