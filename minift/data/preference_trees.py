"""From preferences to trees of token ids: one prompt, and behind it the answers that are compared, each with its end token.

    Pair      -> Tree(prompt ids, [chosen ids, rejected ids])        Labelled -> Tree(prompt ids, [answer ids])

The ids are those of plain fine-tuning (examples.py): a prompt has the same ones in both branches, and at generation (trap 5).
Too long for `max_length`, which bounds the prompt with its longest answer? The prompt loses its middle, once for both answers. An answer that
does not fit even behind a single token loses its end, by examples.py's rule. Two answers that have become the same in this way, or by
the end mark that was written into one of them, are a tie, and dropped. Each of these is counted in the report.
Proved in tests/data/test_preferences.py. Left out: several turns learned at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minift.data.branches import Tree
from minift.data.examples import gap, prompt_and_answer, without_end_mark
from minift.data.preferences import Labelled, Pair, some
from minift.data.sources import Row
from minift.errors import InputError
from minift.tokenizer import Tokenizer


class PairTree(NamedTuple):
    tree: Tree
    """Its answers: chosen, rejected."""
    margin: float | None


class LabelledTree(NamedTuple):
    tree: Tree
    """It has one answer."""
    desirable: bool


@dataclass
class PairReport:
    """What became of the pairs, or of the labelled answers."""

    rows: int = 0
    where: list[str] = field(default_factory=list)
    """Of each tree: the file and line it comes from."""
    desirable: int | None = None
    """Of labelled answers: how many trees are desirable."""
    duplicates: int = 0
    """Pairs or answers whose question stood before. They are kept; split by question, and none is on both sides."""
    ties: list[str] = field(default_factory=list)
    """File and line of each pair dropped because its answers are the same tokens."""
    without_answer: list[str] = field(default_factory=list)
    """File and line of each dropped because an answer is nothing but an end mark."""
    end_marks: int = 0
    """Answers that ended in a written <|endoftext|> or EOS token; it is taken off, as the tokenizer's own comes there."""
    prompts_cut: int = 0
    """Trees whose prompt lost its middle."""
    answers_cut: int = 0
    """Answers that lost their end."""
    without_margin: int | None = None
    """Pairs that have no margin though others have; None if none has one."""
    tokens: int = 0
    """Each prompt counted once."""
    answer_tokens: int = 0
    """Of the tokens, those of answers."""

    @property
    def kept(self) -> int:
        """Trees made."""
        return len(self.where)


def build_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, template: str | None = None, max_length: int | None = None
) -> tuple[list[PairTree], PairReport]:
    """Trees in the order of the pairs, and the report. template: see examples.build. max_length: most tokens of a prompt with one answer.

    Raises InputError if no pair is left."""
    report, built = PairReport(rows=len(pairs)), []
    for pair, tree in _trees([(pair, (pair.chosen, pair.rejected)) for pair in pairs], tokenizer, template, max_length, report):
        built.append(PairTree(tree, pair.margin))
    if any(margin is not None for _, margin in built):
        report.without_margin = sum(margin is None for _, margin in built)
    return built, report


def build_labelled(
    rows: Sequence[Labelled], tokenizer: Tokenizer, *, template: str | None = None, max_length: int | None = None
) -> tuple[list[LabelledTree], PairReport]:
    """The same for labelled answers."""
    report, built = PairReport(rows=len(rows)), []
    for labelled, tree in _trees([(labelled, (labelled.row,)) for labelled in rows], tokenizer, template, max_length, report):
        built.append(LabelledTree(tree, labelled.desirable))
    report.desirable = sum(desirable for _, desirable in built)
    return built, report


def describe(report: PairReport, use: str = "to train on") -> list[str]:
    """The report in lines for people; nothing that was dropped or cut goes unsaid."""
    what = "pairs" if report.desirable is None else "answers"
    kinds = "" if report.desirable is None else f", {report.desirable} desirable and {report.kept - report.desirable} undesirable"
    lines = [f"{report.kept} {what} {use}{kinds} ({report.answer_tokens} of {report.tokens} tokens are answers')"]
    for count, words in (
        (report.duplicates, "of them ask what an earlier one asked"),
        (report.end_marks, "answers had an end mark written into them, which was taken off"),
        (report.prompts_cut, "prompts lost their middle to --max-length"),
        (report.answers_cut, "answers lost their end to --max-length"),
        (report.without_margin, "pairs have no margin, though others have"),
    ):
        if count:
            lines.append(f"{count} {words}")
    for places, words in ((report.ties, "pairs came to have the same two answers"), (report.without_answer, "have an answer that is only an end mark")):
        if places:
            lines.append(f"{len(places)} {words} and are left out: {some(places)}")
    return lines


def _trees(asked, tokenizer: Tokenizer, template: str | None, max_length: int | None, report: PairReport):
    """[(whatever has a `where`, rows of one question)] -> (it, tree) of those that can be learned from."""
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length {max_length} leaves no room for a token and the one before it: give at least 2")
    questions: set[str] = set()
    for item, rows in asked:
        rows = [_unmarked(row, tokenizer, report) for row in rows]
        if not all(row.answer.strip() for row in rows):
            report.without_answer.append(item.where)
            continue
        tree = _tree(item.where, rows, tokenizer, template)
        if max_length is not None:
            tree = _shortened(tree, max_length, report)
        if len(rows) == 2 and tree.answers[0] == tree.answers[1]:
            report.ties.append(item.where)
            continue
        report.duplicates += item.question in questions
        questions.add(item.question)
        report.where.append(item.where)
        report.tokens += tree.size
        report.answer_tokens += sum(map(len, tree.answers))
        yield item, tree
    if not report.where:
        raise InputError(f"none of the {report.rows} rows is left to learn from: {len(report.ties)} have the same two answers after cutting to max_length "
                         f"{max_length} ({some(report.ties) or 'none'}), {len(report.without_answer)} an answer that is only an end mark")


def _unmarked(row: Row, tokenizer: Tokenizer, report: PairReport) -> Row:
    answer = without_end_mark(row.answer, tokenizer)
    report.end_marks += answer != row.answer
    return row.with_answer(answer)


def _tree(where: str, rows: Sequence[Row], tokenizer: Tokenizer, template: str | None) -> Tree:
    prompts, answers = zip(*[prompt_and_answer(row, tokenizer, template=template) for row in rows])
    if any(prompt != prompts[0] for prompt in prompts):
        raise InputError(f"{where}: the chat template writes the prompt differently for the two answers: use a built-in template (--template)")
    if not prompts[0]:
        raise InputError(f"{where}: the prompt is empty and this tokenizer writes no BOS, so nothing could predict an answer: give it a prompt")
    return Tree(prompts[0], list(answers))


def _shortened(tree: Tree, max_length: int, report: PairReport) -> Tree:
    """At most max_length tokens of the prompt with any of its answers."""
    start, end = gap(len(tree.prompt), max(map(len, tree.answers)), max_length)
    prompt = tree.prompt[:start] + tree.prompt[end:]
    room = max_length - len(prompt)
    report.prompts_cut += end > start
    report.answers_cut += sum(len(answer) > room for answer in tree.answers)
    return Tree(prompt, [answer[:room] for answer in tree.answers])
