"""The two kinds of vocabulary behind a Tokenizer, with the same few methods: encode, decode, name, id, add.

    SentencePiece   tokenizer.model, spiece.model (Kudo & Richardson 2018, arXiv:1808.06226)
    Fast            tokenizer.json, or GPT-2's vocab.json + merges.txt, run by the `tokenizers` package

Both cut special tokens out of the text first, and both know how to go on in the middle of a text (`continues`): without the
space that is otherwise put before the first word, and, decoding, without dropping it. Neither adds BOS or EOS.
Proved in tests/test_tokenizer.py. Left out: tokens that swallow the blanks around them, in sentencepiece vocabularies. In
sentencepiece U+2581, its own mark for a space, decodes to a space; and " a" gets its dummy space as well, where transformers 5
puts it only before a text that does not start with one."""

import json
import re
from collections.abc import Sequence

import sentencepiece
import tokenizers

ROLES = ("bos", "eos", "pad", "unk")
# A .model file is a protobuf message, and a message may be continued: these bytes say again normalizer_spec.add_dummy_prefix.
DUMMY_SPACE = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}
EVERY_SPACE = b"\x1a\x02\x20\x00"
"""The same for normalizer_spec.remove_extra_whitespaces: in the middle of a text a leading blank is no extra one (T5's files say that all are)."""


class SentencePiece:
    """A `.model` file. `whole` are the tokens that are cut out of a text before anything else, {text: id}."""

    def __init__(self, model: bytes, dummy_space: bool | None, after_special: bool):
        """dummy_space: put a space before the first word (None: as the file says), and `after_special` before every other part too."""
        self.starting = sentencepiece.SentencePieceProcessor(model_proto=model + DUMMY_SPACE.get(dummy_space, b""))
        self.continuing = sp = sentencepiece.SentencePieceProcessor(model_proto=model + DUMMY_SPACE[False] + EVERY_SPACE)
        self.length, self.after_special = sp.get_piece_size(), after_special
        self.whole = {sp.id_to_piece(i): i for i in range(self.length) if sp.is_control(i) or sp.is_unknown(i)}
        self.special_ids = set(self.whole.values())
        ids = zip(ROLES, (sp.bos_id(), sp.eos_id(), sp.pad_id(), sp.unk_id()), strict=True)
        self.roles = {role: sp.id_to_piece(i) for role, i in ids if i >= 0}
        self._prepare()

    def _prepare(self) -> None:
        self.names = {i: text for text, i in self.whole.items()}
        self.size = max([self.length, *(i + 1 for i in self.names)])
        self.splitter = re.compile("(" + "|".join(map(re.escape, sorted(self.whole, key=len, reverse=True))) + ")")

    def add(self, text: str, special: bool = True) -> None:
        """Make `text` one token: the piece of that name, or the next free id."""
        i = self.id(text)
        self.whole[text] = self.size if i is None else i
        self.special_ids |= {self.whole[text]} if special else set()
        self._prepare()

    def encode(self, text: str, continues: bool) -> list[int]:
        """Sentencepiece never reads its control symbols from text, so the text is cut at them first."""
        ids: list[int] = []
        for number, part in enumerate(self.splitter.split(text)):       # re.split leaves what it found at the odd places
            if number % 2:
                ids.append(self.whole[part])
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
        if token in self.whole:
            return self.whole[token]
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

    def add(self, text: str, special: bool = True) -> None:
        """Make `text` one token: the piece of that name, or the next free id."""
        token = tokenizers.AddedToken(text, special=special, normalized=False)
        (self.starting.add_special_tokens if special else self.starting.add_tokens)([token])
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
