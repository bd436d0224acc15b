"""Text to token ids and back: one Tokenizer over the two ways vocabularies are stored.

    encode: text -> [bos] + ids          decode: ids -> text          V = vocab_size; every id is in 0..V-1

`load(folder)` takes the first of
    tokenizer.json                       any fast tokenizer, run by the `tokenizers` package
    tokenizer.model, spiece.model        sentencepiece (Kudo & Richardson 2018, arXiv:1808.06226)
    vocab.json + merges.txt              GPT-2's byte-level BPE (Radford et al. 2019, section 2.2)
and asks who the special tokens are of tokenizer_config.json, special_tokens_map.json, the vocabulary itself, config.json and
generation_config.json, in that order of trust. `train` makes a sentencepiece vocabulary from text.

Three rules the rest of minift leans on:
  one BOS      a text that already starts with the BOS token (a chat template wrote it) does not get a second one (trap 4);
  segments     training and generation cut a conversation at the same places and tokenise each piece by itself, so a prompt
               has the same ids with and without its answer, even where "ab" + "cd" would have merged into one token (trap 5);
  continues    a piece that follows earlier text gets no BOS and no word-start marker (the dummy space before a first word).
A special token spelled out in a text becomes that special token, as in transformers: clean the text you do not trust.
Proved in tests/test_tokenizer.py and, id for id against transformers, in tests/parity/test_tokenizers.py. Left out: WordPiece's
vocab.txt; a vocab.json + merges.txt that is not GPT-2's (the files do not say how words are split); the
`clean_up_tokenization_spaces` of old configs. In sentencepiece U+2581, its own mark for a space, decodes to a space."""

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
import tokenizers

from minift.errors import InputError
from minift.files import write_text

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
VOCABULARY_FILES = ("tokenizer.json", *SENTENCEPIECE_FILES, "vocab.json", "merges.txt")
ROLES = ("bos", "eos", "pad", "unk")
# A .model file is a protobuf message, and a message may be continued: these bytes say again normalizer_spec.add_dummy_prefix.
DUMMY_SPACE = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}


class SentencePiece:
    """A `.model` file and `added`: tokens beyond it, {text: id}. `special` holds all tokens that are cut out of a text first."""

    def __init__(self, model: bytes, added: dict[str, int], dummy_space: bool | None, after_special: bool):
        """dummy_space: put a space before the first word (None: as the file says), and `after_special` before every other part too."""
        self.starting = sentencepiece.SentencePieceProcessor(model_proto=model + DUMMY_SPACE.get(dummy_space, b""))
        self.continuing = sp = sentencepiece.SentencePieceProcessor(model_proto=model + DUMMY_SPACE[False])
        self.length, self.after_special = sp.get_piece_size(), after_special
        self.special = {sp.id_to_piece(i): i for i in range(self.length) if sp.is_control(i) or sp.is_unknown(i)} | added
        ids = zip(ROLES, (sp.bos_id(), sp.eos_id(), sp.pad_id(), sp.unk_id()), strict=True)
        self.roles = {role: sp.id_to_piece(i) for role, i in ids if i >= 0}
        self._prepare()

    def _prepare(self) -> None:
        self.names = {i: text for text, i in self.special.items()}
        self.size, self.special_ids = max([self.length, *(i + 1 for i in self.names)]), set(self.names)
        self.splitter = re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")")

    def add(self, text: str) -> None:
        """Make `text` one special token: the piece of that name, or the next free id."""
        i = self.id(text)
        self.special[text] = self.size if i is None else i
        self._prepare()

    def encode(self, text: str, continues: bool) -> list[int]:
        """Sentencepiece never reads its control symbols from text, so the text is cut at them first."""
        ids: list[int] = []
        for number, part in enumerate(self.splitter.split(text)):       # re.split leaves what it found at the odd places
            if number % 2:
                ids.append(self.special[part])
            elif part:
                starts = not continues and (self.after_special or not ids)
                ids += (self.starting if starts else self.continuing).encode(part)
        return ids

    def decode(self, ids: Sequence[int], continues: bool) -> str:
        text, run = "", []
        for i in [*ids, None]:
            if i is not None and i not in self.names:
                run.append(i)
                continue
            text += (self.continuing if continues or text else self.starting).decode(run)
            text, run = text + ("" if i is None else self.names[i]), []
        return text

    def name(self, i: int) -> str:
        return self.names[i] if i in self.names else self.continuing.id_to_piece(i)

    def id(self, token: str) -> int | None:
        if token in self.special:
            return self.special[token]
        i = self.continuing.piece_to_id(token)
        return i if self.length and self.continuing.id_to_piece(i) == token else None


