"""Where rewards come from: rules worked by hand, your own functions, reward models, their weighted sum, and everything that is no reward."""

import math
from fractions import Fraction

import numpy
import pytest
import torch

from minift.data.examples import ask as question
from minift.data.examples import build, prompt_ids
from minift.data.sources import Row
from minift.errors import InputError, RunError
from minift.folder import save
from minift.models.scorer import Scorer
from minift.recipes.loading import use_template
from minift.rl.builtin_rewards import number_of
from minift.rl.model_rewards import ModelReward
from minift.rl.reward_source import rows
from minift.rl.rewards import Answered, Combined, RewardError, ask, combined, source
from minift.tokenizer import train as train_tokenizer
from tests.conftest import random_model


def answered(text, line=1, prompt="Q:", ids=(), ended=True, **fields):
    row = Row("prompt/completion", f"data.jsonl, line {line}", prompt=prompt)
    return Answered(prompt, text, row, fields, ids, ended)


def numeric(text, answer):
    return ask(source("numeric"), [answered(text, answer=answer)])[0]


class Fixed:
    """A source that returns what it was made with."""

    name = "fixed"

    def __init__(self, values):
        self.values = values

    def __call__(self, answers):
        return self.values


# ---------------------------------------------------------------------------------------------------------------- rules


def test_pep257_rewards_a_summary_and_nothing_else():
    assert ask(source("pep257"), [answered("Return the sum."), answered("Returns the sum."), answered("")]) == [1.0, 0.0, 0.0]


def test_length_counts_tokens_without_the_end_token():      # 1 - |n - 4| / 4 for n = 4, 4 (cut off, so no end token), 0, 8, 10
    answers = [answered("x", ids=range(5)), answered("x", ids=range(4), ended=False), answered("", ids=[2]),
               answered("x", ids=range(9)), answered("x", ids=range(11))]    # fmt: skip
    assert ask(source("length:4"), answers) == [1.0, 1.0, 0.0, 0.0, -0.5]


def test_a_regex_is_found_anywhere_unless_it_is_anchored():
    answers = [answered("yes: it is"), answered("oh yes"), answered("no")]
    assert ask(source("regex:yes"), answers) == [1.0, 1.0, 0.0]
    assert ask(source("regex:^yes"), answers) == [1.0, 0.0, 0.0]
    assert source("regex:a.py:b").name == "regex:a.py:b"


@pytest.mark.parametrize("text, value", [
    ("She has 3 cats and 72 dogs.", 72), ("72", 72), ("It costs $1,234.50.", Fraction(2469, 2)), ("-5", -5), ("is \u22125 degrees", -5), ("+5", 5),
    ("-$5", -5), ("$-5", -5), ("$ 5", 5), ("€.5", Fraction(1, 2)), ("50%", 50), ("3/4 of it", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)),
    ("10-3=7", 7), ("from 5-10", 10), ("(2)-1", 1), ("1,2,3", 3), ("12,345,678", 12345678), ("12,34", 34), ("2.", 2), ("2.50", Fraction(5, 2)),
    ("<<48/2=24>>24 in all", 24), ("48/2", 24), ("1.5/0.5", 3), ("1/0", None), ("none at all", None), ("", None), ("...", None), ("- and $", None),
    ("7 #### 72 and 9", 72), ("7 ####", None), ("#### -1,000\n#### 5", -1000), ("9" * 5000, None), ("0." + "1" * 5000, None),
    ("\\boxed{72}", 72),
])    # fmt: skip
def test_the_number_a_text_arrives_at(text, value):
    assert number_of(text) == value


def test_numeric_compares_with_the_number_behind_the_mark():
    reference = "48/2 = <<48/2=24>>24 clips in May.\n48+24 = 72.\n#### 72"
    assert numeric("So 48 + 24 = 72.", reference) == 1.0 and numeric("72 in all, 48 in April", reference) == 0.0
    assert numeric("#### 72 but then 5", reference) == 1.0 and numeric("", reference) == 0.0
    assert numeric("0.75", "#### 3/4") == 1.0 and numeric("1,000.0", "#### 1000") == 1.0 and numeric("half", "#### 1/2") == 0.0
    assert numeric("it is 0.3", 0.3) == 1.0                                                    # a JSON number


