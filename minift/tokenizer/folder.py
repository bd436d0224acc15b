"""The tokenizer of a Hugging Face folder.

The vocabulary is the first of tokenizer.json; tokenizer.model or spiece.model; vocab.json with merges.txt; BERT's vocab.txt. The special tokens are
those of tokenizer_config.json, special_tokens_map.json, the vocabulary itself, generation_config.json and config.json, in that
order of trust. A special token that the vocabulary lacks gets the next free id, as in transformers; check_fits then finds out
whether the embedding has a row for it.
Proved in tests/test_tokenizer.py. Left out: a vocab.json with merges.txt that is not GPT-2's (the files do not
say how words are split); the `clean_up_tokenization_spaces` of old configs."""

import json
from pathlib import Path

import tokenizers

from minift.errors import InputError
from minift.tokenizer.tokenizer import Tokenizer
from minift.tokenizer.vocabulary import ROLES, Fast, SentencePiece

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
VOCABULARY_FILES = ("tokenizer.json", *SENTENCEPIECE_FILES, "vocab.json", "merges.txt", "vocab.txt")


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; raises InputError if there is none, or one that cannot be read."""
    folder = Path(folder)
    files = {name: (folder / name).read_bytes() for name in (*VOCABULARY_FILES, "generation_config.json") if (folder / name).is_file()}
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    config |= {f"{role}_token": _text(config.get(f"{role}_token")) for role in ROLES}
    config["additional_special_tokens"] = [_text(token) for token in config.get("additional_special_tokens") or []]
    config["chat_template"] = _chat_template(folder, config.get("chat_template"))
    for text, i in _json(folder / "added_tokens.json").items():
        config.setdefault("added_tokens_decoder", {}).setdefault(str(i), {"content": text, "special": True})
    found = next((name for name in ("tokenizer.json", *SENTENCEPIECE_FILES) if name in files), None)
    pieces = found is None and "vocab.txt" in files and not {"vocab.json", "merges.txt"} & files.keys()
    if found is None and not pieces and not {"vocab.json", "merges.txt"} <= files.keys():
        raise InputError(f"no tokenizer in {folder}: looked for {', '.join(VOCABULARY_FILES[:3])}, vocab.txt, or vocab.json with merges.txt. "
                         "Put the tokenizer's files beside the model's config.json")
    models = _json(folder / "generation_config.json"), _json(folder / "config.json")
    try:
        if found == "tokenizer.json":
            vocabulary = _from_json(files[found], config)
        elif found:
            vocabulary = (_from_t5 if _is_t5(config, models[1]) else from_sentencepiece)(files[found], config)
        elif pieces:
            vocabulary = _from_wordpiece(files["vocab.txt"], config)
        else:
            vocabulary = _from_gpt2(folder, config, models[1].get("model_type", "gpt2"))
    except InputError:
        raise
    except Exception as error:                                          # both packages raise a bare Exception for a damaged file
        raise InputError(f"{folder / (found or ('vocab.txt' if pieces else 'vocab.json'))} cannot be read as a tokenizer ({error}): fetch it again") from None
    for role in ROLES:                                                  # the last resort: an id where nobody gave a name
        ids = [i for m in models for i in _ids(m.get(f"{role}_token_id")) if i in vocabulary.special_ids]
        if ids and not config[f"{role}_token"]:
            config[f"{role}_token"] = vocabulary.name(ids[0])
    return Tokenizer(vocabulary, config, files, [i for m in models for i in _ids(m.get("eos_token_id"))])


def _from_json(content: bytes, config: dict) -> Fast:
    """What encode adds is the file's own business: its post-processor decides, as in transformers 5, not add_bos_token."""
    vocabulary = Fast(tokenizers.Tokenizer.from_buffer(content))
    bare, whole = (vocabulary.starting.encode("a", add_special_tokens=flag).tokens for flag in (False, True))
    config["add_bos_token"], config["add_eos_token"] = whole[:1] != bare[:1], whole[-1:] != bare[-1:]
    for role, token in (("bos", whole[:1]), ("eos", whole[-1:])):
        if config[f"add_{role}_token"] and not config[f"{role}_token"]:
            config[f"{role}_token"] = token[0]
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")     # the transformers class that takes the file at its word
    return vocabulary


def from_sentencepiece(content: bytes, config: dict) -> SentencePiece:
    """LLaMA's conventions where the config is silent: BOS is added, the tokens are named by the model file."""
    vocabulary = SentencePiece(content, config.get("add_prefix_space"), after_special=bool(config.get("legacy")))
    _add(vocabulary, config)
    for role in ROLES:
        config[f"{role}_token"] = config.get(f"{role}_token") or vocabulary.roles.get(role)
    named = {config[f"{role}_token"] for role in ROLES}
    others = [text for text, i in vocabulary.whole.items() if i in vocabulary.special_ids and text not in named]
    config["additional_special_tokens"] = config.get("additional_special_tokens") or others
    config["add_prefix_space"] = vocabulary.starting.encode("a") != vocabulary.continuing.encode("a")
    for key, value in {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}.items():
        config.setdefault(key, value)
    return vocabulary


