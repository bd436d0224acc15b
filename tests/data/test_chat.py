"""Chat templates: what the built-in ones write, where conversations are cut, and templates that should not be run."""

import json

import pytest

from minift import tokenizer as T
from minift.data.chat import BUILT_IN, end_of_turn, render, template_source
from minift.errors import InputError

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "  Bye\n"},
    {"role": "assistant", "content": "Ciao"},
]


@pytest.fixture(scope="module")
def tok():
    return T.train(["Hello there, say hi and bye to the user and the assistant\n"] * 9, 330, special_tokens=SPECIAL)


def conversation(*contents, system=""):
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


# ------------------------------------------------------------------------------------------------ the built-in templates

def test_chatml(tok):
    assert render(TALK, tok, "chatml") == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello!<|im_end|>", True),
        ("\n<|im_start|>user\n  Bye\n<|im_end|>\n<|im_start|>assistant\n", False),
        ("Ciao<|im_end|>", True),
    ]


def test_llama_2(tok):
    assert render(TALK, tok, "llama-2") == [
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]", False),
        (" Hello! </s>", True),
        ("<s>[INST] Bye [/INST]", False),
        (" Ciao </s>", True),
    ]
    assert render(TALK[1:3], tok, "llama-2") == [("<s>[INST] Hi [/INST]", False), (" Hello! </s>", True)]


def test_llama_3(tok):
    assert render(TALK, tok, "llama-3") == [
        ("<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Hello!<|eot_id|>", True),
        ("<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Ciao<|eot_id|>", True),
    ]


def test_alpaca_with_and_without_an_input(tok):
    assert render(conversation("Add.", "3"), tok, "alpaca") == [
        ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
         "### Instruction:\nAdd.\n\n### Response:\n", False),
        ("3</s>", True),
    ]
    assert render(conversation("Add.", "3"), tok, "alpaca", input="1 2") == [
        ("Below is an instruction that describes a task, paired with an input that provides further context. "
         "Write a response that appropriately completes the request.\n\n"
         "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", False),
        ("3</s>", True),
    ]
    assert render(TALK, tok, "alpaca") == [
        ("Be brief.\n\n### Instruction:\nHi\n\n### Response:\n", False), ("Hello!</s>", True),
        ("\n\n### Instruction:\n  Bye\n\n\n### Response:\n", False), ("Ciao</s>", True),
    ]


def test_plain(tok):
    assert render(TALK, tok, "plain") == [("Be brief.\nHi\n", False), ("Hello!</s>", True), ("  Bye\n\n", False), ("Ciao</s>", True)]


def test_an_input_follows_the_question_where_the_template_has_no_place_for_it(tok):
    assert render(conversation("Add.", "3"), tok, "plain", input="1 2") == [("Add.\n\n1 2\n", False), ("3</s>", True)]


@pytest.mark.parametrize("name, end", [("chatml", "<|im_end|>"), ("llama-2", "</s>"), ("llama-3", "<|eot_id|>"), ("alpaca", "</s>")])
def test_each_template_has_its_end_of_turn(tok, name, end):
    assert end_of_turn(tok, name) == tok.vocabulary.id(end)
    ids, learn = tok.encode_segments(render(TALK, tok, name))
    assert ids[-1] == end_of_turn(tok, name) and learn[-1]


# -------------------------------------------------------------------------------------------------------------- cutting

@pytest.mark.parametrize("name", BUILT_IN)
def test_trap05_what_generation_is_given_is_what_training_saw_before_the_answer(tok, name):
    for turns in [TALK, TALK[:3], TALK[1:3], conversation("\n ", "\n\nx"), conversation("a", "a"), conversation("", "the  ")]:
        trained, asked = render(turns, tok, name), render(turns[:-1], tok, name, add_generation_prompt=True)
        assert trained[:-1] == asked and trained[-1][1] and not asked[-1][1]
        ids, learn = tok.encode_segments(trained)
        prompt, _ = tok.encode_segments(asked)
        assert ids[: len(prompt)] == prompt and all(learn[len(prompt):])


@pytest.mark.parametrize("name", BUILT_IN)
def test_trap04_a_template_that_writes_bos_does_not_double_it(tok, name):
    ids, _ = tok.encode_segments(render(TALK[:3], tok, name))
    assert tok.adds_bos and ids[0] == tok.bos_id and ids.count(tok.bos_id) == 1


def test_trap03_the_end_of_an_answer_is_learned_where_pad_is_eos(tok):
    tok = T.Tokenizer(tok.vocabulary, tok.config | {"pad_token": "</s>"}, tok.files)
    assert tok.pad_id == tok.eos_id
    ids, learn = tok.encode_segments(render(TALK[1:], tok, "plain"))
    assert [i for i, l in zip(ids, learn) if l].count(tok.eos_id) == 2 == ids.count(tok.eos_id)


def test_all_that_is_learned_is_answers_and_their_ends(tok):
    for name in BUILT_IN:
        end = tok.vocabulary.name(end_of_turn(tok, name))
        learned = [text for text, learn in render(TALK, tok, name) if learn]
        assert [text.strip() for text in "".join(learned).split(end)] == ["Hello!", "Ciao", ""]


