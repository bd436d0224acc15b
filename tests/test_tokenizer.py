"""Tokenizers: round trips, special tokens from every place they may be written, and traps 3, 4 and 5."""

import json
import random

import pytest
import tokenizers

from minift import tokenizer as T
from minift.errors import InputError
from tests.small_tokenizers import STRANGE, TEXTS, byte_level, prepending, sentencepiece_model, write


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    model, gpt2 = sentencepiece_model(dummy_space=True), byte_level()
    write(root / "llama", tokenizer_model=model)
    write(root / "gpt2")
    gpt2.model.save(str(root / "gpt2"))
    write(root / "json", tokenizer_json=prepending(model).to_str(),
          tokenizer_config_json={"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    T.train(TEXTS, 600).save(root / "ours")
    return root


KINDS = ["llama", "gpt2", "json", "ours"]


@pytest.fixture(params=KINDS)
def tok(request, folders):
    return T.load(folders / request.param)


# ------------------------------------------------------------------------------------------------------------ training

def test_a_trained_vocabulary_gives_any_text_back(folders):
    tok = T.load(folders / "ours")
    for text in [*STRANGE, *TEXTS]:
        assert tok.decode(tok.encode(text)) == text


def test_a_trained_vocabulary_has_the_ids_it_promises():
    tok = T.train(TEXTS, 600, special_tokens=["<|im_start|>", "<|im_end|>"])
    names = [tok.vocabulary.name(i) for i in range(8)]
    assert names == ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "\n", "<0x00>"]
    assert (tok.unk_id, tok.bos_id, tok.eos_id, tok.pad_id, tok.vocab_size) == (0, 1, 2, 3, 600)
    assert (tok.adds_bos, tok.adds_eos, tok.special_ids) == (True, False, {0, 1, 2, 3, 4, 5})
    assert tok.encode("a<|im_end|>\n\n", add_special_tokens=False)[-3:] == [5, 6, 6]
    pieces = [tok.vocabulary.name(i) for i in range(tok.vocab_size)]
    assert not [p for p in pieces[263:] if len(p) > 1 and any(c.isdigit() for c in p)]            # digits stand alone
    assert not [p for p in pieces[7:] if "\n" in p]                                               # and so do newlines
    assert any(p == "▁▁▁▁" for p in pieces)                                                       # but not the spaces of an indent


def test_of_two_special_tokens_that_start_alike_the_longer_is_meant():
    tok = T.train(TEXTS, 600, special_tokens=["<|end|>", "<|end|>of turn", "<|end"])
    assert tok.encode("<|end|>of turn<|end|> <|end", add_special_tokens=False) == [5, 4, *tok.encode(" ", continues=True), 6]


def test_training_twice_makes_the_same_bytes():
    assert T.train(TEXTS, 400).files == T.train(TEXTS, 400).files


@pytest.mark.parametrize("texts, size, says", [
    (TEXTS[:1], 100, "Vocabulary size is smaller than required_chars. 100 vs"),
    (["abc"], 90_000, "too high"),
    ([], 600, "it is empty"),
])
def test_what_cannot_be_trained_is_explained(texts, size, says):
    with pytest.raises(InputError, match=says):
        T.train(texts, size)


# -------------------------------------------------------------------------------------------------- encoding, decoding

def test_decode_undoes_encode(tok):
    for text in [*STRANGE, *TEXTS[:3]]:
        assert tok.decode(tok.encode(text)) == text


def test_ids_are_integers_within_the_vocabulary(tok):
    ids = [i for text in [*STRANGE, *TEXTS] for i in tok.encode(text)]
    assert min(ids) >= 0 and max(ids) < tok.vocab_size and all(type(i) is int for i in ids)


def test_a_continuing_piece_gets_no_bos_and_no_word_start(folders):
    for kind in ["llama", "json"]:
        tok = T.load(folders / kind)
        piece = tok.vocabulary.id
        assert tok.encode("the") == [tok.bos_id, piece("▁the")]
        assert tok.encode("the", continues=True) == tok.encode("xthe", add_special_tokens=False)[2:] != [piece("▁the")]
        assert tok.encode(" the", continues=True) == [piece("▁the")]
        assert tok.decode([piece("▁the")]) == "the" and tok.decode([piece("▁the")], continues=True) == " the"


@pytest.mark.parametrize("part", [
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                           {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]},
])
def test_every_kind_of_word_start_in_a_tokenizer_json_is_left_out_when_a_text_continues(tmp_path, part):
    space = "▁" if part["type"] == "Metaspace" else "Ġ"
    vocab = {space: 0, "a": 1, space + "a": 2, "b": 3}
    inner = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [(space, "a")])).to_str())
    write(tmp_path, tokenizer_json=inner | {"pre_tokenizer": part})
    tok = T.load(tmp_path)
    assert tok.encode("ab") == [2, 3] and tok.encode("ab", continues=True) == [1, 3] and tok.encode(" ab", continues=True) == [2, 3]


