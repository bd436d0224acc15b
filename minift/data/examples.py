"""From Rows to Examples: the one place where it is decided which tokens count in the loss.

    row -> [(text, learn), ...]                segments: a chat template's words, the question, the answer
        -> [bos] + ids of each segment + [eos]            T tokens, each segment tokenised by itself
        -> loss_mask[t] = learn of t's segment, True for eos, False for bos and for t = 0

In a chat the template writes the token that ends an answer, inside the answer's segment; elsewhere EOS is appended here.

The mask is made from the lengths of the segments, never by looking for ids: a pad, an EOS or a "### Response:" inside the text cannot
move it (trap 3). Because each segment is tokenised by itself, the ids of a prompt are the same with and without its answer, and
`prompt_ids`, which generation uses, is the same code stopped before the answer (traps 4 and 5).

What is learned (`learn`):
    completion   the answer: a completion, or the assistant's last turn; all of a plain text
    assistant    every turn of the assistant
    all          every token but the first
Too long for `max_length`? The answer is kept. The prompt loses its MIDDLE, so that a template's opening, the start of the question and
its end survive. If the answer does not fit even behind a single token, its end is cut, EOS and all, and the prompt may keep up to a
quarter of the room: half an answer is worth learning only if the question is there. A plain text loses nothing: it is cut into
pieces that overlap by one token, so each of its tokens but the first is a target exactly once; later pieces have no BOS.
Each of these is counted in the Report.
An encoder-decoder (`start`: its start token) reads the question and writes the answer as two texts, each tokenised whole, with its EOS:
    prompt = [question] [eos]          ids = [start] [answer] [eos], of which all but the first are learned
Proved in tests/data/test_examples.py. Left out: weights per turn or per row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from minift.data.batches import Example
from minift.data.chat import render
from minift.data.records import END_OF_TEXT
from minift.data.sources import Row
from minift.errors import InputError
from minift.tokenizer import Tokenizer

Learn = Literal["completion", "assistant", "all"]


@dataclass
class Report:
    """What became of the rows; `minift data` prints it, a run folder keeps it."""

    rows: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    """Rows per format."""
    unused: list[str] = field(default_factory=list)
    """Fields that no format knows and nobody reads."""
    where: list[str] = field(default_factory=list)
    """Of each example: the file and line it comes from."""
    without_answer: list[str] = field(default_factory=list)
    """File and line of each row left out because there is nothing to learn in it."""
    duplicates: int = 0
    """Rows whose question stood in an earlier row. They are kept; split by question, and none is on both sides."""
    identical: int = 0
    """Of the duplicates, those with the same answer too."""
    end_marks: int = 0
    """Answers that ended in a written <|endoftext|> or EOS token; it is taken off, as the tokenizer's own EOS comes there."""
    truncated: int = 0
    """Rows longer than max_length that lost tokens; plain texts lose none and are not among them."""
    answers_cut: int = 0
    """Of the truncated, those that lost a part of the answer."""
    in_pieces: int = 0
    """Plain texts longer than max_length, cut into several examples."""
    tokens: int = 0
    targets: int = 0

    @property
    def kept(self) -> int:
        """Examples made."""
        return len(self.where)


def build(
    rows: Sequence[Row], tokenizer: Tokenizer, *, template: str | None = None, learn: Learn = "completion", max_length: int | None = None,
    start: int | None = None,
) -> tuple[list[Example], Report]:
    """Examples in the order of the rows, and the Report on them.

    template: how messages become text (chat.py); None for the tokenizer's own, or plain if it has none. max_length: the most tokens
    of an example. start: an encoder-decoder's start token, for its examples. Raises InputError if nothing is left to learn."""
    if start is not None and learn != "completion":
        raise InputError(f"--learn {learn} is for decoders: an encoder-decoder reads the question and learns the answer alone, --learn completion")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length {max_length} leaves no room for a token and the one before it: give at least 2")
    report, examples = Report(rows=len(rows)), []
    answers: dict[str, set[str]] = {}
    for row in rows:
        report.formats[row.format] = report.formats.get(row.format, 0) + 1
        report.unused += [name for name in row.unused if name not in report.unused]
        if row.answer != (answer := without_end_mark(row.answer, tokenizer)):
            row, report.end_marks = row.with_answer(answer), report.end_marks + 1
        if not answer.strip():
            report.without_answer.append(row.where)
            continue
        known = answers.setdefault(row.question, set())
        report.duplicates += bool(known)
        report.identical += answer in known
        known.add(answer)
        made = _examples(row, tokenizer, template, learn, max_length, report) if start is None else [_pair(row, tokenizer, start, max_length, report)]
        for example in made:
            if any(example.loss_mask):
                examples.append(example)
                report.where.append(row.where)
    report.tokens = sum(example.size for example in examples)
    report.targets = sum(sum(example.loss_mask) for example in examples)
    if not examples:
        raise InputError(_nothing_left(report, max_length))
    return examples, report


def prompt_ids(row: Row, tokenizer: Tokenizer, *, template: str | None = None, start: int | None = None) -> list[int]:
    """What generation starts from: exactly the ids that stand before this row's answer in training, or that an encoder-decoder (`start`) reads. Its
    answer is not looked at."""
    if start is not None:
        return tokenizer.encode(_asked(row))
    if row.messages:
        asked = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
        segments = render(asked, tokenizer, _default(template, tokenizer), add_generation_prompt=True, input=row.input)
    else:
        segments = [(row.prompt, False)]
    return tokenizer.encode_segments(segments)[0]


def ask(question: str, system: str = "") -> Row:
    """A Row that asks the assistant one question, for prompt_ids."""
    opening = ({"role": "system", "content": system},) if system else ()
    return Row("messages", "a question", messages=(*opening, {"role": "user", "content": question}))


