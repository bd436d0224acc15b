'''The newcomer's first minutes: teach the bundled model to say what a Python function does, and show that it learned.

The base model has read docstrings but never a signature. LoRA learns the step from one to the other, on pairs made from the
Python packages of the machine that runs this. Judged on functions of modules that neither training ever saw; the task and its three
measures are in recipes/docstrings.py. Nothing is downloaded. Proved in tests/recipes/test_quickstart.py.'''

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from minift import folder as folders
from minift import peft
from minift.data.examples import build
from minift.data.pydocs import Pair, pairs
from minift.errors import InputError
from minift.files import write_text
from minift.recipes.docstrings import Scores, as_row, scores, signature, spread
from minift.recipes.methods import METHODS
from minift.recipes.report import draw_loss, markdown_table, terminal_table
from minift.recipes.sft import batches, evaluate, refuse_too_long, tune
from minift.recipes.tuning import MethodConfig, as_base, choose_parameters, loaded_in, refuse_too_few_steps, write_result
from minift.train.run import open_run, verb_of


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Fine-tune the bundled model on this machine's own Python and show what it learned."""

    out: Path = Path("runs/quickstart")
    """The run folder; an earlier quickstart there is replaced."""
    model: str = "base"
    """The bundled model, or a Hugging Face checkpoint folder."""
    rank: int = 16
    """r of LoRA."""
    alpha: float = 32.0
    """LoRA's change is scaled by alpha / r."""
    lr: float | None = 3e-3
    """Peak learning rate; small models take large ones."""
    epochs: float = 1.0
    """Passes over the training data (a part of one is fine)."""
    max_steps: int | None = 200
    """Stop after this many optimizer steps, if that comes first."""
    packages: tuple[str, ...] = ("python", "numpy", "torch")
    """Whose functions; "python" is the standard library."""
    batch_tokens: int = 2048
    """Tokens of a micro-batch, pads included."""
    eval_every: int = 100
    """Optimizer steps between evaluations; 0: once per epoch."""
    judged: int = 250
    """Held-out functions to write summaries for."""


@dataclass(frozen=True)
class Result:
    before: Scores
    after: Scores
    seconds: float
    folder: Path
    interrupted: bool


def run(config: Config, quiet: bool = False) -> Result:
    console = Console(quiet=quiet)
    began = time.perf_counter()
    if config.judged < 1:
        raise InputError(f"--judged is {config.judged}: wanted 1 or more functions to judge by")
    again = verb_of(config.out) == "quickstart"
    if not again and config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise InputError(f"{config.out} is in use, and not by an earlier quickstart, which alone is replaced: name another folder with --out")
    console.print("Reading the signatures and docstrings of the packages on this machine ...")
    train, valid, test = (pairs(split, config.packages) for split in ("train", "valid", "test"))
    judged = spread(test, config.judged)
    model, tokenizer = folders.decoder(config.model, quantize=loaded_in(config))
    train_set, valid_set, test_set = (build([as_row(pair) for pair in side], tokenizer, max_length=256)[0] for side in (train, valid, judged))
    choose_parameters(model, config, tokenizer)
    refuse_too_long([*train_set, *valid_set, *test_set], model)
    refuse_too_few_steps(model, config, batches(train_set, config))
    trained = peft.trainable(model).trained
    folder = open_run(config.out, "quickstart", config, overwrite=again)
    console.print(f"{len(train)} functions to learn from, {len(judged)} of {len({p.module for p in judged})} held-out modules to judge by\n")

    rows = [as_row(pair) for pair in judged]
    with as_base(model, config):
        before = scores(model, tokenizer, rows, test_set)
        untrained = evaluate(model, valid_set, config)
    outcome = tune(model, train_set, valid_set, config, folder, quiet)
    after = scores(model, tokenizer, rows, test_set)
    written = write_result(model, tokenizer, config, folder, base=config.model)

    seconds = time.perf_counter() - began
    changes, samples = table(before, after), side_by_side(judged, before, after)
    console.print()
    console.print(terminal_table(f"{len(judged)} functions of held-out modules", HEADER, changes))
    for pair, b, a in samples:
        console.print(f"\n{signature(pair)}", highlight=False, markup=False)
        for name, text in (("truth", pair.summary), ("before", b), ("after", a)):
            console.print(f"  {name:<7}{text}", highlight=False, markup=False, soft_wrap=True)
    draw_loss(folder, "Does it learn something about functions it has never seen?", untrained)
    write_text(folder / "samples.md", "# Five held-out functions\n\n" + samples_markdown(samples) + "\n")
    write_text(folder / "report.md", report(config, trained, len(train), outcome.steps, judged, changes, samples, seconds))
    console.print(f"\nDone in {seconds:.0f} s. Report: {folder / 'report.md'}   Result: {written}", highlight=False, soft_wrap=True)
    return Result(before, after, seconds, folder, outcome.stopped == "interrupted")