class Fast:
    """A tokenizer.json, or what GPT-2's two files amount to, run by the `tokenizers` package."""

    def __init__(self, starting: tokenizers.Tokenizer):
        starting.no_truncation()
        starting.no_padding()
        self.starting = starting
        self._prepare()

    def _prepare(self) -> None:
        described = json.loads(self.starting.to_str())
        changed = {key: _without_word_start(described.get(key)) for key in ("normalizer", "pre_tokenizer")}
        same = all(described.get(key) == part for key, part in changed.items())
        self.continuing = self.starting if same else tokenizers.Tokenizer.from_str(json.dumps(described | changed))
        self.names = {i: text for text, i in self.starting.get_vocab(with_added_tokens=True).items()}
        self.size = max(self.names, default=-1) + 1
        self.special_ids = {i for i, token in self.starting.get_added_tokens_decoder().items() if token.special}
        self.anchor = self.continuing.encode("a", add_special_tokens=False).ids[-1:]

    def add(self, text: str) -> None:
        """Make `text` one special token: the piece of that name, or the next free id."""
        self.starting.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])
        self._prepare()

    def encode(self, text: str, continues: bool) -> list[int]:
        return (self.continuing if continues else self.starting).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], continues: bool) -> str:
        """Decoders drop the first word's space; behind a known token there is no first word."""
        if not continues:
            return self.starting.decode(list(ids), skip_special_tokens=False)
        before = self.starting.decode(self.anchor, skip_special_tokens=False)
        return self.starting.decode([*self.anchor, *ids], skip_special_tokens=False)[len(before):]

    def name(self, i: int) -> str:
        return self.names.get(i, "")

    def id(self, token: str) -> int | None:
        return self.starting.token_to_id(token)


def _without_word_start(part: dict | None) -> dict | None:
    """A normalizer or pre-tokenizer of a tokenizer.json, less whatever puts a mark before the first word."""
    if part is None or part["type"] == "Prepend":
        return None
    part = dict(part)
    for key in {"normalizers", "pretokenizers"} & part.keys():
        part[key] = [kept for kept in map(_without_word_start, part[key]) if kept]
    if part["type"] == "Metaspace":
        part["prepend_scheme"] = "never"
    if part["type"] in ("Metaspace", "ByteLevel") and "add_prefix_space" in part:
        part["add_prefix_space"] = False
    return part