def test_numeric_falls_back_on_the_rows_own_answer_and_names_a_row_without_a_number():
    row = Row("prompt/completion", "gsm.jsonl, line 7", prompt="Q", completion="#### 5")
    assert ask(source("numeric"), [Answered("Q", "5", row)]) == [1.0]
    with pytest.raises(RewardError, match="gsm.jsonl, line 7: .* no number in the reference 'five'"):
        ask(source("numeric"), [Answered("Q", "5", row, {"answer": "five"})])


@pytest.mark.parametrize("spec, text", [
    ("pep8", "there is no reward 'pep8'"), ("length:", "wants a number of tokens"), ("length:-3", "wants a number of tokens"),
    ("length:0", "give 1 token or more"), ("regex:(", "no regular expression"), ("nowhere.py:f", "no such file: nowhere.py"), ("pep257:1", "there is no reward"),
])    # fmt: skip
def test_a_spec_that_names_no_reward_is_refused(spec, text):
    with pytest.raises(InputError, match=text):
        source(spec)


# ---------------------------------------------------------------------------------------------------------------- functions


@pytest.fixture
def function(tmp_path):
    """Source text -> the source that its function f is."""

    def make(text):
        (tmp_path / "mine.py").write_text(text)
        return source(f"{tmp_path / 'mine.py'}:f")

    return make


ANSWERS = [answered("a", 1, "P1", [5, 2], answer="x", level=1), answered("bb", 4, "P2", [6], answer="y")]


def test_a_function_gets_trls_arguments_and_the_columns(function):
    f = function("def f(prompts, completions, completion_ids, answer, level, **rest):\n"
                 "    assert (prompts, completions, completion_ids) == (['P1', 'P2'], ['a', 'bb'], [[5, 2], [6]])\n"
                 "    assert answer == ['x', 'y'] and level == [1, None] and rest == {}\n    return [len(c) for c in completions]\n")    # fmt: skip
    assert ask(f, ANSWERS) == [1.0, 2.0]


def test_a_function_gets_only_what_its_signature_names(function):
    assert ask(function("def f(completions, *, answer=None, weight=2):\n    return [weight * len(a) for a in answer]"), ANSWERS) == [2.0, 2.0]
    assert ask(function("def f(**everything):\n    return [len(everything)] * 2"), ANSWERS) == [5.0, 5.0]


def test_a_file_may_import_its_neighbours_and_define_dataclasses(function, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("ONE = 1")
    f = function("from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import ONE\n"
                 "@dataclass\nclass C:\n    x: int = 1\ndef f(completions):\n    return [ONE * C().x] * 2")    # fmt: skip
    assert ask(f, ANSWERS) == [1.0, 1.0]


def test_a_function_that_raises_is_named_with_its_line_and_rows(function):
    f = function("def f(completions):\n    x = 1\n    raise ValueError('bad luck')\n")
    with pytest.raises(RewardError, match=r"mine.py:f failed on data.jsonl, line 1, data.jsonl, line 4: ValueError: bad luck \(mine.py, line 3\)"):
        ask(f, ANSWERS)
    with pytest.raises(RewardError, match="SystemExit: 0"):                  # it would end the run as if all were well
        ask(function("import sys\ndef f(completions):\n    sys.exit(0)"), ANSWERS)


def test_a_function_that_wants_a_column_which_no_row_has(function):
    with pytest.raises(RewardError, match="wants the argument 'solution', and data.jsonl, line 1, .* found answer, level, prompts"):
        ask(function("def f(completions, solution):\n    return [1, 1]"), ANSWERS)


@pytest.mark.parametrize("text, complaint", [
    ("def g(): pass\nimport os.path", "has no function 'f'; its functions: g"), ("f = 3", "is a int; wanted a plain function"),
    ("async def f(completions): pass", "is an async function"), ("def f(:", "cannot be run .* SyntaxError"), ("1 / 0", "cannot be run .* ZeroDivisionError"),
    ("import sys; sys.exit(0)", "cannot be run .* SystemExit"),
])    # fmt: skip
def test_a_file_without_a_usable_function_is_refused_before_the_run(function, text, complaint):
    with pytest.raises(InputError, match=complaint):
        function(text)


# ---------------------------------------------------------------------------------------------------------------- what is no reward


@pytest.mark.parametrize("values", [[1, 2.5], (True, False), numpy.float32([1, 2]), torch.tensor([1.0, 2.0]), [torch.tensor(1.0), numpy.float64(2)]])
def test_numbers_of_every_kind_become_floats(values):
    found = ask(Fixed(values), ANSWERS)
    assert [type(value) for value in found] == [float, float] and found == [float(value) for value in values]


@pytest.mark.parametrize("bad, said", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (torch.tensor(math.nan), "nan"), (None, "None, a NoneType"),
                                       ("1", "'1', a str"), ([1], r"\[1\], a list"), (1j, "1j, a complex")])
