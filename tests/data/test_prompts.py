import json

import pytest

from minift import tokenizer as T
from minift.data.examples import prompt_ids
from minift.data.prompts import describe, read_prompts
from minift.data.split import split_rows
from minift.errors import InputError


def lines(tmp_path, *objects):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(o) for o in objects))
    return path


def one(tmp_path, record, **options):
    [prompt] = read_prompts(lines(tmp_path, record), **options)
    return prompt


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_a_prompt_alone_is_enough_and_other_columns_are_the_rewards(tmp_path):
    prompt = one(tmp_path, {"prompt": "1+1?", "answer": "2", "level": 3})
    assert (prompt.row.prompt, prompt.row.answer, prompt.fields) == ("1+1?", "", {"answer": "2", "level": 3})
    assert one(tmp_path, {"prompt": "1+1?"}).fields == {} and prompt.where == f"{tmp_path / 'a.jsonl'}, line 1"


def test_a_question_column_becomes_the_prompt_and_the_answer_stays_a_field(tmp_path):
    prompt = one(tmp_path, {"question": "1+1?", "answer": "It is\n#### 2"}, columns={"prompt": "question"})
    assert (prompt.row.prompt, prompt.fields) == ("1+1?", {"answer": "It is\n#### 2"})
    assert one(tmp_path, {"question": "1+1?", "solution": "2"}, columns={"prompt": "question", "answer": "solution"}).fields == {"answer": "2"}


@pytest.mark.parametrize("record", [
    {"prompt": "Hi", "completion": "Ho"},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"prompt": TURNS},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"instruction": "Hi", "input": "", "output": "Ho"},
])    # fmt: skip
def test_of_a_file_for_fine_tuning_the_answer_is_kept_beside_the_prompt(tmp_path, record):
    prompt = one(tmp_path, record)
    assert prompt.fields == {"answer": "Ho"} and prompt.row.answer == "Ho" and "Ho" not in prompt.question
    with_column = one(tmp_path, record | {"answer": "42"})
    assert with_column.fields == {"answer": "42"} and with_column.question == prompt.question


def test_an_instruction_keeps_its_input_and_needs_no_output(tmp_path):
    prompt = one(tmp_path, {"instruction": "Add.", "input": "1 2"})
    assert (prompt.row.format, prompt.row.input, prompt.row.answer, prompt.fields) == ("alpaca", "1 2", "", {})


def test_the_ids_of_a_prompt_do_not_know_its_answer(tmp_path):
    tokenizer = T.train(["Say hello to Ann.\nHello, Ann!"] * 5, vocab_size=280)
    asked = [one(tmp_path, record) for record in ({"messages": TURNS}, {"messages": TURNS[:1]}, {"prompt": TURNS[:1]}, {"instruction": "Hi", "output": "Ho"})]
    assert len({tuple(prompt_ids(prompt.row, tokenizer)) for prompt in asked}) == 1
    assert tokenizer.decode(prompt_ids(asked[0].row, tokenizer)) == "Hi\n"


def test_prompts_that_stand_twice_are_kept_counted_and_on_one_side(tmp_path):
    prompts = read_prompts(lines(tmp_path, *[{"prompt": f"Q{n % 8}", "n": n} for n in range(20)]))
    assert [prompt.fields["n"] for prompt in prompts] == [*range(20)]
    assert describe(prompts) == ["20 prompts", "12 of them ask what an earlier one asked", "for the reward: n"]
    train, valid = split_rows(prompts, fraction=0.3)
    assert not {prompt.question for prompt in train} & {prompt.question for prompt in valid}


@pytest.mark.parametrize("objects, message", [
    ([{"q": "x"}], "line 1: nothing to answer: found the fields q, wanted one of prompt, messages, conversations, instruction"),
    ([{"text": "x"}], '--columns prompt question'),
    ([{"prompt": "x"}, {"Prompt": "x"}], "line 2: no field 'prompt', though the file starts with one; found Prompt"),
    ([{"prompt": "x"}, {"prompt": " \n"}], "line 2: the prompt is empty"),
    ([{"messages": TURNS[1:]}], "line 1: the prompt is empty"),
    ([{"prompt": 3}], "line 1: the field 'prompt' is a int; wanted text"),
    ([{"prompt": []}], "line 1: the conversation is []"),
    ([{"prompt": "x", "completion": 3}], "line 1: the field 'completion' is a int; wanted text"),
])    # fmt: skip
def test_what_asks_nothing_is_refused_by_line(tmp_path, objects, message):
    path = lines(tmp_path, *objects)
    with pytest.raises(InputError) as error:
        read_prompts(path)
    assert str(path) in str(error.value) and message in str(error.value)
