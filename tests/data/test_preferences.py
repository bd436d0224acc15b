import json

import pytest

from minift import tokenizer as T
from minift.data.branches import grow
from minift.data.examples import build, prompt_ids
from minift.data.preference_trees import build_labelled, build_pairs, describe
from minift.data.preferences import Labelled, Pair, job_of, read_labelled, read_pairs, unpair
from minift.data.sources import Row, read
from minift.data.split import split_rows
from minift.errors import InputError


def lines(tmp_path, *objects, name="a.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(o) for o in objects))
    return path


def one(tmp_path, record, **options):
    [pair], _ = read_pairs(lines(tmp_path, record), **options)
    assert pair.chosen.question == pair.rejected.question == pair.question
    return pair


def turns(row):
    return [(message["role"], message["content"]) for message in row.messages]


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def text_pair(prompt="Q: ab\n", chosen="cd", rejected="e", where="line 1", margin=None):
    row = lambda answer: Row("prompt/completion", where, prompt=prompt, completion=answer)
    return Pair(where, row(chosen), row(rejected), margin)


@pytest.fixture(scope="module")
def tokenizer():
    return T.train(["the cat sat on the mat\nand that was that, said the cat", "Human: Assistant: abcd abab cdcd dada"] * 20, vocab_size=330)


# --- pairs of every format -----------------------------------------------------------------------------------------------------


def test_texts_follow_their_prompt_as_they_stand(tmp_path):
    pair = one(tmp_path, {"prompt": " Q ", "chosen": "\nyes", "rejected": "no"})
    assert (pair.chosen.prompt, pair.chosen.completion, pair.rejected.completion, pair.margin) == (" Q ", "\nyes", "no", None)
    assert pair.where == f"{tmp_path / 'a.jsonl'}, line 1" and not pair.chosen.messages


def test_messages_in_each_place_that_trl_allows_make_one_conversation(tmp_path):
    system, asked = {"role": "system", "content": "Be kind."}, [user("Hi"), said("Ho"), user("Bye")]
    for record in (
        {"prompt": [system, *asked], "chosen": [said("So long")], "rejected": [said("Go")]},
        {"prompt": [system, *asked], "chosen": "So long", "rejected": "Go"},
        {"prompt": [system, *asked], "chosen": said("So long"), "rejected": said("Go")},
        {"prompt": [system, *asked], "chosen": [system, *asked, said("So long")], "rejected": [system, *asked, said("Go")]},
        {"prompt": "Bye", "chosen": [system, *asked, said("So long")], "rejected": [system, *asked, said("Go")]},
        {"chosen": [system, *asked, said("So long")], "rejected": [system, *asked, said("Go")]},
        {"messages": [system, *asked], "chosen": said("So long"), "rejected": said("Go")},
    ):
        pair = one(tmp_path, record)
        before = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Bye")]
        assert turns(pair.chosen) == [*before, ("assistant", "So long")], record
        assert turns(pair.rejected) == [*before, ("assistant", "Go")], record


def test_a_text_that_messages_answer_is_the_users(tmp_path):
    pair = one(tmp_path, {"prompt": "Hi", "chosen": [said("Ho")], "rejected": [said("Go")]})
    assert turns(pair.rejected) == [("user", "Hi"), ("assistant", "Go")]


def test_alpacas_input_is_kept_and_an_output_beside_the_pair_is_not_used(tmp_path):
    path = lines(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3!", "chosen": "3", "rejected": "4"})
    [pair], found = read_pairs(path)
    assert (turns(pair.chosen), pair.chosen.input, pair.rejected.answer) == ([("user", "Add."), ("assistant", "3")], "1 2", "4")
    assert found.unused == ["output"] and found.lines() == ["1 rows (1 alpaca)", "fields not used: output"]


def test_sharegpt_of_either_spelling_with_a_system_field(tmp_path):
    asked = [{"from": "human", "value": "Hi"}]
    for chosen, rejected in (
        ({"from": "gpt", "value": "Ho"}, {"from": "gpt", "value": "Go"}), (said("Ho"), said("Go")), ("Ho", "Go"),
    ):  # fmt: skip
        pair = one(tmp_path, {"conversations": asked, "system": "Be kind.", "chosen": chosen, "rejected": rejected})
        assert turns(pair.chosen) == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho")] and pair.rejected.answer == "Go"


def test_of_anthropics_texts_the_prompt_ends_at_the_last_assistant_that_both_have(tmp_path):
    asked = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant:"
    pair = one(tmp_path, {"chosen": f"{asked} The sky", "rejected": f"{asked} The sea\n\nHuman: What?\n\nAssistant: Oh"})
    assert pair.chosen.prompt == pair.rejected.prompt == asked
    assert (pair.chosen.completion, pair.rejected.completion) == (" The sky", " The sea\n\nHuman: What?\n\nAssistant: Oh")


@pytest.mark.parametrize("chosen, rejected, prompt", [
    ("Is it? yes", "Is it? no", "Is it?"),                                 # the blank goes with the answer
    ("Is it?\nyes", "Is it?\nno", "Is it?\n"),                             # a line break stays with the prompt
    ("The cat", "The car", "The"),                                         # no word is cut in two
    ("Is it? It is", "Is it? It was", "Is it? It"),                        # the answers begin alike
    ("Is it? yes", "Is it? yes indeed", "Is it?"),                         # an answer that goes on: both must have a word left
    ("Is  it?   yes", "Is  it?   no", "Is  it?"),
])    # fmt: skip
def test_other_texts_part_at_the_last_break_between_words_that_they_share(tmp_path, chosen, rejected, prompt):
    pair = one(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert pair.chosen.prompt == pair.rejected.prompt == prompt
    assert (prompt + pair.chosen.completion, prompt + pair.rejected.completion) == (chosen, rejected)


def test_a_ranking_is_all_its_pairs_best_first_less_its_ties(tmp_path):
    pairs, found = read_pairs(lines(tmp_path, {"prompt": "Q", "ranking": ["a", "b", "a ", "c"]}))
    assert [(pair.chosen.answer, pair.rejected.answer) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "a "), ("b", "c"), ("a ", "c")]
    assert found.ties == [f"{tmp_path / 'a.jsonl'}, line 1, answers 1 and 3"] and found.rows == 1
    assert len({pair.question for pair in pairs}) == 1


def test_margins_are_given_or_the_difference_of_scores(tmp_path):
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    path = lines(tmp_path, pair | {"margin": 0.5}, pair | {"score_chosen": 7, "score_rejected": "4.5"}, pair | {"margin": None},
                 pair | {"score_chosen": 1, "score_rejected": 3}, pair | {"margin": 2, "score_chosen": 1, "score_rejected": 3})    # fmt: skip
    pairs, found = read_pairs(path)
    assert [pair.margin for pair in pairs] == [0.5, 2.5, None, -2.0, 2.0]
    assert found.against_scores == [f"{path}, line 4"] and "1 pairs have a negative margin" in found.lines()[1]


def test_columns_say_which_field_is_which_and_a_table_will_do(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,good,bad,gain,prompt\n1+1?,2,3,0.25,not this\n")
    [pair], _ = read_pairs(path, columns={"prompt": "question", "chosen": "good", "rejected": "bad", "margin": "gain"})
    assert (pair.chosen.prompt, pair.chosen.answer, pair.rejected.answer, pair.margin) == ("1+1?", "2", "3", 0.25)
    with pytest.raises(InputError, match="no format has a field 'best'; known"):
        read_pairs(path, columns={"best": "good"})


# --- labels --------------------------------------------------------------------------------------------------------------------


def test_labels_are_read_in_every_spelling(tmp_path):
    values = [True, False, 1, 0, "True", "false", "1", " 0 "]
    rows, found = read_labelled(lines(tmp_path, *[{"prompt": "Q", "completion": "a", "label": value} for value in values]))
    assert [row.desirable for row in rows] == [True, False] * 4
    assert (rows[0].row.prompt, rows[0].row.completion, rows[0].question) == ("Q", "a", rows[0].row.question)
    assert found.formats == {"labelled prompt/completion": 8} and found.unused == []


def test_labelled_conversations_of_every_format(tmp_path):
    for record in (
        {"messages": [user("Hi"), said("Ho")], "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "label": True},
        {"prompt": [user("Hi")], "completion": [said("Ho")], "label": True},
        {"instruction": "Hi", "output": "Ho", "label": True},
    ):
        [labelled], _ = read_labelled(lines(tmp_path, record))
        assert turns(labelled.row) == [("user", "Hi"), ("assistant", "Ho")] and labelled.desirable


def test_a_pair_is_a_desirable_answer_and_an_undesirable_one(tmp_path):
    path = lines(tmp_path, {"prompt": "Q", "chosen": "a", "rejected": "b"}, {"prompt": "R", "chosen": "c", "rejected": "c"})
    rows, found = read_labelled(path)
    assert [(row.row.answer, row.desirable) for row in rows] == [("a", True), ("b", False)] and found.ties == [f"{path}, line 2"]
    assert rows == unpair(read_pairs(path)[0])


def test_what_a_file_is_for_is_told_by_its_first_record(tmp_path):
    pair, label = {"q": "Q", "chosen": "a", "rejected": "b", "label": 1}, {"prompt": "Q", "completion": "a", "label": 1}
    assert job_of(lines(tmp_path, pair)) == "pairs" and job_of(lines(tmp_path, label)) == "labels"
    assert job_of(lines(tmp_path, {"prompt": "Q", "completion": "a"})) is None
    assert job_of(lines(tmp_path, {"q": "Q", "a": "a", "good": 1}), {"prompt": "q", "completion": "a", "label": "good"}) == "labels"


# --- what is dropped, and what is refused --------------------------------------------------------------------------------------


def test_ties_and_empty_answers_are_dropped_and_listed(tmp_path):
    rows = [("a", "b"), ("a", " a\n"), ("", "b"), ("a", None), ("c", "d")]
    path = lines(tmp_path, *[{"prompt": "Q", "chosen": chosen, "rejected": rejected} for chosen, rejected in rows])
    pairs, found = read_pairs(path)
    assert [pair.where[-1] for pair in pairs] == ["1", "5"]
    assert found.ties == [f"{path}, line 2"] and found.without_answer == [f"{path}, line 3", f"{path}, line 4"]
    assert found.rows == 5 and found.lines()[1:] == [
        f"1 pairs are ties, the chosen answer being the rejected one, and are left out: {path}, line 2",
        f"2 have an empty answer and are left out: {path}, line 3; {path}, line 4",
    ]
    labelled, found = read_labelled(lines(tmp_path, {"messages": [user("Hi"), said("Ho")], "label": 1}, {"messages": [user("Hi")], "label": 0}))
    assert len(labelled) == 1 and found.without_answer == [f"{path}, line 2"]


def test_an_explicit_pair_of_one_answer_or_of_two_questions_is_refused():
    with pytest.raises(InputError, match="line 7: the chosen answer is the rejected one, 'cd': leave the pair out"):
        text_pair(rejected=" cd", where="line 7")
    with pytest.raises(InputError, match="belong to different questions"):
        Pair("line 7", text_pair("Q").chosen, text_pair("R").rejected)


PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
TALK = [user("Hi"), said("Ho")]
BAD_PAIRS = [
    ([{"q": "x", "a": "y"}], "line 1: no preferences: found the fields q, a. Wanted those of one format:\n  prompt, ranking"),
    ([{"prompt": "x", "completion": "y"}], "line 1: no preferences: found the fields prompt, completion"),
    ([{"prompt": "x", "completion": "y", "label": 1}], "single answers with a label, where pairs of answers were wanted: `minift dpo --loss kto`"),
    ([PAIR, {"prompt": "Q", "chosen": "a"}], "line 2: no field 'rejected', though the file starts with prompt, chosen, rejected; found prompt, chosen"),
    ([PAIR | {"chosen": 3}], "line 1: the field 'chosen' is a int; wanted text"),
    ([PAIR | {"chosen": [said("a")]}], "one of the answers is a text and the other a list of messages"),
    ([PAIR | {"chosen": [], "rejected": [said("a")]}], "line 1, chosen: the conversation is []"),
    ([PAIR | {"chosen": [user("a")], "rejected": [said("b")]}], "line 1, chosen: the last message is the user's; wanted the assistant's answer there"),
    ([PAIR | {"chosen": [{"role": "bot", "content": "a"}], "rejected": [said("b")]}], "line 1, chosen, turn 1: unknown role 'bot'"),
    ([PAIR | {"chosen": [user("Other"), said("a")], "rejected": [user("Other"), said("b")]}], "the prompt 'Q' is not what the messages of the answers ask, 'Other'"),
    ([PAIR | {"prompt": TALK}], "line 1: the prompt ends with a turn of the assistant"),
    ([{"prompt": [user("Q")], "chosen": [user("R"), said("a")], "rejected": [user("R"), said("b")]}], "repeat a conversation of 1 messages that is not the prompt"),
    ([{"chosen": TALK, "rejected": [user("Hey"), said("Go")]}], "no shared prompt: chosen has 2 messages and rejected 2, and only the first 0 are the same"),
    ([{"chosen": [*TALK, user("a"), said("b")], "rejected": [user("Hi"), said("Go")]}], "chosen has 4 messages and rejected 2, and only the first 1 are the same"),
    ([{"chosen": [said("a")], "rejected": [said("b")]}], "answers without a question"),
    ([{"chosen": "Yes it is", "rejected": "No it is not"}], "line 1: no shared prompt: found 'Yes it is' and 'No it is not', which have no whole word"),
    ([{"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}], 'no "\\n\\nAssistant:" up to which they are the same'),
    ([{"prompt": "Q", "ranking": ["a"]}], "line 1: the ranking is ['a']; wanted a list of two answers or more, the best first"),
    ([PAIR | {"margin": "much"}], "line 1: the field 'margin' is 'much'; wanted a finite number"),
    ([PAIR | {"margin": float("nan")}], "the field 'margin' is nan"),
    ([PAIR | {"score_chosen": 3}], "there is a score_chosen, but not the other answer's score"),
    ([PAIR | {"rejected": "a"}, PAIR | {"chosen": " "}], "none of the 2 rows is left to learn from: 1 ties ("),
]


@pytest.mark.parametrize("objects, message", BAD_PAIRS)
def test_what_is_no_pair_is_refused_by_line_with_what_was_found(tmp_path, objects, message):
    path = lines(tmp_path, *objects)
    with pytest.raises(InputError) as error:
        read_pairs(path)
    assert str(path) in str(error.value) and message in str(error.value), error.value


@pytest.mark.parametrize("objects, message", [
    ([{"prompt": "Q", "completion": "a", "label": "spam"}], "line 1: the label is 'spam'; wanted true (1) for a desirable answer or false (0)"),
    ([{"prompt": "Q", "completion": "a", "label": None}], "line 1: the label is None"),
    ([{"prompt": "Q", "completion": "a", "label": 1}, {"prompt": "Q", "completion": "a"}], "line 2: no field 'label', though the file starts with"),
    ([{"prompt": "Q", "completion": "a"}], "line 1: no preferences"),
    ([{"prompt": "Q", "completion": " ", "label": 1}], "none of the 1 rows is left to learn from: 0 ties (none), 1 with an empty answer ("),
])    # fmt: skip
def test_answers_without_a_readable_label_are_refused_by_line(tmp_path, objects, message):
    path = lines(tmp_path, *objects)
    with pytest.raises(InputError) as error:
        read_labelled(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_plain_fine_tuning_names_the_verb_that_takes_preferences(tmp_path):
    for record in (PAIR, PAIR | {"completion": "a"}, {"chosen": "a", "rejected": "b"}, {"messages": TALK, "label": True}):
        with pytest.raises(InputError, match="`minift dpo` and `minift reward` take chosen and rejected answers, `minift dpo --loss kto` labelled ones"):
            read(lines(tmp_path, record))


# --- splitting -----------------------------------------------------------------------------------------------------------------


def test_duplicate_prompts_stay_on_one_side_of_the_split(tmp_path):
    rows = [{"prompt": f"Q{n % 20}", "chosen": f"a{n}", "rejected": "b"} for n in range(60)]
    pairs, _ = read_pairs(lines(tmp_path, *rows))
    for kept in (pairs, unpair(pairs)):
        train, valid = split_rows(kept, fraction=0.3)
        assert not {row.question for row in train} & {row.question for row in valid}
        assert len(train) + len(valid) == len(kept) and len({row.question for row in kept}) == 20


# --- trees ---------------------------------------------------------------------------------------------------------------------


def test_a_tree_by_hand_the_chosen_answer_first_each_with_its_end(tokenizer):
    [(tree, margin)], report = build_pairs([text_pair(margin=0.5)], tokenizer)
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False, continues=True)
    assert tree.prompt == [tokenizer.bos_id, *tokenizer.encode("Q: ab\n", add_special_tokens=False)]
    assert tree.answers == [[*ids("cd"), tokenizer.eos_id], [*ids("e"), tokenizer.eos_id]] and margin == 0.5
    assert (report.kept, report.tokens, report.answer_tokens) == (1, tree.size, sum(map(len, tree.answers)))
    assert grow([tree]).tokens.tolist() == [*tree.answers[0], *tree.answers[1]]


def chat_pair(*asked, chosen, rejected, input=""):
    row = lambda answer: Row("messages", "line 1", messages=(*asked, said(answer)), input=input)
    return Pair("line 1", row(chosen), row(rejected))


def test_trap05_a_prompt_has_the_same_ids_under_both_answers_and_at_generation(tokenizer):
    ends, begins = ["ab", "the c", "said ", "cd\n", "d "], ["a", "at", "cat", " cat", "\nand"]
    assert tokenizer.encode("the c", add_special_tokens=False) != tokenizer.encode("the cat", add_special_tokens=False)[: len(tokenizer.encode("the c", add_special_tokens=False))]
    pairs = [text_pair(end, begin, "dada") for end in ends for begin in begins]
    pairs += [chat_pair(user("Hi"), said("Ho"), user(end), chosen=begin, rejected="x", input="mat") for end in ends for begin in begins]
    for (tree, _), pair in zip(build_pairs(pairs, tokenizer)[0], pairs, strict=True):
        assert tree.prompt == prompt_ids(pair.chosen, tokenizer) == prompt_ids(pair.rejected, tokenizer)
        for answer, row in zip(tree.answers, (pair.chosen, pair.rejected)):
            [example], _ = build([row], tokenizer)
            assert tree.prompt + answer == example.ids and answer[-1] == tokenizer.eos_id


def test_a_template_is_asked_for_by_name_as_in_fine_tuning(tokenizer):
    pair = chat_pair(user("Hi"), chosen="Ho", rejected="Go", input="mat")
    [(tree, _)], _ = build_pairs([pair], tokenizer, template="alpaca")
    assert "### Input:\nmat\n\n### Response:\n" in tokenizer.decode(tree.prompt) and tree.prompt == prompt_ids(pair.chosen, tokenizer, template="alpaca")


def test_a_long_prompt_loses_its_middle_once_for_both_answers(tokenizer):
    pair = text_pair("0123456789", "xyz", "x")                              # BOS + 10 bytes; answers of 4 and 2 tokens
    [(whole, _)], _ = build_pairs([pair], tokenizer, max_length=15)
    [(tree, _)], report = build_pairs([pair], tokenizer, max_length=10)
    assert (len(whole.prompt), [len(answer) for answer in whole.answers]) == (11, [4, 2])
    assert tree.prompt == whole.prompt[:3] + whole.prompt[-3:] and tree.answers == whole.answers
    assert (report.prompts_cut, report.answers_cut) == (1, 0) and describe(report)[1:] == ["1 prompts lost their middle to --max-length"]


def test_an_answer_that_does_not_fit_loses_its_end_and_the_other_does_not(tokenizer):
    [(tree, _)], report = build_pairs([text_pair("0123456789", "x" * 20, "yz")], tokenizer, max_length=12)
    assert len(tree.prompt) == 3 and [len(answer) for answer in tree.answers] == [9, 3]           # a quarter of the room is the prompt's
    assert tokenizer.eos_id not in tree.answers[0] and tree.answers[1][-1] == tokenizer.eos_id
    assert (report.prompts_cut, report.answers_cut) == (1, 1)


def test_answers_that_cutting_or_an_end_mark_made_equal_are_ties(tokenizer):
    pairs = [text_pair("Q", "x" * 20, "x" * 21, where="line 1"), text_pair("Q", "a", "a</s>", where="line 2"), text_pair("Q", "</s>", "a", where="line 3"),
             text_pair("Q", "a</s>", "b", where="line 4")]    # fmt: skip
    built, report = build_pairs(pairs, tokenizer, max_length=10)
    assert report.where == ["line 4"] and report.ties == ["line 1", "line 2"] and report.without_answer == ["line 3"] and report.end_marks == 3
    assert built[0].tree.answers[0].count(tokenizer.eos_id) == 1
    text = "\n".join(describe(report))
    assert "2 pairs came to have the same two answers and are left out: line 1; line 2" in text and "1 have an answer that is only an end mark" in text
    with pytest.raises(InputError, match=r"none of the 1 rows is left to learn from: 1 have the same two answers after cutting to max_length 10 \(line 1\)"):
        build_pairs(pairs[:1], tokenizer, max_length=10)


def test_duplicate_questions_are_kept_and_counted_and_so_are_missing_margins(tokenizer):
    pairs = [text_pair("Q", "a", "b", margin=1.0), text_pair("Q", "c", "d"), text_pair("R", "a", "b")]
    built, report = build_pairs(pairs, tokenizer)
    assert [margin for _, margin in built] == [1.0, None, None] and (report.duplicates, report.without_margin) == (1, 2)
    assert describe(report, "held out")[0] == f"3 pairs held out ({report.answer_tokens} of {report.tokens} tokens are answers')"
    assert "1 of them ask what an earlier one asked" in describe(report) and "2 pairs have no margin, though others have" in describe(report)
    assert build_pairs(pairs[1:], tokenizer)[1].without_margin is None


def test_labelled_answers_become_trees_of_one_answer(tokenizer):
    pair = text_pair()
    rows = [Labelled("line 1", pair.rejected, False), Labelled("line 2", pair.chosen, True), Labelled("line 3", pair.chosen, False)]
    built, report = build_labelled(rows, tokenizer)
    [(tree, _)], _ = build_pairs([pair], tokenizer)
    assert [labelled.tree.answers for labelled in built] == [[tree.answers[1]], [tree.answers[0]], [tree.answers[0]]]
    assert all(labelled.tree.prompt == tree.prompt for labelled in built) and [labelled.desirable for labelled in built] == [False, True, False]
    assert report.desirable == 1 and describe(report)[0].startswith("3 answers to train on, 1 desirable and 2 undesirable (")


def test_no_room_or_nothing_before_an_answer_is_an_error(tokenizer, tmp_path):
    with pytest.raises(InputError, match="max_length 1 leaves no room"):
        build_pairs([text_pair()], tokenizer, max_length=1)
    assert build_pairs([text_pair("")], tokenizer)[0][0].tree.prompt == [tokenizer.bos_id]
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    bare = T.load(tmp_path)
    assert not bare.adds_bos
    with pytest.raises(InputError, match="line 1: the prompt is empty and this tokenizer writes no BOS"):
        build_pairs([text_pair("")], bare)
