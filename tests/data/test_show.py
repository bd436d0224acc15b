import io

import pytest
from rich.console import Console

from minift import tokenizer as T
from minift.data.batches import Example
from minift.data.examples import Report, build
from minift.data.preference_trees import build_labelled, build_pairs
from minift.data.preferences import Labelled, Pair
from minift.data.show import lengths, marked, show, show_trees, summary
from minift.data.sources import Row


@pytest.fixture(scope="module")
def tokenizer():
    return T.train(["Say hello to Ann.\nHello, Ann!"] * 5, vocab_size=280)


def printed(tokenizer, rows, colour=False, shown=3, max_length=None):
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=colour, color_system="truecolor" if colour else None)
    show(*build(rows, tokenizer, max_length=max_length), tokenizer, rows=shown, console=console)
    return out.getvalue()


def pair(prompt, completion, where="faq.jsonl, line 1"):
    return Row("prompt/completion", where, prompt=prompt, completion=completion)


def test_without_colour_cuts_are_bars_and_what_counts_is_in_brackets(tokenizer):
    [example], _ = build([pair("Say", "Ann!")], tokenizer)
    text = marked(example, tokenizer, colour=False).plain
    assert text.startswith("<s>|") and text.endswith("</s>]]")
    prompt, answer = text.split("[[")
    assert prompt.replace("|", "") == "<s>Say" and answer.replace("|", "") == "Ann!</s>]]"
    assert text.count("|") == len(example.ids) - 2                      # a cut between two tokens, but at [[


def test_in_colour_what_counts_is_green_and_the_rest_grey(tokenizer):
    [example], _ = build([pair("Say", "Ann!")], tokenizer)
    text = marked(example, tokenizer, colour=True)
    assert text.plain == "<s>SayAnn!</s>"
    colours = ["green" in str(span.style) for span in text.spans]
    assert colours == example.loss_mask
    assert all(a.style != b.style for a, b in zip(text.spans, text.spans[1:]))     # neighbours differ, so cuts are seen


def test_stretches_that_count_are_bracketed_each(tokenizer):
    ids = tokenizer.encode("Ann!?Ann", add_special_tokens=False)
    mask = [t in (1, 3) for t in range(len(ids))]
    text = marked(Example(ids, mask), tokenizer, colour=False).plain
    assert text.count("[[") == text.count("]]") == 2


def test_line_breaks_are_shown_and_made_and_other_controls_are_spelled_out(tokenizer):
    [example], _ = build([pair("a\nb", "\x1b[31m\rHello")], tokenizer)
    text = marked(example, tokenizer, colour=True).plain
    assert "a\\n\nb" in text and "\x1b" not in text and "\r" not in text


def test_of_a_long_example_both_ends_are_shown(tokenizer):
    [example], _ = build([pair("a" * 50, "b" * 50)], tokenizer)         # 102 tokens
    text = marked(example, tokenizer, colour=False, tokens=20).plain
    assert f" ... {len(example.ids) - 20} tokens ... " in text and text.count("a") == 9 and text.count("b") == 9
    assert text.count("[[") == text.count("]]") == 1
    whole = marked(example, tokenizer, colour=False, tokens=len(example.ids)).plain
    assert "..." not in whole and whole.count("a") == whole.count("b") == 50


def test_what_is_printed_names_rows_lengths_and_everything_unusual(tokenizer):
    rows = [pair("Say hello", "Hello!"), pair("Say hello", "Hello!", "faq.jsonl, line 2"), pair("x", "", "faq.jsonl, line 3"),
            Row("text", "a.txt, line 1", completion="Ann " * 40 + "<|endoftext|>", unused=("id",))]
    text = printed(tokenizer, rows, shown=1, max_length=24)
    learned = len(tokenizer.encode("Hello!", add_special_tokens=False)) + 1
    total = len(tokenizer.encode("Say hello")) + learned                # encode adds the BOS
    assert f"faq.jsonl, line 1: {total} tokens, {learned} of them count in the loss" in text
    assert "faq.jsonl, line 2" not in text                              # one row was asked for
    for words in ("rows        4 (3 prompt/completion, 1 text)", "1 questions asked before, 1 with the same answer",
                  "1 rows without an answer: faq.jsonl, line 3", "1 written <|endoftext|> taken off", "fields id",
                  "1 texts longer than an example were cut into several", "lengths: min "):    # fmt: skip
        assert words in text, text
    assert "truncated" not in text                                      # nothing was: no line about it
    assert "1, of which 1 lost a part of the answer" in printed(tokenizer, [pair("Say", "Ann " * 40)], max_length=24)


def test_in_a_terminal_colour_codes_are_printed_and_brackets_are_not(tokenizer):
    text = printed(tokenizer, [pair("Say", "Ann!")], colour=True)
    assert "\x1b[" in text and "[[" not in text
    assert "\x1b[" not in printed(tokenizer, [pair("Say", "Ann!")])


def test_the_numbers_under_lengths_by_hand():
    examples = [Example([0] * T, [False] * T) for T in [*range(1, 20), 100]]
    first, *bins = str(lengths(examples)).splitlines()
    assert first == "lengths: min 1, median 10.5, 95 % at most 19, max 100"        # nearest rank: the 19th of 20
    assert [int(line.split()[-1]) for line in bins] == [13, 6, 0, 0, 0, 0, 0, 1]   # bins of 13: 1-13, 14-26, ..., 92-104
    assert str(lengths([Example([0] * 7, [False] * 7)])).splitlines()[0] == "lengths: min 7, median 7, 95 % at most 7, max 7"


def test_a_report_with_nothing_unusual_has_three_lines():
    assert summary(Report(rows=2, formats={"text": 2}, where=["a", "b"], tokens=10, targets=8)).row_count == 3


def test_of_preferences_both_answers_are_shown_behind_the_prompt_and_count(tokenizer):
    pairs = [Pair(f"prefs.jsonl, line {n}", pair(f"Say{n}", "Ann!"), pair(f"Say{n}", "hello")) for n in (1, 2)]
    built, report = build_pairs(pairs, tokenizer)
    out = io.StringIO()
    show_trees([(tree, ("chosen", "rejected")) for tree, _ in built], report, tokenizer, rows=1, console=Console(file=out, width=100, color_system=None))
    first, chosen, second, rejected, *rest = out.getvalue().splitlines()
    tree = built[0].tree
    assert first == f"prefs.jsonl, line 1, chosen: a prompt of {len(tree.prompt)} tokens, and {len(tree.answers[0])} that count in the loss"
    assert second.startswith("prefs.jsonl, line 1, rejected: a prompt of ")
    assert [line.replace("|", "") for line in (chosen, rejected)] == ["<s>Say1[[Ann!</s>]]", "<s>Say1[[hello</s>]]"]
    text = "\n".join(rest)
    assert "line 2" not in text and "2 pairs to train on" in text and f"lengths: min {len(tree.prompt) + min(map(len, tree.answers))}" in text


def test_a_labelled_answer_is_shown_once(tokenizer):
    built, report = build_labelled([Labelled("kto.jsonl, line 1", pair("Say", "Ann!"), False)], tokenizer)
    out = io.StringIO()
    show_trees([(tree, ("undesirable",)) for tree, _ in built], report, tokenizer, console=Console(file=out, width=100, color_system=None))
    assert "kto.jsonl, line 1, undesirable: a prompt of" in out.getvalue() and out.getvalue().count("[[") == 1
    assert "1 answers to train on, 0 desirable and 1 undesirable" in out.getvalue()