def test_the_dummy_space_comes_first_only_unless_the_config_is_of_the_old_kind(folders, tmp_path):
    write(tmp_path, tokenizer_model=(folders / "llama" / "tokenizer.model").read_bytes(), tokenizer_config_json={"legacy": True})
    new, old = T.load(folders / "llama"), T.load(tmp_path)
    the, bare = new.vocabulary.id("▁the"), new.encode("the", continues=True)
    assert new.encode("the</s>the") == [1, the, 2, *bare] and old.encode("the</s>the") == [1, the, 2, the]
    assert new.encode("<s>the") == [1, *bare] and old.encode("<s>the") == [1, the]


def test_decoding_leaves_special_tokens_out_or_spells_them(tok):
    ids = [*tok.encode("one"), tok.eos_id, *tok.encode(" two", continues=True)]
    assert tok.decode(ids) == "one two"
    bos = tok.tokens["bos"] if tok.adds_bos else ""                                 # "<s>" is followed by the dummy space, if any
    assert tok.decode(ids, skip_special_tokens=False).replace(" one", "one") == f"{bos}one{tok.tokens['eos']} two"


def test_pieces_are_shown_as_text_and_half_characters_by_name(tok):
    ids = tok.encode("the é日", add_special_tokens=False)
    shown = [tok.piece(i) for i in ids]
    assert "".join(shown).lstrip().startswith("the") and "\ufffd" not in "".join(shown)
    assert tok.piece(tok.eos_id) == tok.tokens["eos"]


def test_a_stream_emits_whole_characters_and_all_of_the_text(tok):
    rng = random.Random(0)
    ordinary = sorted(set(range(tok.vocab_size)) - tok.special_ids)
    if "▁" in tok.vocabulary.names.values():               # here bytes that make no character spoil the good bytes beside them too
        ordinary = [i for i in ordinary if not tok.vocabulary.name(i).startswith("<0x")]
    for ids in [*map(tok.encode, [*STRANGE, TEXTS[0]]), *([rng.choice(ordinary) for _ in range(40)] for _ in range(30))]:
        stream, parts = T.StreamDecoder(tok, continues=False), []
        for i in ids:
            parts.append(stream.push(i))
            assert not parts[-1].endswith("\ufffd")
        assert "".join(parts) + stream.flush() == tok.decode(ids)


def test_a_stream_after_a_prompt_keeps_the_space_between(tok):
    prompt, answer = tok.encode("Once upon"), tok.encode(" a 日", continues=True)
    stream = T.StreamDecoder(tok)
    pieces = [stream.push(i) for i in answer]
    assert "".join(pieces) == " a 日" and "" in pieces                             # "" while the three bytes of 日 arrive
    assert tok.decode(prompt) + "".join(pieces) == tok.decode(prompt + answer)


def test_what_cannot_be_encoded_or_decoded_is_explained(tok):
    for i in [-1, tok.vocab_size]:
        with pytest.raises(InputError, match=rf"token id {i} is outside the vocabulary 0..{tok.vocab_size - 1}"):
            tok.decode([0, i])
    with pytest.raises(InputError, match="lone surrogate"):
        tok.encode("ab\ud800")


# --------------------------------------------------------------------------------------------------------------- traps

def test_trap03_eos_is_learned_even_where_it_is_the_pad(folders):
    tok = T.load(folders / "gpt2")
    assert tok.pad_id == tok.eos_id == 0                                              # GPT-2 has no pad of its own
    ids, learn = tok.encode_segments([("Q: 1\n", False), ("A: 2<|endoftext|>", True)])
    assert ids[-1] == tok.eos_id and learn[-1] is True and sum(learn) == len(tok.encode("A: 2")) + 1


@pytest.mark.parametrize("kind", ["llama", "json", "ours"])
def test_trap04_there_is_exactly_one_bos(folders, kind):
    tok = T.load(folders / kind)
    for text in ["Hello", "<s>Hello", "", "<s>"]:
        assert tok.encode(text)[0] == tok.bos_id and tok.encode(text).count(tok.bos_id) == 1
        ids, learn = tok.encode_segments([(text, True), (" you", True)])
        assert ids[0] == tok.bos_id and ids.count(tok.bos_id) == 1
        assert learn[0] is (text.startswith("<s>"))                                 # added by us: not learned
    assert tok.encode("<s>Hello") == tok.encode_segments([("<s>Hello", False)])[0]
    assert tok.bos_id not in tok.encode("Hello", add_special_tokens=False) + tok.encode("Hello", continues=True)