def _is_t5(config: dict, model: dict) -> bool:
    """Whether a sentencepiece file is T5's: as tokenizer_config.json says, else by the model's family."""
    kind = config.get("tokenizer_class")
    return kind.removesuffix("Fast") in ("T5Tokenizer", "MT5Tokenizer") if kind else model.get("model_type") in ("t5", "mt5")


def _from_t5(content: bytes, config: dict) -> SentencePiece:
    """T5's: no BOS, </s> behind every text, a word start behind a special token too, and on top of the file's pieces the sentinels that stood for what was
    cut out of a text in training, <extra_id_0> the last of all ids (Raffel et al. 2019, arXiv:1910.10683, section 3.1.4)."""
    vocabulary = SentencePiece(content, config.get("add_prefix_space"), after_special=True)
    _add(vocabulary, config)
    sentinels = [f"<extra_id_{i}>" for i in range(config.setdefault("extra_ids", 100))]
    for token in reversed(sentinels):
        vocabulary.add(token)
    for role in ROLES:
        config[f"{role}_token"] = config[f"{role}_token"] or vocabulary.roles.get(role)
    config["additional_special_tokens"] = config["additional_special_tokens"] or sentinels
    config["add_bos_token"], config["add_eos_token"] = False, True
    config.setdefault("tokenizer_class", "T5Tokenizer")
    return vocabulary


def _from_gpt2(folder: Path, config: dict, model_type: str) -> Fast:
    """The two files hold pieces and merges but not how words are split, so only GPT-2's own split is trusted."""
    kind = config.setdefault("tokenizer_class", "GPT2Tokenizer" if model_type == "gpt2" else model_type)
    if not kind.startswith("GPT2"):
        raise InputError(f"{folder} has vocab.json + merges.txt of a {kind}, and no tokenizer.json: these two files do not say how words "
                         "are split, and only GPT-2's way is built in. Save it with a recent transformers, which writes tokenizer.json")
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    inner.decoder = tokenizers.decoders.ByteLevel()
    vocabulary = Fast(inner)
    _add(vocabulary, config)
    if vocabulary.id("<|endoftext|>") is not None:
        for role in ("bos", "eos", "unk"):
            config[f"{role}_token"] = config.get(f"{role}_token") or "<|endoftext|>"
    return vocabulary


def _from_wordpiece(content: bytes, config: dict) -> Fast:
    """BERT's: a piece a line, the longest that fits is taken, "##" marks one that goes on a word (Wu et al. 2016, arXiv:1609.08144). BERT's own
    special tokens and clean-up, where the config is silent; [CLS] before a text, [SEP] behind it."""
    pieces = {piece: i for i, piece in enumerate(content.decode("utf-8").split("\n")) if piece}
    for role, token in (("bos", "[CLS]"), ("eos", "[SEP]"), ("pad", "[PAD]"), ("unk", "[UNK]")):
        config[f"{role}_token"] = config[f"{role}_token"] or config.get({"bos": "cls_token", "eos": "sep_token"}.get(role), None) or token
        if config[f"{role}_token"] not in pieces:
            raise InputError(f"vocab.txt has no piece {config[f'{role}_token']!r}: it is not BERT's, or not whole")
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token=config["unk_token"], max_input_chars_per_word=100))
    lower = config.setdefault("do_lower_case", True)
    inner.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True), strip_accents=config.get("strip_accents"), lowercase=lower)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    begins, ends = config["bos_token"], config["eos_token"]
    inner.post_processor = tokenizers.processors.BertProcessing((ends, pieces[ends]), (begins, pieces[begins]))
    vocabulary = Fast(inner)
    _add(vocabulary, config)
    for token in (config[f"{role}_token"] for role in ROLES):
        vocabulary.add(token)
    if "[MASK]" in pieces:
        vocabulary.add("[MASK]")
    config["add_bos_token"] = config["add_eos_token"] = True
    config.setdefault("tokenizer_class", "BertTokenizer")
    return vocabulary


def _add(vocabulary: SentencePiece | Fast, config: dict) -> None:
    """The tokens that tokenizer_config.json puts on top of a vocabulary file."""
    for i, token in sorted((int(i), token) for i, token in config.get("added_tokens_decoder", {}).items()):
        vocabulary.add(token["content"], special=token.get("special", True))
        if vocabulary.id(token["content"]) != i:
            raise InputError(f"the added token {token['content']!r} should have id {i} but gets {vocabulary.id(token['content'])}: "
                             "tokenizer_config.json and the vocabulary are not of the same tokenizer")


def _chat_template(folder: Path, template: str | list | None) -> str | None:
    """chat_template.jinja, else tokenizer_config's: a string, or a list of {"name", "template"} of which "default" is meant."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(template, list):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
        raise InputError(f"{folder / 'tokenizer_config.json'} has chat templates {sorted(named)} but none called default: rename one")
    return named["default"]


def _text(token: str | dict | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token       # {"content": "<s>", "lstrip": false, ...}


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _json(path: Path) -> dict:
    """A JSON object, {} if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): fetch it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object of named settings: fetch it again")
    return content