def test_a_value_that_is_no_number_names_its_source_and_its_own_row(bad, said):
    with pytest.raises(RewardError, match=f"^data.jsonl, line 4: the reward fixed is {said} for the answer 'bb'|^data.jsonl, line 4: the reward fixed is {said},"):
        ask(Fixed([1.0, bad]), ANSWERS)


@pytest.mark.parametrize("values, said", [([1.0], "returned 1 numbers for 2 answers"), ([1.0] * 3, "returned 3 numbers for 2"), (None, "returned a NoneType"),
                                          (1.0, "returned a float"), ({"a": 1}, "returned a dict"), (torch.tensor(1.0), "returned a float")])
def test_the_wrong_number_of_rewards_names_the_rows(values, said):
    with pytest.raises(RewardError, match=said) as caught:
        ask(Fixed(values), ANSWERS)
    assert "data.jsonl, line 1, data.jsonl, line 4" in str(caught.value)


def test_of_many_rows_the_first_asked_are_named():
    many = [Answered("p", "a", Row("text", where=f"line {i}"), {}, [1], True) for i in (9, 2, 7, 7, 1, 5)]
    assert rows(many) == "line 9, line 2, line 7, line 1 and 1 more rows" and rows(many[:1]) == "line 9" and rows([]) == "no answers"


def test_a_reward_error_ends_the_command_with_status_1(minift, monkeypatch):
    assert issubclass(RewardError, RunError) and not issubclass(RewardError, InputError)
    from minift.recipes import generate

    def fail(config):
        raise RewardError("data.jsonl, line 4: no reward")

    monkeypatch.setattr(generate, "run", fail)
    assert minift("generate", "--prompt", "x") == (1, "", "minift generate: data.jsonl, line 4: no reward\n")


# ---------------------------------------------------------------------------------------------------------------- several


def test_weights_multiply_and_each_sources_values_are_kept():
    both = combined({"pep257": 0.5, "regex:sum": 2.0, "length:4": 0.0})
    assert ask(both, [answered("Return the sum.", ids=range(5)), answered("the sum"), answered("no")]) == [2.5, 2.0, 0.0]
    assert both.parts == {"pep257": [1.0, 0.0, 0.0], "regex:sum": [1.0, 1.0, 0.0], "length:4": [1.0, -0.25, -0.25]}
    assert both.name == "pep257 + regex:sum + length:4"


def test_a_part_that_fails_is_named():
    with pytest.raises(RewardError, match="line 4: the reward fixed is nan"):
        Combined([(source("pep257"), 1.0), (Fixed([0.0, math.nan]), 0.0)])(ANSWERS)


@pytest.mark.parametrize("specs, text", [({}, "no reward was named"), ({"pep257": math.nan}, "weight of the reward pep257 is nan"), ({"pep257": 0.0}, "has the weight 0")])
def test_rewards_without_a_meaning_are_refused(specs, text):
    with pytest.raises(InputError, match=text):
        combined(specs)
    with pytest.raises(InputError, match="named twice"):
        Combined([(source("pep257"), 1.0), (source("pep257"), 1.0)])


# ---------------------------------------------------------------------------------------------------------------- reward models