HEADER = ["", "before", "after", "change"]


def table(before: Scores, after: Scores) -> list[list[str]]:
    return [
        ["loss, nats per token", f"{before.loss:.3f}", f"{after.loss:.3f}", f"{after.loss / before.loss - 1:+.0%}"],
        ["ROUGE-L", f"{before.rouge_l:.3f}", f"{after.rouge_l:.3f}", f"{after.rouge_l - before.rouge_l:+.3f}"],
        ["PEP 257 summaries", f"{before.pep257:.0%}", f"{after.pep257:.0%}", f"{100 * (after.pep257 - before.pep257):+.0f} points"],
    ]


def side_by_side(judged: Sequence[Pair], before: Scores, after: Scores, count: int = 5) -> list[tuple[Pair, str, str]]:
    """Evenly spaced, not picked: what a reader sees is what the model does."""
    places = [(2 * i + 1) * len(judged) // (2 * count) for i in range(min(count, len(judged)))]
    return [(judged[i], before.written[i], after.written[i]) for i in places]


def samples_markdown(samples: Sequence[tuple[Pair, str, str]]) -> str:
    cells = [(signature(pair).splitlines()[1], pair.summary, b or "(nothing)", a or "(nothing)") for pair, b, a in samples]
    return markdown_table(["function", "its docstring", "before", "after"], cells)


LORA = "LoRA of rank {0.rank} on every linear layer: y = x Wᵀ + ({0.alpha:g} / {0.rank}) (x Aᵀ) Bᵀ, with W frozen and only A and B trained"


def report(config: Config, trained: int, train: int, steps: int, judged: Sequence[Pair], rows, samples, seconds: float) -> str:
    """One page a teacher could show."""
    entry = METHODS[config.method]
    idea = LORA.format(config) if config.method == "lora" else f"{config.method} trains {entry.idea}"
    own = "" if config.model == "base" else f" --model {config.model}"
    own += f" --quantize {config.quantize}" if config.quantize else ""
    use = f"--model {config.out}/model" if entry.whole else f"--adapter {config.out}/adapter" + own
    example = "$'# shop.cart, class Cart\\ndef remove_item(self, item):\\n    \"\"\"'"
    return f"""# Teaching a small model to document Python functions

**The question.** A language model has read this machine's docstrings, but never saw which function they belong to. Can {trained:,}
new numbers teach it to write the summary line of a function it has never seen, from the signature alone?

**The method.** {idea} ({entry.paper}). {train:,} functions of {", ".join(config.packages)} to learn from,
{steps:,} steps, {seconds:.0f} seconds in all on this machine.

**The judgement.** {len(judged)} functions from {len({pair.module for pair in judged})} modules that neither the base model nor this training has read.

{markdown_table(HEADER, rows)}

Loss: surprise at the true summary. ROUGE-L: words in common with it, in order. PEP 257: one line, imperative mood, a capital, a full stop, at most 72 characters.

![loss](loss.png)

**Five functions, evenly spaced, not picked:**

{samples_markdown(samples)}

**Try it.** `minift generate {use} --prompt {example}`

Settings: [config.json](config.json). Every step: [metrics.jsonl](metrics.jsonl).
"""