class Tokenizer:
    """What the rest of minift sees. The ids `bos_id`, `eos_id`, `pad_id`, `unk_id` are None where there is no such token, except
    that a missing pad is replaced by eos: pads are recognised by lengths, never by their id, so nothing is lost (trap 3).

    adds_bos, adds_eos   what `encode` puts around a text         special_ids   ids that `decode` leaves out
    end_ids              ids that end an answer: eos, and all that generation_config.json names (Llama 3 has three)
    chat_template        jinja source, or None                    config        tokenizer_config.json as it will be saved"""

    def __init__(self, vocabulary: SentencePiece | Fast, config: dict, files: dict[str, bytes], more_end_ids: Iterable[int] = ()):
        self.vocabulary, self.config, self.files = vocabulary, config, files
        self.tokens: dict[str, str | None] = {role: config.get(f"{role}_token") for role in ROLES}
        for text in filter(None, [*self.tokens.values(), *map(_text, config.get("additional_special_tokens") or [])]):
            if vocabulary.id(text) not in vocabulary.special_ids:
                vocabulary.add(text)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (t and vocabulary.id(t) for t in self.tokens.values())
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        self.adds_bos = bool(config.get("add_bos_token")) and self.bos_id is not None
        self.adds_eos = bool(config.get("add_eos_token")) and self.eos_id is not None
        self.chat_template: str | None = config.get("chat_template")
        self.vocab_size, self.special_ids = vocabulary.size, set(vocabulary.special_ids)
        self.end_ids = {i for i in [self.eos_id, *more_end_ids] if i is not None}

    def encode(self, text: str, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """Token ids of `text`. continues: it follows earlier text, so no BOS and no word-start marker; EOS is added all the same."""
        try:
            ids = self.vocabulary.encode(text, continues)
        except UnicodeEncodeError as error:
            raise InputError(f"the text has a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), which is no "
                             "character: read the file with the right encoding") from None
        if add_special_tokens and self.adds_bos and not continues and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if add_special_tokens and self.adds_eos and ids[-1:] != [self.eos_id]:
            ids = [*ids, self.eos_id]
        return ids

    def encode_segments(self, segments: Iterable[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """[(text, learn), ...] -> (ids, learn of each id). Each segment is tokenised by itself, the first one with its BOS."""
        ids: list[int] = []
        learned: list[bool] = []
        for number, (text, learn) in enumerate(segments):
            new = self.encode(text, add_special_tokens=False, continues=number > 0)
            if number == 0 and self.adds_bos and new[:1] != [self.bos_id]:
                ids, learned = [self.bos_id], [False]
            ids, learned = ids + new, learned + [learn] * len(new)
        return ids, learned

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, continues: bool = False) -> str:
        """Text of `ids`. continues: they follow earlier text, so a leading space is kept. Half a character comes out as U+FFFD."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"token id {i} is outside the vocabulary 0..{self.vocab_size - 1}: is this the model's own tokenizer?")
        return self.vocabulary.decode([i for i in ids if not skip_special_tokens or i not in self.special_ids], continues)

    def piece(self, i: int) -> str:
        """One token for display: its text, or the vocabulary's own name for it where it is only part of a character."""
        text = self.decode([i], skip_special_tokens=False, continues=True)
        return self.vocabulary.name(i) if "\ufffd" in text or not text else text

    def save(self, folder: str | Path) -> None:
        """Write the vocabulary files back byte for byte, and tokenizer_config.json. `load` and transformers read them with the same ids."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        write_text(folder / "tokenizer_config.json", json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")


class StreamDecoder:
    """Text of ids that arrive one by one, held back while a character is incomplete: the pieces join to the whole text.

    `push(id)` returns the text that is now certain (perhaps ""), `flush()` what is left. Special tokens are left out."""

    def __init__(self, tokenizer: Tokenizer, continues: bool = True):
        self.tokenizer, self.continues, self.held = tokenizer, continues, []

    def push(self, i: int) -> str:
        self.held.append(i)
        return "" if self._text().endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        text, self.held = self._text(), []
        self.continues = self.continues or bool(text)
        return text

    def _text(self) -> str:
        return self.tokenizer.decode(self.held, continues=self.continues)


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; raises InputError if there is none, or one that cannot be read."""
    folder = Path(folder)
    files = {name: (folder / name).read_bytes() for name in (*VOCABULARY_FILES, "generation_config.json") if (folder / name).is_file()}
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    config |= {f"{role}_token": _text(config.get(f"{role}_token")) for role in ROLES}
    config["chat_template"] = _chat_template(folder, config.get("chat_template"))
    for text, i in _json(folder / "added_tokens.json").items():
        config.setdefault("added_tokens_decoder", {}).setdefault(str(i), {"content": text, "special": True})
    found = next((name for name in ("tokenizer.json", *SENTENCEPIECE_FILES) if name in files), None)
    if found is None and not {"vocab.json", "merges.txt"} <= files.keys():
        raise InputError(f"no tokenizer in {folder}: looked for {', '.join(VOCABULARY_FILES[:3])}, or vocab.json with merges.txt. "
                         "Put the tokenizer's files beside the model's config.json")
    models = _json(folder / "generation_config.json"), _json(folder / "config.json")
    try:
        if found == "tokenizer.json":
            vocabulary = _from_json(files[found], config)
        elif found:
            vocabulary = _from_sentencepiece(files[found], config)
        else:
            vocabulary = _from_gpt2(folder, config, models[1].get("model_type", "gpt2"))
    except InputError:
        raise
    except Exception as error:                                          # both packages raise a bare Exception for a damaged file
        raise InputError(f"{folder / (found or 'vocab.json')} cannot be read as a tokenizer ({error}): fetch it again") from None
    for role in ROLES:                                                  # the last resort: an id where nobody gave a name
        ids = [i for m in models for i in _ids(m.get(f"{role}_token_id")) if i < vocabulary.size]
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


def _from_sentencepiece(content: bytes, config: dict) -> SentencePiece:
    """LLaMA's conventions where the config is silent: BOS is added, the tokens are named by the model file."""
    added = {_text(token): int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
    vocabulary = SentencePiece(content, added, config.get("add_prefix_space"), after_special=bool(config.get("legacy")))
    if not vocabulary.length:
        raise InputError("the sentencepiece model is empty: fetch it again")
    for role in ROLES:
        config[f"{role}_token"] = config.get(f"{role}_token") or vocabulary.roles.get(role)
    config["add_prefix_space"] = vocabulary.starting.encode("a") != vocabulary.continuing.encode("a")
    for key, value in {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}.items():
        config.setdefault(key, value)
    return vocabulary


def _from_gpt2(folder: Path, config: dict, model_type: str) -> Fast:
    """The two files hold pieces and merges but not how words are split, so only GPT-2's own split is trusted."""
    kind = config.setdefault("tokenizer_class", "GPT2Tokenizer" if model_type == "gpt2" else model_type)
    if not kind.startswith("GPT2"):
        raise InputError(f"{folder} has vocab.json + merges.txt of a {kind}, and no tokenizer.json: these two files do not say how words are "
                         "split, and only GPT-2's way is built in. Save the tokenizer with a recent transformers, which writes tokenizer.json")
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    inner.decoder = tokenizers.decoders.ByteLevel()
    vocabulary = Fast(inner)
    for i, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        vocabulary.add(_text(token))
        if vocabulary.id(_text(token)) != int(i):
            raise InputError(f"{folder}: the added token {_text(token)!r} should have id {i} but gets {vocabulary.id(_text(token))}: "
                             "tokenizer_config.json and vocab.json are not of the same tokenizer")
    if vocabulary.id("<|endoftext|>") is not None:
        for role in ("bos", "eos", "unk"):
            config[f"{role}_token"] = config.get(f"{role}_token") or "<|endoftext|>"
    return vocabulary


def train(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A sentencepiece BPE vocabulary of exactly `vocab_size` pieces that can write any text and give it back unchanged.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then `special_tokens`, a newline, the 256 bytes (what has no piece is spelled in them), pieces.
    Nothing is normalised, spaces and newlines are kept, digits stand alone, and there is no dummy space before the first word, so
    tokenising a text in pieces differs as little as it can from tokenising it whole. No randomness: same texts, same bytes."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=3, control_symbols=list(special_tokens), user_defined_symbols=["\n"],
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            add_dummy_prefix=False, split_digits=True, character_coverage=0.9995, max_sentence_length=2**30,
            num_threads=1, minloglevel=2)
    except (RuntimeError, OSError) as error:
        raise InputError(f"no tokenizer of {vocab_size} pieces can be made of this text ({str(error).split('] ')[-1].strip() or 'it is empty'}): "
                         "give more text or another vocab_size") from None
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": None}
    return Tokenizer(_from_sentencepiece(model.getvalue(), config), config, {"tokenizer.model": model.getvalue()})


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise InputError if some token id has no row in an embedding of `vocab_size` rows. Unused rows are fine."""
    if tokenizer.vocab_size > vocab_size:
        last = [tokenizer.vocabulary.name(i) for i in range(vocab_size, min(tokenizer.vocab_size, vocab_size + 3))]
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} tokens but the model's embedding has {vocab_size} rows (no row for "
                         f"{', '.join(map(repr, last))}...): use the model's own tokenizer, or take added tokens out of its tokenizer_config.json")


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
