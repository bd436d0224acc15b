"""What the model will see: each example token by token with those that count in the loss marked, and where the lengths lie.

In colour, a token that counts is green and one that does not is grey; neighbours differ in shade, so that the cuts are seen.
Without colour (a pipe, a file) the cuts are written as | and each stretch that counts stands in [[ ]].
Proved in tests/data/test_show.py. Left out: an interactive browser."""

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minift.data.batches import Example
from minift.data.branches import Tree
from minift.data.examples import Report
from minift.data.preference_trees import PairReport, describe
from minift.tokenizer import Tokenizer

COUNTS, IGNORED = ("bold green", "bold green4"), ("grey62", "grey42")
"""Two shades each, for tokens at even and odd places."""


def show(
    examples: Sequence[Example], report: Report, tokenizer: Tokenizer, *, rows: int = 3, tokens: int = 400, console: Console | None = None
) -> None:
    """Print the first `rows` examples (at most `tokens` tokens of each), the lengths, and the report."""
    console = console or Console()
    for example, where in list(zip(examples, report.where))[:rows]:
        console.print(Text(f"{where}: {example.size} tokens, {sum(example.loss_mask)} of them count in the loss", style="bold"))
        console.print(marked(example, tokenizer, colour=console.color_system is not None, tokens=tokens), soft_wrap=True)
        console.print()
    console.print(summary(report))
    console.print(lengths(examples), soft_wrap=True)


def show_trees(
    trees: Sequence[tuple[Tree, Sequence[str]]], report: PairReport, tokenizer: Tokenizer, *, rows: int = 3, tokens: int = 400,
    console: Console | None = None,
) -> None:
    """The same for preferences: each tree comes with the names of its answers, and each answer is shown behind the prompt."""
    console = console or Console()
    for (tree, names), where in list(zip(trees, report.where))[:rows]:
        for name, answer in zip(names, tree.answers):
            example = Example(tree.prompt + answer, [False] * len(tree.prompt) + [True] * len(answer))
            said = f"{where}, {name}: a prompt of {len(tree.prompt)} tokens, and {len(answer)} that count in the loss"
            console.print(Text(said, style="bold"), soft_wrap=True)
            console.print(marked(example, tokenizer, colour=console.color_system is not None, tokens=tokens), soft_wrap=True)
        console.print()
    console.print(Text("\n".join(describe(report))), soft_wrap=True)
    console.print(lengths([Example(tree.prompt + answer, []) for tree, _ in trees for answer in tree.answers]), soft_wrap=True)


def marked(example: Example, tokenizer: Tokenizer, *, colour: bool, tokens: int = 400) -> Text:
    """One example as text; of a long one the first and the last tokens/2 tokens."""
    text, T = Text(), example.size
    gap = range(tokens // 2, T - tokens // 2) if T > tokens else range(0)
    counted = False
    for t, (i, counts) in enumerate(zip([*example.prompt, *example.ids], [*([False] * len(example.prompt)), *example.loss_mask])):
        if t in gap:
            if t == gap.start:
                text.append(f"{']]' if counted and not colour else ''} ... {len(gap)} tokens ... ", style="italic")
                counted = False
            continue
        if not colour:
            text.append("]]" if counted and not counts else "[[" if counts and not counted else "|" if t and t != gap.stop else "")
            counted = counts
        text.append(_visible(tokenizer.piece(i)), style=(COUNTS if counts else IGNORED)[t % 2] if colour else "")
    return text.append("]]" if counted else "")


def _visible(piece: str) -> str:
    """A line break is shown and made; any other character that would act on the terminal is spelled out."""
    return "".join("\\n\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece)


def summary(report: Report) -> Table:
    """The report as a table; lines about what did not happen are left out."""
    table = Table(show_header=False, box=None)
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.items())
    share = 100 * report.targets / max(1, report.tokens)
    table.add_row("rows", f"{report.rows} ({formats})")
    table.add_row("examples", f"{report.kept}")
    table.add_row("tokens", f"{report.tokens}, of which {report.targets} ({share:.1f} %) count in the loss")
    cut = f"{report.truncated}, of which {report.answers_cut} lost a part of the answer"
    for name, count, words in (
        ("truncated", report.truncated, cut),
        ("in pieces", report.in_pieces, f"{report.in_pieces} texts longer than an example were cut into several"),
        ("duplicates", report.duplicates, f"{report.duplicates} questions asked before, {report.identical} with the same answer"),
        ("end marks", report.end_marks, f"{report.end_marks} written <|endoftext|> taken off; the tokenizer's own EOS comes there"),
        ("left out", report.without_answer, f"{len(report.without_answer)} rows without an answer: {_some(report.without_answer)}"),
        ("not used", report.unused, f"fields {', '.join(report.unused)}"),
    ):
        if count:
            table.add_row(name, Text(words))
    return table


def _some(places: Sequence[str], most: int = 5) -> str:
    return "; ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")


def lengths(examples: Sequence[Example], bins: int = 8, width: int = 40) -> Text:
    """A histogram of the examples' lengths in tokens, with the numbers people ask for."""
    sizes = sorted(example.size for example in examples)
    p95 = sizes[-(-95 * len(sizes) // 100) - 1]                              # nearest rank: the smallest with 95 % at or below it
    text = Text(f"lengths: min {sizes[0]}, median {median(sizes):g}, 95 % at most {p95}, max {sizes[-1]}\n")
    step = -(-(sizes[-1] - sizes[0] + 1) // bins)
    counts = [sum(low <= size < low + step for size in sizes) for low in range(sizes[0], sizes[-1] + 1, step)]
    for number, count in enumerate(counts):
        low = sizes[0] + number * step
        bar = "#" * -(-width * count // max(counts))
        text.append(f"{low:>7} to {low + step - 1:<7} {bar} {count}\n")
    return text