def prompt_and_answer(row: Row, tokenizer: Tokenizer, *, template: str | None = None) -> tuple[list[int], list[int]]:
    """(prompt_ids of the row, the ids of its answer with its end token), as they follow each other in training."""
    ids, _, start = _tokenised(row, tokenizer, template)
    return ids[:start], ids[start:]


def _tokenised(row: Row, tokenizer: Tokenizer, template: str | None, every_turn: bool = False) -> tuple[list[int], list[bool], int]:
    """(ids, learned or not, how many of them stand before the answer)."""
    if row.messages:                                                        # the template writes the end of the answer, and must
        segments = render(row.messages, tokenizer, _default(template, tokenizer), input=row.input, every_turn=every_turn)
        ids, learned = tokenizer.encode_segments(segments)
    else:
        if tokenizer.eos_id is None:
            raise InputError("the tokenizer has no EOS token, so no answer could ever end: name one in tokenizer_config.json (eos_token)")
        segments = [(row.completion, True)] if row.format == "text" else [(row.prompt, False), (row.completion, True)]
        ids, learned = tokenizer.encode_segments(segments)
        ids, learned = [*ids, tokenizer.eos_id], [*learned, True]
    return ids, learned, len(tokenizer.encode_segments(segments[:-1])[0])   # BOS stands before the answer too


def _examples(row: Row, tokenizer: Tokenizer, template: str | None, learn: Learn, max_length: int | None, report: Report) -> list[Example]:
    """One Example; several for a long plain text. `report` counts what was cut."""
    ids, learned, start = _tokenised(row, tokenizer, template, every_turn=learn == "assistant")
    mask = [t > 0 and (learn == "all" or (learned[t] and (learn == "assistant" or t >= start))) for t in range(len(ids))]
    if max_length is None or len(ids) <= max_length:
        return [Example(ids, mask)]
    if row.format == "text":
        report.in_pieces += 1
        return [Example(piece, [t > 0 for t in range(len(piece))]) for piece in _pieces(ids, max_length)]
    report.truncated += 1
    report.answers_cut += len(ids) - start > max_length - min(start, 1)
    return [_without_middle(ids, mask, start, max_length)]


def _pair(row: Row, tokenizer: Tokenizer, start: int, max_length: int | None, report: Report) -> Example:
    """An encoder-decoder's Example. Too long, the prompt loses its middle, as above."""
    prompt, ids = tokenizer.encode(_asked(row)), [start, *tokenizer.encode(row.answer)]
    if max_length is not None and len(prompt) + len(ids) > max_length:
        report.truncated += 1
        head, tail = gap(len(prompt), len(ids), max_length)
        prompt = prompt[:head] + prompt[tail:]
        report.answers_cut += len(prompt) + len(ids) > max_length
        ids = ids[: max_length - len(prompt)]
    return Example(ids, [t > 0 for t in range(len(ids))], prompt)


def _asked(row: Row) -> str:
    """The question as one text, for an encoder: the prompt, or the one thing that a user says, an Alpaca row's input on a line below it."""
    turns = [turn["role"] for turn in row.messages if turn is not row.messages[-1] or turn["role"] == "user"]
    if row.format == "text" or (row.messages and turns != ["user"]):
        found = "a plain text" if row.format == "text" else f"a conversation of {', '.join(turn['role'] for turn in row.messages)}"
        raise InputError(f"{row.where}: {found}, and an encoder-decoder learns one answer to one question: give prompt and completion, or one turn of each")
    return "\n".join(filter(None, [row.messages[0]["content"], row.input])) if row.messages else row.prompt


def _default(template: str | None, tokenizer: Tokenizer) -> str | None:
    return "plain" if template is None and tokenizer.chat_template is None else template


def without_end_mark(answer: str, tokenizer: Tokenizer) -> str:
    """Some files write an end mark into each answer; the tokenizer's own comes there, and a second would be learned as text."""
    text = answer.rstrip()
    for mark in (END_OF_TEXT, tokenizer.tokens["eos"]):
        if mark and text.endswith(mark):
            return text.removesuffix(mark)
    return answer


def _pieces(ids: list[int], max_length: int) -> list[list[int]]:
    """A long text in pieces of at most max_length tokens; each begins with the last token of the one before."""
    return [ids[i : i + max_length] for i in range(0, max(1, len(ids) - 1), max_length - 1)]


def gap(prompt: int, answer: int, max_length: int) -> tuple[int, int]:
    """(start, end) of what a prompt of so many tokens loses, so that it and its answer have at most max_length; start = end: nothing."""
    room = max_length - answer                                              # what a whole answer leaves the prompt
    keep = min(prompt, room if room > 0 else max(1, max_length // 4))
    head = (keep + 1) // 2
    return head, prompt - (keep - head)


def _without_middle(ids: list[int], mask: list[bool], start: int, max_length: int) -> Example:
    """max_length tokens of a prompt ids[:start] and an answer ids[start:]; the answer comes first."""
    head, tail = gap(start, len(ids) - start, max_length)
    mask = [*mask]
    if tail < start:
        mask[tail] = False                                                  # the first token behind the gap: what it followed is gone
    return Example((ids[:head] + ids[tail:])[:max_length], (mask[:head] + mask[tail:])[:max_length])


def _nothing_left(report: Report, max_length: int | None) -> str:
    if len(report.without_answer) == report.rows:
        some = "; ".join(report.without_answer[:3])
        return f"none of the {report.rows} rows has an answer to learn ({some} ...): give each an answer"
    return f"truncation to max_length {max_length} leaves nothing to learn in any of the {report.rows} rows: raise it"