def scorer_for(tokens):
    return Scorer.on(random_model(tokens), seed=1).eval()


def alone(scorer, ids):
    """The definition: one text in one row, read at its last token."""
    with torch.no_grad():
        return scorer(torch.tensor([ids]))[0, -1, 0].item()


TEXTS = ["The sum.", "", "A name is bound.", "It", "The object is returned."]


def test_a_reward_model_reads_its_own_tokens_of_each_text_at_the_end(small_tokenizer):
    scorer = scorer_for(small_tokenizer)
    answers = [answered(text, prompt=prompt, ids=[399]) for text in TEXTS for prompt in ("class Longer(object):", "def f():")]
    found = ask(ModelReward("rm", scorer, small_tokenizer, batch_tokens=60), answers)
    tokens = [[*small_tokenizer.encode(a.prompt), *small_tokenizer.encode(a.text, add_special_tokens=False, continues=True), small_tokenizer.eos_id] for a in answers]
    assert found == pytest.approx([alone(scorer, ids) for ids in tokens], abs=1e-5) and len({round(value, 4) for value in found}) == len(found)


def test_a_scorer_with_another_tokenizer_scores_the_text_not_the_policys_ids(small_tokenizer):
    other = train_tokenizer(["one two three four " * 200], 280)
    scorer = scorer_for(other)
    policy_ids = small_tokenizer.encode("The sum.", add_special_tokens=False)
    [found] = ask(ModelReward("rm", scorer, other), [answered("The sum.", ids=policy_ids)])
    assert found == pytest.approx(alone(scorer, [*other.encode("Q:"), *other.encode("The sum.", False, True), other.eos_id]), abs=1e-5)


def test_a_chat_is_scored_as_the_scorer_was_trained_on_it(small_tokenizer):
    asked = question("Say it.")
    whole = Row("messages", "chat", messages=(*asked.messages, {"role": "assistant", "content": "It."}))
    use_template(small_tokenizer, [asked], "alpaca")
    try:
        scorer = scorer_for(small_tokenizer)
        reward = ModelReward("rm", scorer, small_tokenizer)
        trained = build([whole], small_tokenizer)[0][0].ids
        assert ask(reward, [Answered("", "It.", asked), Answered("", "It.", whole)]) == pytest.approx([alone(scorer, trained)] * 2, abs=1e-5)
        [empty] = ask(reward, [Answered("", "", asked)])
        assert empty == pytest.approx(alone(scorer, [*prompt_ids(asked, small_tokenizer), small_tokenizer.eos_id]), abs=1e-5)
    finally:
        small_tokenizer.chat_template = None


def test_a_reward_model_is_named_by_its_folder_and_a_language_model_is_refused(small_tokenizer, small_model, tmp_path):
    scorer = scorer_for(small_tokenizer)
    save(scorer, small_tokenizer, tmp_path / "rm")
    loaded = source(str(tmp_path / "rm"))
    assert loaded.name == str(tmp_path / "rm") and ask(loaded, ANSWERS) == pytest.approx(ask(ModelReward("rm", scorer, small_tokenizer), ANSWERS), abs=1e-5)
    given = source(str(small_model), lambda name: (scorer, small_tokenizer))
    assert ask(given, ANSWERS) == ask(ModelReward("rm", scorer, small_tokenizer), ANSWERS)
    with pytest.raises(InputError, match="is a language model, which gives no scores"):
        source(str(small_model))


def test_a_text_too_long_for_the_scorer_names_its_row(small_tokenizer):
    scorer = Scorer.on(random_model(small_tokenizer, position="learned", max_positions=20), seed=1)
    with pytest.raises(RewardError, match="data.jsonl, line 9: with its answer this is .* 20 positions"):
        ask(ModelReward("rm", scorer, small_tokenizer), [answered("Short.", 1), answered("word " * 40, 9)])


def test_scoring_leaves_the_scorers_mode_alone(small_tokenizer):
    scorer = scorer_for(small_tokenizer).train()
    ask(ModelReward("rm", scorer, small_tokenizer), ANSWERS)
    assert scorer.training
