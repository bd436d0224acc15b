"""The table that people choose a fine-tuning method by, measured: every method on the same task, model, rows and number of steps.

Each method searches its learning rate among as many candidates (factors on its default), judged on validation rows, and is then run with
several seeds. What is measured, and how, stands in compare_row.py. Each row is a process of its own: its memory is its own, and if it
fails, the table says so and the others go on. Its result is a file, so a table that was stopped goes on with --resume; to measure a row
again, delete its file.

    OUT/rows/METHOD.json                 a row's numbers, every seed and every candidate rate
    OUT/table.md table.csv report.md     the table; what it shows that tables written from memory get wrong (compare_findings.py)
    OUT/quality.png costs.png            held-out loss against trained parameters; what each method costs (compare_plots.py)

Proved in tests/recipes/test_compare.py. Left out: rows that run side by side, which would measure each other."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console

from minift import folder as folders
from minift.data.examples import build
from minift.data.pydocs import documents, pairs
from minift.data.sources import Row, read
from minift.data.split import split_rows
from minift.errors import InputError
from minift.evaluate.forgetting import text_windows
from minift.evaluate.perplexity import perplexity
from minift.files import write_text
from minift.quant import Scheme
from minift.recipes.compare_findings import report
from minift.recipes.compare_plots import draw_costs, draw_quality
from minift.recipes.compare_table import csv_table, markdown, short_table
from minift.recipes.compare_task import Measured, Quality, Task, read_row
from minift.recipes.docstrings import as_row, scores, spread
from minift.recipes.loading import use_template
from minift.recipes.methods import METHODS
from minift.recipes.report import terminal_table
from minift.recipes.sft import refuse_too_long
from minift.train.precision import Precision, fastest
from minift.train.run import open_run

ROW = [sys.executable, "-m", "minift.recipes.compare_row"]
"""The command that measures one row: FOLDER and METHOD follow."""

QUICK = dict(rates=(4.0, 16.0), seeds=1, steps=12, batch_tokens=512, train=400, valid=40, judged=24, new_tokens=20, windows=6, rounds=3)
"""What --quick changes; options that are given stay."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure every fine-tuning method on one task: memory, time, quality, forgetting."""

    out: Path = Path("runs/compare")
    """The run folder."""
    methods: tuple[str, ...] = ()
    """Which; none: all that run without options of their own."""
    quick: bool = False
    """A first look in minutes: one seed, few steps, few judged rows. Differences in quality are then mostly noise."""
    seeds: int = 3
    """Runs of each method; the spread between them is in the table."""
    rates: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Candidate learning rates, as factors on a method's default."""
    steps: int = 36
    """Optimizer steps of every run, in the search too."""
    batch_tokens: int = 1024
    """Tokens of a step."""
    model: str = "base"
    """The bundled model, or a Hugging Face checkpoint folder."""
    quantize: Scheme | None = None
    """Keep the frozen linears in 4 or 8 bits (nf4, fp4, int8, int4); full and last, which train them, are then left out."""
    data: tuple[str, ...] = ()
    """Your own questions and answers, in a format `minift sft` reads; none: signatures and summary lines of `packages`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns prompt question completion answer."""
    text: tuple[str, ...] = ()
    """Text files of pre-training's kind, to measure forgetting on; none: the held-out docstrings of `packages`."""
    packages: tuple[str, ...] = ("python",)
    """Whose functions and docstrings; "python" is the standard library."""
    train: int = 1500
    """Rows to train on, at most."""
    valid: int = 100
    """Rows that choose the learning rate."""
    judged: int = 100
    """Held-out rows to judge by."""
    new_tokens: int = 32
    """Longest answer, in tokens."""
    max_length: int = 256
    """Longest row in tokens; longer ones are cut."""
    windows: int = 24
    """Pieces of text, 256 tokens each, that forgetting is measured on."""
    rounds: int = 5
    """Generations timed for the slowdown."""
    precision: Precision = "auto"
    """auto: bf16 where a quick measurement finds it faster; decided once, for all rows."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Keep the rows that are finished; the settings must be the same."""

    def __post_init__(self):
        for name in ("seeds", "batch_tokens", "train", "valid", "judged", "new_tokens", "windows", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: wanted 1 or more")
        if self.steps < 2:
            raise InputError(f"--steps is {self.steps}: a step's time is measured from one to the next, wanted 2 or more")
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            raise InputError(f"--rates are {self.rates}: wanted different numbers above 0")
        for name in self.methods:
            if name not in METHODS:
                near = get_close_matches(name, METHODS, n=3)
                hint = f"; near names: {', '.join(near)}" if near else ""
                raise InputError(f"--methods {name}: there is no such method{hint}. There are {', '.join(METHODS)}")


@dataclass(frozen=True)
class Result:
    rows: dict[str, Measured | str]
    """Method -> its numbers, or what went wrong."""
    folder: Path
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Has nothing been measured?"""
        return not any(isinstance(row, Measured) for row in self.rows.values())


def run(config: Config, quiet: bool = False) -> Result:
    console, began = Console(quiet=quiet), time.perf_counter()
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
    config, names = with_quick(config), tuple(dict.fromkeys(config.methods)) or by_default(config.quantize)
    file = config.out / "task.json"
    task = Task.read(file) if config.resume and file.exists() else prepare(config, say)
    folder = open_run(config.out, "compare", config, config.overwrite, config.resume)
    task = replace(task, model=str(config.model))                              # the same model; the first start may have told it from elsewhere
    task.write(file)
    (folder / "rows").mkdir(exist_ok=True)
    say(f"{len(names)} methods, {len(task.rates)} rates, {task.seeds} seeds, {task.steps} steps of {task.batch_tokens} tokens, {task.precision}")

    def finished(name: str) -> bool:
        return config.resume and isinstance(read_row(folder / "rows" / f"{name}.json"), Measured)

    todo = [name for name in names if not finished(name)]
    for number, name in enumerate(todo, 1):
        started = time.perf_counter()
        row = measure(folder, name)
        left = (time.perf_counter() - began) / number * (len(todo) - number)
        what = f"loss {task.before.loss:.3f} -> {row.mean('loss'):.3f}" if isinstance(row, Measured) else f"FAILED: {row}"
        say(f"{name:<16} {time.perf_counter() - started:4.0f} s  {what}  ({number} of {len(todo)}, about {left / 60:.0f} min to go)")
    rows = {name: row for name in METHODS if (row := read_row(folder / "rows" / f"{name}.json")) is not None}
    seconds = time.perf_counter() - began
    write_all(folder, task, rows, config, seconds)
    console.print(terminal_table(f"{task.steps} steps of {task.batch_tokens} tokens", *short_table(task, rows)))
    say(f"Done in {seconds / 60:.1f} min. Report: {folder / 'report.md'}   Table: {folder / 'table.csv'}   Plots: quality.png, costs.png beside it")
    return Result(rows, folder, seconds)


def with_quick(config: Config) -> Config:
    """With --quick, the options that were left alone take QUICK's values."""
    defaults = {item.name: item.default for item in fields(Config)}
    left_alone = {name: value for name, value in QUICK.items() if getattr(config, name) == defaults[name]}
    return replace(config, **left_alone) if config.quick else config


def by_default(quantize: Scheme | None = None) -> tuple[str, ...]:
    """The methods that need no option of their own, such as which tokens are new; on a quantized base those that leave its linears alone."""
    trains_codes = ("full", "last") if quantize else ()
    return tuple(name for name, entry in METHODS.items() if ... not in entry.fields().values() and name not in trains_codes)


def prepare(config: Config, say: Callable[[str], None]) -> Task:
    """Choose the rows and the text, and measure the base model, once for all rows."""
    if config.data:
        rows = read(config.data, columns=config.columns)
        if any(row.format == "text" for row in rows):
            raise InputError("these rows are plain texts: compare judges answers, so give it questions with answers")
        rest, judged = split_rows(rows, fraction=0.15, seed=0)
        train, valid = split_rows(rest, fraction=0.15, seed=1)
    else:
        say(f"Reading the signatures and docstrings of {', '.join(config.packages)} ...")
        train, valid, judged = ([as_row(pair) for pair in pairs(split, config.packages)] for split in ("train", "valid", "test"))
    missing = [name for name in config.text if not Path(name).is_file()]
    if missing:
        raise InputError(f"--text {missing[0]}: no such file")
    texts = [Path(name).read_text(encoding="utf-8") for name in config.text] or documents("test", config.packages)
    model, tokenizer = folders.decoder(config.model, quantize=config.quantize)
    train, valid, judged = spread(train, config.train), spread(valid, config.valid), spread(judged, config.judged)
    use_template(tokenizer, [*train, *valid, *judged], None)
    sides: list[list[Row]] = []
    for side in (train, valid, judged):
        examples, found = build(side, tokenizer, max_length=config.max_length)
        refuse_too_long(examples, model)
        empty = set(found.without_answer)
        sides.append([row for row in side if row.where not in empty])
    windows = text_windows(tokenizer, texts, min(256, model.config.max_positions), config.windows)
    before = scores(model, tokenizer, sides[2], build(sides[2], tokenizer, max_length=config.max_length)[0], config.new_tokens, not config.data)
    text = perplexity(model, windows)
    return Task(
        model=str(config.model),
        quantize=config.quantize,
        precision=fastest() if config.precision == "auto" else config.precision,
        steps=config.steps,
        batch_tokens=config.batch_tokens,
        seeds=config.seeds,
        rates=tuple(config.rates),
        new_tokens=config.new_tokens,
        max_length=config.max_length,
        rounds=config.rounds,
        docstrings=not config.data,
        train=tuple(sides[0]),
        valid=tuple(sides[1]),
        judged=tuple(sides[2]),
        windows=tuple(windows),
        window_targets=text.tokens,
        before=Quality(before.loss, before.rouge_l, None if config.data else before.pep257, text.perplexity),
    )


def measure(folder: Path, method: str) -> Measured | str:
    """Run one row's process and read what it left. rows/METHOD.log is kept if it failed."""
    file, log = folder / "rows" / f"{method}.json", folder / "rows" / f"{method}.log"
    file.unlink(missing_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        status = subprocess.run([*ROW, str(folder), method], stdout=out, stderr=subprocess.STDOUT).returncode
    if not file.exists():
        killed = f"its process was killed by signal {-status}; signal 9 often means that memory ran out"
        error = killed if status < 0 else f"its process ended with status {status} and no result: see {log.name}"
        write_text(file, json.dumps({"method": method, "error": error}) + "\n")
    row = read_row(file)
    if isinstance(row, Measured):
        log.unlink()
    return row


def write_all(folder: Path, task: Task, rows: dict[str, Measured | str], config: Config, seconds: float) -> None:
    good = {name: row for name, row in rows.items() if isinstance(row, Measured)}
    write_text(folder / "table.csv", csv_table(task, rows))
    write_text(folder / "table.md", markdown(task, rows))
    if good:
        draw_quality(folder / "quality.png", task, good)
        draw_costs(folder / "costs.png", task, good)
    left_out = [name for name in METHODS if name not in by_default(config.quantize)] if not config.methods else []
    write_text(folder / "report.md", report(task, rows, left_out, seconds))