def test_trap04_gpt2_adds_no_bos_and_a_config_may_ask_for_it(folders, tmp_path):
    assert not T.load(folders / "gpt2").adds_bos
    files = {path.name.replace(".", "_"): path.read_bytes() for path in (folders / "gpt2").iterdir()}
    write(tmp_path, **files, tokenizer_config_json={"add_bos_token": True, "add_eos_token": True})
    tok = T.load(tmp_path)
    assert tok.encode("a") == [0, *T.load(folders / "gpt2").encode("a"), 0]
    assert tok.encode_segments([("a", True)]) == (tok.encode("a")[:-1], [False, True])      # EOS is the data's business


def test_trap05_a_prompt_has_the_same_ids_with_and_without_its_answer(tok):
    rng, merged = random.Random(5), 0
    for _ in range(200):
        text = rng.choice(TEXTS)
        start = rng.randrange(len(text) - 40)
        cut, end = start + rng.randrange(1, 20), start + 40
        prompt, answer = text[start:cut], text[cut:end]
        asked, _ = tok.encode_segments([(prompt, False)])
        trained, learn = tok.encode_segments([(prompt, False), (answer, True)])
        assert trained[: len(asked)] == asked
        assert learn == [False] * len(asked) + [True] * (len(trained) - len(asked))
        assert tok.decode(trained) == prompt + answer
        merged += trained != tok.encode(prompt + answer)
    assert merged > 20                                             # the trap is real: often the joint text has other tokens at the cut


def test_trap05_worked_by_hand(tmp_path):
    vocab = {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5, "abcd": 6}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b"), ("c", "d"), ("ab", "cd")]))
    write(tmp_path, tokenizer_json=inner.to_str())
    tok = T.load(tmp_path)
    assert tok.encode("abcd") == [6]
    assert tok.encode_segments([("ab", False), ("cd", True)]) == ([4, 5], [False, True])


# ------------------------------------------------------------------------------------------------------ load and save

