import json

import pytest

from minift.data.sources import Row, read, read_texts
from minift.errors import InputError


def lines(tmp_path, *objects, name="a.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(o) for o in objects))
    return path


def turns(row):
    return [(message["role"], message["content"]) for message in row.messages]


def test_alpaca_rows_become_a_question_and_an_answer(tmp_path):
    no_input = {"instruction": "Hi", "input": None, "output": "Ho", "id": 7}
    path = lines(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"}, no_input)
    with_input, without = read(path)
    assert (with_input.format, with_input.where, with_input.input) == ("alpaca", f"{path}, line 1", "1 2")
    assert turns(with_input) == [("user", "Add."), ("assistant", "3")]
    assert (without.input, without.answer, without.unused) == ("", "Ho", ("id",))


def test_sharegpt_and_messages_become_the_same_conversation(tmp_path):
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Bye"), ("assistant", "So long")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    [shared] = read(lines(tmp_path, {"conversations": [{"from": names[role], "value": text} for role, text in said]}))
    [messages] = read(lines(tmp_path, {"messages": [{"role": role, "content": text} for role, text in said]}))
    assert (shared.format, messages.format) == ("sharegpt", "messages")
    assert turns(shared) == turns(messages) == said
    assert shared.answer == "So long" and shared.question == messages.question


def test_prompt_and_completion_and_plain_text_stay_text(tmp_path):
    [pair] = read(lines(tmp_path, {"prompt": " Q ", "completion": "\nA"}))
    assert (pair.format, pair.prompt, pair.completion, pair.messages) == ("prompt/completion", " Q ", "\nA", ())
    [text] = read(lines(tmp_path, {"text": "Once", "source": "book"}))
    assert (text.format, text.completion, text.answer, text.unused) == ("text", "Once", "Once", ("source",))


def test_columns_say_which_field_is_which(tmp_path):
    path = lines(tmp_path, {"question": "1+1?", "answer": "2", "prompt": "not this"})
    [row] = read(path, columns={"prompt": "question", "completion": "answer"})
    assert (row.prompt, row.completion, row.unused) == ("1+1?", "2", ())
    with pytest.raises(InputError, match="there is no column 'reply'; found question, answer, prompt"):
        read(path, columns={"completion": "reply"})
    with pytest.raises(InputError, match="no format has a field 'reply'; known: completion, conversations, input, instruction"):
        read(path, columns={"reply": "answer"})


def test_several_files_in_several_formats_follow_each_other(tmp_path):
    lines(tmp_path, {"text": "t"}, name="2.jsonl")
    lines(tmp_path, {"prompt": "p", "completion": "c"}, name="1.jsonl")
    assert [row.format for row in read(tmp_path / "*.jsonl")] == ["prompt/completion", "text"]


def test_a_row_without_an_answer_is_kept_for_the_report(tmp_path):
    rows = read(lines(tmp_path, {"messages": [{"role": "user", "content": "Hi"}]}, {"messages": [{"role": "assistant", "content": None}]}))
    assert [row.answer for row in rows] == ["", ""]


def test_questions_are_equal_only_if_all_before_the_answer_is():
    def asked(*said, **more):
        return Row("messages", "", messages=tuple({"role": role, "content": text} for role, text in said), **more).question

    hi = asked(("user", "Hi"), ("assistant", "Ho"))
    assert hi == asked(("user", "Hi"), ("assistant", "Hello")) == asked(("user", "Hi"))
    others = [
        asked(("system", "Be kind."), ("user", "Hi")),
        asked(("system", "Be rude."), ("user", "Hi")),
        asked(("user", "Hi"), ("assistant", "Ho"), ("user", "Hi")),
        asked(("user", "Hi"), input="x"),
        asked(("user", "H"), ("user", "i")),
    ]
    assert len({hi, *others}) == 6


def test_plain_texts_are_read_for_pretraining_and_nothing_else_is(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert read_texts(([tmp_path / "a.txt", lines(tmp_path, {"text": "three"})])) == ["one", "two", "three"]
    with pytest.raises(InputError, match="line 1: prompt/completion data, plain text was wanted"):
        read_texts((lines(tmp_path, {"prompt": "p", "completion": "c"})))


CHAT = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
BAD = [
    ([{"q": "x", "a": "y"}], "line 1: no known format has these fields: q, a. Wanted those of one format:"),
    ([{"q": "x", "a": "y"}], "prompt/completion: prompt, completion"),
    ([{"q": "x", "a": "y"}], '--columns prompt question completion answer'),
    ([{}], "line 1: no known format has these fields: none"),
    ([{"text": "x"}, {"Text": "x"}], "line 2: no field 'text', though the file starts in text format; found Text"),
    ([CHAT, {"messages": []}], "line 2: the conversation is []; wanted a list of {'role': ..., 'content': ...}"),
    ([{"conversations": "Hi"}], "line 1: the conversation is 'Hi'; wanted a list of {'from': ..., 'value': ...}"),
    ([{"messages": [{"from": "human", "value": "x"}]}], "line 1, turn 1: wanted the fields role, content; found from, value"),
    ([{"messages": ["x"]}], "line 1, turn 1: wanted the fields role, content; found a str"),
    ([CHAT, {"messages": [*CHAT["messages"], {"role": "human", "content": "x"}]}], "line 2, turn 3: unknown role 'human'; known: system"),
    ([{"conversations": [{"from": "bot", "value": "x"}]}], "line 1, turn 1: unknown role 'bot'; known: system, human, user, gpt"),
    ([{"messages": [{"role": ["user"], "content": "x"}]}], "turn 1: unknown role ['user']"),
    ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "line 1: the field 'content' is a list; wanted text"),
    ([{"prompt": "x", "completion": 3}], "line 1: the field 'completion' is a int; wanted text"),
    ([{"instruction": "x", "output": "y", "chosen": "y", "rejected": "z"}], "data for preference learning (field chosen, rejected)"),
    ([CHAT | {"label": True}], "1: this is data for classification or preference learning (field label)"),
    ([{"text": "x", "Category": "y"}], "(field Category), which plain fine-tuning would ignore: `minift dpo` and `minift reward` take chosen"),
]


@pytest.mark.parametrize("objects, message", BAD)
def test_data_in_no_known_form_is_refused_by_line_with_what_was_found(tmp_path, objects, message):
    path = lines(tmp_path, *objects)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(path) in str(error.value) and message in str(error.value)
