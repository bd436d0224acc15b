import json
import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from minift import tokenizer as T
from minift.data.batches import pad
from minift.data.examples import ask, build, prompt_ids
from minift.data.sources import Row
from minift.errors import InputError

BOS, EOS = "<s>", "</s>"


def save(folder, merges=(), bos=True, specials=(), **config):
    """A tokenizer.json of single letters and the merges asked for. It has no pad token: pad_id is eos_id."""
    letters = [BOS, EOS, *specials, *sorted({*map(chr, range(33, 127)), "Ġ", "Ċ"}), *map("".join, merges)]
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, list(merges)))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    made.add_special_tokens([BOS, EOS, *specials])
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS, **config}))
    return T.load(folder)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return save(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    return save(tmp_path_factory.mktemp("chatty"), specials=("<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="module")
def pieces():
    return T.train(["the cat sat on the mat\nand that was that, said the cat", "abcd abab cdcd dada"] * 20, vocab_size=330)


def pair(prompt, completion, where="line 1"):
    return Row("prompt/completion", where, prompt=prompt, completion=completion)


def text(content):
    return Row("text", "line 1", completion=content)


def chat(*said, input=""):
    return Row("messages", "line 1", messages=tuple({"role": role, "content": content} for role, content in said), input=input)


TALK = chat(("user", "Hi"), ("assistant", "Ho"), ("user", "Bye"), ("assistant", "So long"))


def seen(tokenizer, example):
    """The example as text, what counts in the loss in [ ]."""
    out = ""
    for t, (i, counts) in enumerate(zip(example.ids, example.loss_mask)):
        out += "[" * (counts and not (t and example.loss_mask[t - 1])) + tokenizer.decode([i], skip_special_tokens=False, continues=True)
        out += "]" * (counts and not (t + 1 < len(example.ids) and example.loss_mask[t + 1]))
    return out


def one(tokenizer, row, **options):
    [example], report = build([row], tokenizer, **options)
    assert not example.loss_mask[0] and len(example.ids) == len(example.loss_mask)
    assert (report.tokens, report.targets) == (len(example.ids), sum(example.loss_mask))
    return seen(tokenizer, example)


# --- what counts ---------------------------------------------------------------------------------------------------------------


def test_a_pair_by_hand(letters):
    [example], _ = build([pair("ab", "c")], letters)
    a = letters.encode("a", add_special_tokens=False)[0]
    assert example.ids == [letters.bos_id, a, a + 1, a + 2, letters.eos_id]
    assert example.loss_mask == [False, False, False, True, True]


def test_the_answer_counts_by_default_and_everything_on_request(letters):
    row = pair("Q: ab\n", "cd")
    assert one(letters, row) == one(letters, row, learn="assistant") == "<s>Q: ab\n[cd</s>]"
    assert one(letters, row, learn="all") == "<s>[Q: ab\ncd</s>]"


def test_of_a_text_everything_counts_but_the_first_token(letters, tmp_path):
    for learn in ("completion", "assistant", "all"):
        assert one(letters, text("abc"), learn=learn) == "<s>[abc</s>]"
    assert one(save(tmp_path, bos=False), text("abc")) == "a[bc</s>]"


def test_of_a_conversation_the_last_answer_counts_or_every_answer_or_all(chatty):
    hi, bye = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    assert one(chatty, TALK, template="chatml") == f"<s>{hi}Ho<|im_end|>{bye}[So long<|im_end|>]"
    assert one(chatty, TALK, template="chatml", learn="assistant") == f"<s>{hi}[Ho<|im_end|>]{bye}[So long<|im_end|>]"
    assert one(chatty, TALK, template="chatml", learn="all") == f"<s>[{hi}Ho<|im_end|>{bye}So long<|im_end|>]"


def test_alpacas_input_has_its_place_in_the_template(letters):
    row = chat(("user", "Add."), ("assistant", "3"), input="1 2")
    assert one(letters, row, template="alpaca").endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n[3</s>]")
    assert one(letters, row, template="plain") == "<s>Add.\n\n1 2\n[3</s>]"


def test_messages_without_any_template_are_written_plain(letters):
    assert one(letters, TALK) == "<s>Hi\nHo</s>Bye\n[So long</s>]"


def test_trap03_eos_is_learned_though_it_is_the_pad(letters):
    assert letters.pad_id == letters.eos_id
    examples, _ = build([pair("abc", "d"), pair("a", "b")], letters)
    batch = pad(examples, letters.pad_id)
    assert batch.token_ids[1].tolist()[-3:] == [letters.eos_id] * 3                # its own, and two pads
    assert batch.loss_mask.tolist() == [[False] * 4 + [True] * 2, [False, False, True, True, False, False]]


def test_trap03_an_eos_inside_a_prompt_moves_no_mask(letters):
    assert one(letters, pair("a</s>b</s>", "c")) == "<s>a</s>b</s>[c</s>]"


BOTH_KINDS = [(None, pair("ab", "cd")), (None, text("ab")), *((template, TALK) for template in ("plain", "alpaca", "llama-3"))]


@pytest.mark.parametrize("template, row", BOTH_KINDS)
def test_trap04_one_bos_in_training_and_in_serving(tmp_path, template, row):
    tokenizer = save(tmp_path, specials=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"))
    [example], _ = build([row], tokenizer, template=template)                       # llama-3 writes a BOS of its own
    for ids in (example.ids, prompt_ids(row, tokenizer, template=template)):
        assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_trap04_a_tokenizer_that_adds_no_bos_gets_none(tmp_path):
    assert one(save(tmp_path, bos=False), pair("ab", "cd")) == "ab[cd</s>]"


def test_trap05_a_prompt_has_the_same_ids_with_and_without_its_answer(tmp_path, pieces):
    """Random texts over few letters, so that merges across the boundary (b + c, space + a) would be common."""
    merging = save(tmp_path, merges=[("a", "b"), ("b", "c"), ("c", "d"), ("ab", "cd"), ("Ġ", "a"), ("b", "Ċ"), ("Ċ", "Ċ")])
    assert merging.encode("abcd", add_special_tokens=False) != [*merging.encode("ab", False), *merging.encode("cd", False)]
    dice = random.Random(0)
    word = lambda: "".join(dice.choices("abcd \n", k=dice.randrange(1, 9))) + dice.choice("abcd")
    for tokenizer in (merging, pieces):
        for _ in range(300):
            prompt, answer = word(), word()
            for row, template in ((pair(prompt, answer), None), (chat(("user", prompt), ("assistant", answer)), "alpaca")):
                [example], _ = build([row], tokenizer, template=template)
                before = prompt_ids(row.with_answer("something else"), tokenizer, template=template)
                assert example.ids[: len(before)] == before
                assert example.loss_mask == [False] * len(before) + [True] * (len(example.ids) - len(before))
                assert tokenizer.decode(example.ids[len(before):], continues=True) == answer and example.ids[-1] == tokenizer.eos_id


def test_a_question_is_asked_as_it_was_trained(chatty):
    row = chat(("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"))
    [example], _ = build([row], chatty, template="chatml")
    asked = prompt_ids(ask("Hi", system="Be kind."), chatty, template="chatml")
    assert asked == example.ids[: len(asked)] and not any(example.loss_mask[: len(asked)]) and all(example.loss_mask[len(asked):])


def test_a_written_end_mark_is_taken_off_and_counted(letters):
    talk = chat(("user", "d"), ("assistant", "e<|endoftext|>"))
    rows = [pair("a", "b<|endoftext|>\n"), pair("b", "c</s>"), pair("c", "<|endoftext|> d"), talk]
    examples, report = build(rows, letters)
    assert [seen(letters, e) for e in examples] == ["<s>a[b</s>]", "<s>b[c</s>]", "<s>c[<|endoftext|> d</s>]", "<s>d\n[e</s>]"]
    assert report.end_marks == 3


# --- what is too long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "max_length, shown",
    [
        (13, "<s>abcdefgh[XYZ</s>]"),
        (12, "<s>abcefgh[XYZ</s>]"),                                    # 12 - 4 = 8 for the prompt: its first 4 and last 4
        (9, "<s>abgh[XYZ</s>]"),
        (6, "<s>h[XYZ</s>]"),
        (5, "<s>[XYZ</s>]"),                                            # the answer whole, and one token of the prompt
        (4, "<s>[XYZ]"),                                                # it does not fit: its end goes, and EOS with it
        (2, "<s>[X]"),
    ],
)
def test_truncation_keeps_the_answer_and_takes_the_middle_of_the_prompt(letters, max_length, shown):
    row = pair("abcdefgh", "XYZ")
    [example], report = build([row], letters, max_length=max_length)
    assert seen(letters, example) == shown and len(example.ids) == max_length
    assert (report.truncated, report.answers_cut, report.in_pieces) == (max_length < 13, max_length < 5, 0)


def test_an_answer_that_is_cut_leaves_a_quarter_to_the_prompt(letters):
    assert one(letters, pair("abcdefgh", "0123456789" * 3), max_length=20) == "<s>abgh[012345678901234]"
    assert one(letters, pair("ab", "0123456789" * 3), max_length=20) == "<s>ab[01234567890123456]"


def test_behind_the_gap_of_a_prompt_that_is_learned_one_token_does_not_count(letters):
    assert one(letters, pair("abcdefgh", "XY"), max_length=9, learn="all") == "<s>[ab]f[ghXY</s>]"


def test_an_empty_prompt_is_no_obstacle(letters, tmp_path):
    assert one(letters, pair("", "abcd"), max_length=4) == "<s>[abc]"
    assert one(save(tmp_path, bos=False), pair("", "abcd"), max_length=3) == "a[bc]"


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 8, 9, 10, 12])
def test_a_long_text_is_cut_into_pieces_in_which_every_token_counts_once(letters, max_length):
    content = "abcdefghi"                                               # with BOS and EOS 11 tokens, 10 targets
    examples, report = build([text(content)], letters, max_length=max_length)
    learned = [i for example in examples for i, counts in zip(example.ids, example.loss_mask) if counts]
    assert letters.decode(learned, skip_special_tokens=False) == content + EOS
    assert all(len(example.ids) <= max_length for example in examples)
    assert all(before.ids[-1] == after.ids[0] for before, after in zip(examples, examples[1:]))
    assert (report.in_pieces, report.truncated, report.kept) == (max_length < 11, 0, len(examples)) and len(report.where) == len(examples)


def test_no_example_is_longer_than_asked_and_none_without_a_target(chatty):
    long = chat(("user", "u" * 40), ("assistant", "a" * 30), ("user", "v" * 20), ("assistant", "b" * 25))
    for learn in ("completion", "assistant", "all"):
        for max_length in range(2, 250):
            [example], report = build([long], chatty, template="chatml", learn=learn, max_length=max_length)
            assert len(example.ids) <= max_length and any(example.loss_mask) and not example.loss_mask[0]
            assert (example.ids[-1] == chatty.encode("<|im_end|>", add_special_tokens=False)[0]) == (report.answers_cut == 0)


# --- what is reported ----------------------------------------------------------------------------------------------------------


def test_the_report_counts_what_became_of_each_row(letters):
    rows = [
        pair("ab", "c", "a, line 1"),
        pair("ab", "c", "a, line 2"),
        pair("ab", "d", "a, line 3"),
        pair("x", " \n", "a, line 4"),
        pair("x", "", "a, line 5"),
        chat(("user", "Hi")),
        Row("text", "b, line 1", completion="abcdefgh", unused=("id",)),
        Row("text", "b, line 2", completion="ij", unused=("id", "url")),
    ]
    examples, report = build(rows, letters, max_length=6)
    assert (report.rows, report.kept, len(examples)) == (8, 6, 6)                   # 3 pairs, a text in two pieces, a text
    assert report.formats == {"prompt/completion": 5, "messages": 1, "text": 2}
    assert report.without_answer == ["a, line 4", "a, line 5", "line 1"]
    assert (report.duplicates, report.identical) == (2, 1)
    assert report.where == ["a, line 1", "a, line 2", "a, line 3", "b, line 1", "b, line 1", "b, line 2"]
    assert report.unused == ["id", "url"]
    assert report.in_pieces == 1 and report.truncated == 0                          # 1 + 8 + 1 = 10 tokens in pieces of 6 and 5
    assert report.tokens == 3 * 5 + 6 + 5 + 4 and report.targets == 3 * 2 + 9 + 3


def test_rows_that_all_lack_an_answer_are_refused(letters):
    with pytest.raises(InputError, match=r"none of the 2 rows has an answer to learn \(line 1; line 1 ...\): give each an answer"):
        build([pair("a", ""), chat(("user", "Hi"))], letters)


def test_rows_that_truncation_leaves_without_a_target_are_refused(letters):
    with pytest.raises(InputError, match="max_length 1 leaves no room for a token and the one before it: give at least 2"):
        build([pair("abc", "d")], letters, max_length=1)


def test_a_tokenizer_without_eos_cannot_end_an_answer(tmp_path):
    tokenizer = save(tmp_path, eos_token=None)
    with pytest.raises(InputError, match=r"the tokenizer has no EOS token, so no answer could ever end: name one in tokenizer_config.json"):
        build([pair("a", "b")], tokenizer)
