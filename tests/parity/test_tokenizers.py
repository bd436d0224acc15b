"""The same ids, the same text and the same rendered chats as transformers, on vocabularies trained here and, where they are, real files.

Two differences are meant, and pinned below: a text that starts with BOS gets no second one, and LLaMA's dummy space is put before
a text that starts with a space too, as sentencepiece does."""

import random
from pathlib import Path

import pytest
import tokenizers
import transformers

from minift import tokenizer as T
from minift.data.chat import BUILT_IN, render
from tests.small_tokenizers import STRANGE, TEXTS, byte_level, prepending, sentencepiece_model, write

DATA = Path(__file__).parents[3] / "shared" / "data"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def slices(count: int = 150) -> list[str]:
    rng = random.Random(1)
    cuts = [(text, rng.randrange(len(text) - 80), rng.randrange(1, 80)) for text in rng.choices(TEXTS, k=count)]
    letters = "ab ▁\n\t'0 9.é日\u0301😀<>s/"
    return [text[at : at + n] for text, at, n in cuts] + ["".join(rng.choices(letters, k=12)) for _ in range(count)]


def llama_3(folder) -> None:
    """Byte-level BPE behind a split pattern, BOS by post-processor, chat tokens on top."""
    made = byte_level(400, special="<|begin_of_text|>")
    split = tokenizers.Regex(r"(?i:'s|'t)|\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(split, "isolated"), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.add_special_tokens(SPECIAL)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    write(folder, tokenizer_json=made.to_str(), tokenizer_config_json={
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"})


def metaspace(folder) -> None:
    made = prepending(sentencepiece_model(dummy_space=True))
    made.normalizer = tokenizers.normalizers.Replace(" {2,}", "▁")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    write(folder, tokenizer_json=made.to_str(), tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("parity")
    T.train(TEXTS, 600, special_tokens=SPECIAL).save(root / "ours")
    write(root / "llama raw", tokenizer_model=sentencepiece_model(dummy_space=True))
    T.load(root / "llama raw").save(root / "llama")
    write(root / "gpt2 raw")
    byte_level().model.save(str(root / "gpt2 raw"))
    T.load(root / "gpt2 raw").save(root / "gpt2")
    llama_3(root / "llama-3")
    metaspace(root / "metaspace")
    write(root / "prepend", tokenizer_json=prepending(sentencepiece_model(dummy_space=True)).to_str(),
          tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"})
    return root


@pytest.fixture(params=["ours", "llama", "gpt2", "llama-3", "metaspace", "prepend"])
def pair(request, folders, tmp_path):
    """Ours, and transformers' on the folder as we save it."""
    ours = T.load(folders / request.param)
    ours.save(tmp_path / "saved")
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")


def meant(ours: T.Tokenizer, text: str) -> bool:
    """Whether our ids differ from transformers' by intent."""
    return ours.config.get("add_prefix_space") is True and text[:1] in (" ", "▁")


def test_the_same_ids_and_the_same_text_back(pair):
    ours, theirs = pair
    for text in [*STRANGE, *TEXTS, *slices()]:
        if meant(ours, text):
            continue
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_the_same_special_tokens(pair):
    ours, theirs = pair
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
    assert ours.vocab_size == len(theirs)
    names = [ours.vocabulary.name(i) for i in sorted(ours.special_ids)]
    text = "the " + " a".join(names) + "\nb"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)[1:]) == theirs.decode(theirs.encode(text)[1:], skip_special_tokens=True)


def test_a_folder_that_transformers_saved_reads_the_same(pair, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    again = T.load(tmp_path / "theirs")
    assert (again.bos_id, again.eos_id, again.adds_bos, again.vocab_size) == (ours.bos_id, ours.eos_id, ours.adds_bos, ours.vocab_size)
    for text in [*STRANGE, *slices(50)]:
        assert again.encode(text) == theirs.encode(text), repr(text)
        assert again.encode(text, continues=True) == ours.encode(text, continues=True)


def test_the_two_meant_differences(folders):
    ours, theirs = T.load(folders / "llama"), transformers.AutoTokenizer.from_pretrained(folders / "llama")
    assert theirs.encode("<s>the") == [1, *ours.encode("<s>the")]
    the = ours.vocabulary.id("▁the")
    assert theirs.encode(" the") == [1, the] and ours.encode(" the") == [1, ours.vocabulary.id("▁"), the]
    assert theirs.decode(theirs.encode(" the"), skip_special_tokens=True) == "the" and ours.decode(ours.encode(" the")) == " the"


def test_the_real_gpt2_files_give_the_same_ids(tmp_path):
    if not (DATA / "tokenizer_gpt2" / "merges.txt").exists():
        pytest.skip("the GPT-2 files (shared/data/tokenizer_gpt2 beside this repository) are not here")
    ours = T.load(DATA / "tokenizer_gpt2")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (50257, 50256, 50256, 50256)
    assert ours.encode("Hello world") == [15496, 995]                                    # as OpenAI's encoder has it
    for text in [*STRANGE, *TEXTS, *slices(), "a<|endoftext|>b"]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


def test_the_real_llama_sentencepiece_gives_the_same_ids(tmp_path):
    if not (DATA / "weights_stories260k" / "tokenizer.model").exists():
        pytest.skip("the stories260k tokenizer (shared/data/weights_stories260k beside this repository) is not here")
    ours = T.load(DATA / "weights_stories260k")
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("Once upon a time") == [1, 403, 407, 261, 378]
    for text in [*TEXTS, *slices()]:
        assert meant(ours, text) or ours.encode(text) == theirs.encode(text), repr(text)


# ------------------------------------------------------------------------------------------------------------------ chat

TALK = [
    {"role": "system", "content": "Be <brief> & \"kind\"."},
    {"role": "user", "content": " Hi \n", "input": "日本"},
    {"role": "assistant", "content": "Hello!\n\n"},
    {"role": "user", "content": "{{ bos_token }}"},
    {"role": "assistant", "content": "Ciao"},
]
TEMPLATES = BUILT_IN | {
    "json and a macro": "{% macro turn(m) %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{% endmacro %}\n"
    "{%- for m in messages %}\n  {% if m.role == 'system' %}\n    {%- continue %}\n  {% endif %}\n"
    "{{ m.role }}>{{ turn(m) }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant>{% endif %}",
    "namespace and slices": "{% set ns = namespace(n=0) %}{{ bos_token }}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}"
    "{{ ns.n }} {{ m['role'][:4].upper() }}: {{ m['content'] | trim }}{{ eos_token if m.role == 'assistant' }}{% endfor %}",
    "tools and a date": "{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}{% for m in messages %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_the_same_text(folders, name):
    ours, theirs = T.load(folders / "ours"), transformers.AutoTokenizer.from_pretrained(folders / "ours")
    for turns, asked in [(TALK, False), (TALK[:-1], True), (TALK[:-1], False), (TALK[1:3], False)]:
        got = "".join(text for text, _ in render(turns, ours, TEMPLATES[name], add_generation_prompt=asked))
        wanted = theirs.apply_chat_template(turns, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=asked)
        assert got == (wanted if turns[-1]["role"] == "user" else wanted.rstrip("\n"))      # nothing behind the last end of turn


@pytest.mark.parametrize("folder, name", [("ours", "chatml"), ("ours", "llama-3"), ("llama-3", "llama-3"), ("llama-3", "chatml")])
def test_a_prompt_has_the_same_ids(folders, folder, name):
    ours, theirs = T.load(folders / folder), transformers.AutoTokenizer.from_pretrained(folders / folder)
    turns = [TALK[0], {"role": "user", "content": "Hi there"}]
    wanted = theirs.apply_chat_template(turns, chat_template=BUILT_IN[name], add_generation_prompt=True)["input_ids"]
    got, _ = ours.encode_segments(render(turns, ours, name, add_generation_prompt=True))
    assert got == (wanted if wanted[0] == ours.bos_id else [ours.bos_id, *wanted])           # ChatML leaves BOS to the tokenizer


def test_a_template_saved_with_the_tokenizer_is_the_one_transformers_uses(folders, tmp_path):
    ours = T.load(folders / "ours")
    ours.chat_template = BUILT_IN["alpaca"]
    ours.save(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.chat_template == BUILT_IN["alpaca"]
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").exists() and T.load(tmp_path / "theirs").chat_template == BUILT_IN["alpaca"]