def test_saving_and_loading_changes_nothing(tok, tmp_path):
    tok.chat_template = "{{ bos_token }}é"
    tok.save(tmp_path / "a")
    again = T.load(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in [path.name for path in (tmp_path / "a").iterdir()]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in "vocab_size bos_id eos_id pad_id unk_id adds_bos adds_eos special_ids end_ids chat_template".split():
        assert getattr(again, name) == getattr(tok, name), name
    assert [again.encode(text) for text in STRANGE] == [tok.encode(text) for text in STRANGE]


def test_tokenizer_json_goes_before_a_model_file_and_that_before_vocab_json(folders, tmp_path):
    model, other = (folders / "llama" / "tokenizer.model").read_bytes(), (folders / "ours" / "tokenizer.model").read_bytes()
    gpt2 = {path.name.replace(".", "_"): path.read_bytes() for path in (folders / "gpt2").iterdir()}
    write(tmp_path, **gpt2, spiece_model=other)
    assert T.load(tmp_path).encode("the") == T.load(folders / "ours").encode("the")
    write(tmp_path, tokenizer_model=model)
    assert T.load(tmp_path).encode("the") == T.load(folders / "llama").encode("the")
    write(tmp_path, tokenizer_json=byte_level(400).to_str())
    assert T.load(tmp_path).vocab_size == 400


def test_special_tokens_are_found_wherever_they_are_written(tmp_path):
    inner = byte_level(300, special="<end>")
    inner.add_special_tokens(["<start>", "<pad>"])
    ids = {name: inner.token_to_id(name) for name in ["<start>", "<end>", "<pad>"]}
    write(tmp_path / "ids", tokenizer_json=inner.to_str(),
          config_json={"bos_token_id": ids["<start>"], "eos_token_id": [0, 299], "pad_token_id": 7})
    tok = T.load(tmp_path / "ids")                                                      # 7 is a letter, no special token: not believed
    assert (tok.bos_id, tok.eos_id, tok.pad_id, tok.unk_id) == (ids["<start>"], 0, 0, None) and tok.end_ids == {0, 299}
    write(tmp_path / "map", tokenizer_json=inner.to_str(), config_json={"eos_token_id": ids["<start>"]},
          special_tokens_map_json={"eos_token": "<end>", "pad_token": {"content": "<pad>", "lstrip": False}})
    tok = T.load(tmp_path / "map")
    assert (tok.eos_id, tok.pad_id, tok.bos_id) == (ids["<end>"], ids["<pad>"], None) and tok.end_ids == {ids["<end>"], ids["<start>"]}
    write(tmp_path / "map", tokenizer_config_json={"eos_token": "<start>"}, generation_config_json={"eos_token_id": [3, 4]})
    tok = T.load(tmp_path / "map")
    assert tok.eos_id == ids["<start>"] and tok.end_ids == {ids["<start>"], 3, 4}


def test_the_model_files_own_names_are_used_and_added_tokens_come_on_top(folders, tmp_path):
    model = (folders / "llama" / "tokenizer.model").read_bytes()
    write(tmp_path, tokenizer_model=model, added_tokens_json={"[PAD]": 600}, tokenizer_config_json={
        "pad_token": "[PAD]",
        "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "601": {"content": "<x>", "special": False}}})
    tok = T.load(tmp_path)
    assert (tok.bos_id, tok.eos_id, tok.unk_id, tok.pad_id, tok.vocab_size) == (1, 2, 0, 600, 602)
    ids = tok.encode("a<x>[PAD]")
    assert ids[-2:] == [601, 600] and tok.decode(ids) == "a<x>" and tok.decode(ids, skip_special_tokens=False) == "<s> a<x>[PAD]"


def test_a_tokenizer_larger_than_the_embedding_is_refused(folders, tmp_path):
    write(tmp_path, tokenizer_model=(folders / "llama" / "tokenizer.model").read_bytes(), tokenizer_config_json={"pad_token": "[PAD]"})
    tok = T.load(tmp_path)
    assert tok.pad_id == 600                                                       # as in transformers: the next free id
    T.check_fits(tok, 601)
    with pytest.raises(InputError, match=r"601 tokens but the model's embedding has 600 rows \(no row for '\[PAD\]'"):
        T.check_fits(tok, 600)


@pytest.mark.parametrize("form", ["text", "list", "file"])
def test_a_chat_template_may_be_a_text_a_list_of_named_ones_or_a_file(folders, tmp_path, form):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path, tokenizer_model=(folders / "llama" / "tokenizer.model").read_bytes(),
          tokenizer_config_json={"chat_template": {"text": "yes", "list": named, "file": "no"}[form]})
    if form == "file":
        write(tmp_path, chat_template_jinja="yes")
    assert T.load(tmp_path).chat_template == "yes"


# ----------------------------------------------------------------------------------------------------------- bad input

def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    write(tmp_path, config_json={}, vocab_json={"a": 0})
    with pytest.raises(InputError, match=r"no tokenizer in .*tokenizer.json, tokenizer.model, spiece.model, vocab.txt, or vocab.json with merges.txt"):
        T.load(tmp_path)


@pytest.mark.parametrize("name, content, says", [
    ("tokenizer_json", "{", "tokenizer.json cannot be read as a tokenizer"),
    ("tokenizer_json", {"version": "1.0"}, "tokenizer.json cannot be read as a tokenizer"),
    ("tokenizer_model", b"\x00garbage" * 9, "tokenizer.model cannot be read as a tokenizer"),
    ("tokenizer_model", b"", "tokenizer.model cannot be read as a tokenizer"),
    ("tokenizer_config_json", "{'a': 1}", "tokenizer_config.json is not JSON"),
    ("tokenizer_config_json", [1], "tokenizer_config.json holds a list"),
    ("tokenizer_config_json", {"chat_template": [{"name": "rag", "template": ""}]}, r"chat templates \['rag'\] but none called default"),
    ("tokenizer_config_json", {"added_tokens_decoder": {"700": {"content": "<x>"}}}, "'<x>' should have id 700 but gets 600"),
])
def test_files_that_cannot_be_read_are_named(folders, tmp_path, name, content, says):
    write(tmp_path, tokenizer_model=(folders / "llama" / "tokenizer.model").read_bytes())
    write(tmp_path, **{name: content})
    with pytest.raises(InputError, match=says):
        T.load(tmp_path)


def test_a_truncated_model_file_is_refused(folders, tmp_path):
    whole = (folders / "llama" / "tokenizer.model").read_bytes()
    write(tmp_path, tokenizer_model=whole[: len(whole) // 2])
    with pytest.raises(InputError, match="fetch it again"):
        T.load(tmp_path)


@pytest.mark.parametrize("hint", [
    {"tokenizer_config_json": {"tokenizer_class": "Qwen2Tokenizer"}},
    {"config_json": {"model_type": "qwen2"}},
])
def test_a_split_that_nobody_wrote_down_is_not_guessed(folders, tmp_path, hint):
    files = {path.name.replace(".", "_"): path.read_bytes() for path in (folders / "gpt2").iterdir()}
    write(tmp_path, **files, **hint)
    with pytest.raises(InputError, match="vocab.json \\+ merges.txt of a [Qq]wen2.*only GPT-2's way is built in"):
        T.load(tmp_path)