def test_the_segments_join_to_what_the_template_writes(tok):
    joined = lambda turns, **how: "".join(text for text, _ in render(turns, tok, "chatml", **how))
    assert joined(TALK[:2]) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert joined(TALK) + "\n" == joined(TALK[:-1]) + "<|im_start|>assistant\nCiao<|im_end|>\n"     # less what follows the last end
    assert joined(TALK[:-1], add_generation_prompt=True).endswith("Bye\n<|im_end|>\n<|im_start|>assistant\n")


def test_a_conversation_may_start_with_the_assistant(tok):
    talk = [{"role": "assistant", "content": "Hello!"}]
    assert render(talk, tok, "chatml") == [("<|im_start|>assistant\n", False), ("Hello!<|im_end|>", True)]


FORGETS = """{% for m in messages %}{% if m.role == 'assistant' %}A:{% if loop.last %}(thought){% endif %}{{ m.content }}{{ eos_token }}
{% else %}U:{{ m.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"""


def test_a_template_that_rewrites_earlier_answers_still_gives_the_last_one(tok):
    talk = TALK[1:]
    assert render(talk, tok, FORGETS) == [("U:Hi\nA:Hello!</s>\nU:  Bye\n\nA:", False), ("(thought)Ciao</s>", True)]
    assert render(talk[:-1], tok, FORGETS, add_generation_prompt=True) == [("U:Hi\nA:Hello!</s>\nU:  Bye\n\nA:", False)]
    with pytest.raises(InputError, match=r"turn 2 .*differently.*'U:Hi\\nA:' is followed by '\(thought\)Hello.*make a row of each answer"):
        render(talk, tok, FORGETS, every_turn=True)


def test_a_template_that_asks_differently_than_it_records_is_refused(tok):
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}GO{% endif %}"
    with pytest.raises(InputError, match="'user: Hi</s>' is followed by 'GO' and then by 'assistant: Hello!</s>?'"):
        render(TALK[1:3], tok, source)


def test_generation_blocks_are_understood(tok):
    source = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}" \
        "{% if add_generation_prompt %}assistant:{% endif %}"
    assert render(TALK[1:3], tok, source) == [("user:Hi</s>assistant:", False), ("Hello!</s>", True)]


def test_the_tokenizers_own_template_is_the_default_and_is_saved(tok, tmp_path):
    own = T.Tokenizer(tok.vocabulary, dict(tok.config), tok.files)
    with pytest.raises(InputError, match="has no chat template: choose a built-in one .chatml, llama-2, llama-3, alpaca, plain"):
        render(TALK, own)
    own.chat_template = template_source(own, "llama-3")
    own.save(tmp_path)
    assert render(TALK, T.load(tmp_path)) == render(TALK, tok, "llama-3")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == BUILT_IN["llama-3"]


# ------------------------------------------------------------------------------------------------------------ bad templates

@pytest.mark.parametrize("source, tried", [
    ("{{ ''.__class__ }}", "'__class__' of a str"),
    ("{{ ''|attr('__class__') }}", "'__class__' of a str"),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "'__class__' of a list"),
    ("{{ '{0.__class__}'.format(1) }}", "'__class__' of a int"),
    ("{{ cycler.__init__.__globals__.os.system('touch hacked') }}", "'__init__' of a type"),
    ("{{ raise_exception.__globals__ }}", "'__globals__' of a function"),
    ("{{ messages.append(1) }}", "'append' of a list"),
    ("{% set messages[0].content = 'x' %}", "not valid jinja2"),
])
def test_a_template_that_calls_python_is_stopped(tok, tmp_path, monkeypatch, source, tried):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=tried):
        render(TALK, tok, source)
    assert not list(tmp_path.iterdir()) and len(TALK) == 5


@pytest.mark.parametrize("source, says", [
    ("{% for %}", "not valid jinja2: line 1"),
    ("\n{{ messages[0.content }}", "not valid jinja2: line 2"),
    ("{% include 'other' %}", "refuses this conversation of 5 messages: no loader"),
    ("{{ messages[9].content }}", "no element 9"),
    ("{{ raise_exception('roles must alternate') }}", "refuses this conversation of 5 messages: roles must alternate"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ("mine", "unknown chat template 'mine'; known: chatml, llama-2, llama-3, alpaca, plain"),
    ("{% for m in messages %}{{ m.content }}\n{% endfor %}", r"answer with 'Hello!\\n', which is no end-of-turn.*\{\{ eos_token \}\}"),
])
def test_a_template_that_does_not_work_is_explained(tok, source, says):
    with pytest.raises(InputError, match=says):
        render(TALK, tok, source)


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_a_template_whose_special_tokens_the_tokenizer_lacks_is_refused(name):
    with pytest.raises(InputError, match="no end-of-turn token of this tokenizer, so the model would never learn to stop"):
        render(TALK, T.train(["some text\n"] * 3, 275), name)


def test_an_end_mark_inside_an_answer_does_not_end_it(tok):
    assert render(conversation("a", "x</s>y"), tok, "plain")[-1] == ("x</s>y</s>", True)
