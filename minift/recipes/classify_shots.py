"""Few-shot: how good is a classifier that saw K rows of each label? One draw says little, so there are several, and the spread is told.

    for K in --shots, for each draw:  K rows of each label -> a classifier, in a folder of its own -> the same held-out rows

Of each K the first draw's classifier is kept, of the others the report. report.md has mean and standard deviation of each K over the draws, shots.png the curve. Proved in tests/recipes/test_classify.py."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from minift.data.classified import Classified
from minift.errors import InputError
from minift.files import write_text
from minift.recipes import classify_features, classify_tuned
from minift.recipes.classify_report import SHOWN
from minift.recipes.classify_task import Config, Data, Result
from minift.recipes.report import INK, TRAIN, markdown_table, pyplot
from minift.train.run import open_run


def run(config: Config, data: Data, quiet: bool = False) -> Result:
    if data.problem != "single":
        raise InputError(f"--shots are rows of each label, and these rows ask {data.problem}: leave it out")
    if config.resume:
        raise InputError("--resume: a few-shot run is many short ones; start again with --overwrite")
    rarest = min((sum(row.answer == label for row in data.train), label) for label in data.labels)
    if max(config.shots) > rarest[0]:
        raise InputError(f"--shots {max(config.shots)}: the label {rarest[1]!r} has {rarest[0]} training rows, take at most so many")
    recipe = classify_features if config.features else classify_tuned
    fewest = replace(data, train=drawn(data.train, data.labels, min(config.shots), config.seed))
    recipe.prepare(config, fewest)                                              # what the smallest draw cannot do is refused before there is a folder
    folder = open_run(config.out, "classify", config, config.overwrite)
    say = (lambda text: None) if quiet else print
    say("\n".join(data.lines()))
    every: dict[int, list[dict[str, float]]] = {}
    for shots in sorted(set(config.shots)):
        for number in range(config.draws):
            seed = config.seed + number
            own = replace(config, shots=(), seed=seed, out=folder / f"shots-{shots}" / f"draw-{number}")
            some = replace(data, train=drawn(data.train, data.labels, shots, seed))
            result = recipe.run(own, some, quiet=True)
            for name in ("checkpoints", "embedder/checkpoints", *(("classifier", "model", "adapter", "embedder") if number else ())):
                shutil.rmtree(own.out / name, ignore_errors=True)               # each may be as large as the model
            if result.interrupted:
                say(f"interrupted in draw {number + 1} of {config.draws} of {shots} rows each. A few-shot run cannot be resumed: start again with --overwrite")
                return Result(result.scores, folder, interrupted=True)
            every.setdefault(shots, []).append(result.scores)
        say(f"{shots} rows of each label: accuracy {spread([scores['accuracy'] for scores in every[shots]])} ({config.draws} draws)")
    write_report(folder, every, data, config.draws)
    last = every[max(every)]
    say(f"written: {folder / 'report.md'}")
    return Result({name: fmean(scores[name] for scores in last) for name in ("loss", *SHOWN["single"])}, folder)


def drawn(rows: Sequence[Classified], labels: Sequence[str], shots: int, seed: int) -> list[Classified]:
    """`shots` rows of each label, drawn from `seed`; of one seed a smaller draw is part of a larger one."""
    chosen = []
    for number, label in enumerate(labels):
        own = [row for row in rows if row.answer == label]
        chosen += random.Random(f"{seed} {number}").sample(own, len(own))[:shots]
    return chosen


def spread(values: Sequence[float]) -> str:
    """0.8731 ± 0.0120: mean and standard deviation; of one value, itself."""
    return f"{fmean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def write_report(folder: Path, every: dict[int, list[dict[str, float]]], data: Data, draws: int) -> None:
    """report.md and shots.png."""
    plt = pyplot()
    names = SHOWN["single"]
    rows = [[str(shots), *(spread([scores[name] for scores in found]) for name in names)] for shots, found in every.items()]
    head = f"# Few-shot: {len(data.labels)} labels, {len(data.valid)} held-out rows\n\nMean and standard deviation of {draws} draws.\n"
    write_text(folder / "report.md", f"{head}\n{markdown_table(['rows of each label', *names], rows)}\n")
    figure, axes = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
    for shots, found in every.items():
        axes.plot([shots] * len(found), [scores["accuracy"] for scores in found], "o", color=TRAIN, markersize=5, alpha=0.8)
    axes.plot(list(every), [fmean(scores["accuracy"] for scores in found) for found in every.values()], "o-", color=INK, label="mean of the draws")
    axes.set(title="How many rows of each label does it take?", xlabel="rows of each label", ylabel="accuracy, held out", xscale="log")
    axes.set_xticks(list(every), [str(shots) for shots in every])
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "shots.png", dpi=130)
    plt.close(figure)
