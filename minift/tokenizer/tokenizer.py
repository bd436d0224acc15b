"""The Tokenizer that the rest of minift sees: a vocabulary, the special tokens, and the rules of where they go.

    encode("Hi")                                -> [bos, Hi]
    encode_segments([("Hi", no), (" you", yes)])  -> [bos, Hi, you], [no, no, yes]

Proved in tests/test_tokenizer.py (traps 3, 4 and 5)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from minift.errors import InputError
from minift.files import write_text
from minift.tokenizer.vocabulary import ROLES, Fast, SentencePiece


class Tokenizer:
    """What the rest of minift sees. The ids `bos_id`, `eos_id`, `pad_id`, `unk_id` are None where there is no such token, except
    that a missing pad is replaced by eos: pads are recognised by lengths, never by their id, so nothing is lost (trap 3).

    adds_bos, adds_eos   what `encode` puts around a text         special_ids   ids that `decode` leaves out
    end_ids              ids that end an answer: eos, and all that generation_config.json names (Llama 3 has three)
    chat_template        jinja source, or None; settable          config        tokenizer_config.json as it will be saved"""

    def __init__(self, vocabulary: SentencePiece | Fast, config: dict, files: dict[str, bytes], more_end_ids: Iterable[int] = ()):
        self.vocabulary, self.config, self.files = vocabulary, config, files
        self.tokens: dict[str, str | None] = {role: config.get(f"{role}_token") for role in ROLES}
        for text in filter(None, [*self.tokens.values(), *config.get("additional_special_tokens", [])]):
            if vocabulary.id(text) not in vocabulary.special_ids:
                vocabulary.add(text)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (vocabulary.id(text) if text else None for text in self.tokens.values())
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        self.adds_bos = bool(config.get("add_bos_token")) and self.bos_id is not None
        self.adds_eos = bool(config.get("add_eos_token")) and self.eos_id is not None
        self.vocab_size, self.special_ids = vocabulary.size, set(vocabulary.special_ids)
        self.end_ids = {i for i in [self.eos_id, *more_end_ids] if i is not None}

    @property
    def chat_template(self) -> str | None:
        return self.config.get("chat_template")

    @chat_template.setter
    def chat_template(self, source: str | None) -> None:
        self.config["chat_template"] = source

    def encode(self, text: str, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """Token ids of `text`. continues: it follows earlier text, so no BOS and no word-start marker; EOS is added all the same."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text has a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), which is no "
                             "character: read the file with the right encoding") from None
        ids = self.vocabulary.encode(text, continues)
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
        config = {key: value for key, value in self.config.items() if value is not None}
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


class StreamDecoder:
    """Text of ids that arrive one by one, held back while a character is incomplete: the pieces join to the whole text.

    `push(id)` returns the text that is now certain (perhaps ""), `flush()` what is left. Special tokens are left out."""

    def __init__(self, tokenizer: Tokenizer, continues: bool = True):
        self.tokenizer, self.continues, self.held = tokenizer, continues, []

    def push(self, i: int) -> str:
        self.held.append(i)
        return "" if self._text().endswith("\ufffd") else self.flush()

    def flush(self) -> str:
        text = self._text()
        self.continues = self.continues or bool(self.tokenizer.decode(self.held, continues=True))
        self.held = []
        return text

    def _text(self) -> str:
        return self.tokenizer.decode(self.held, continues=self.continues)


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise InputError if some token id has no row in an embedding of `vocab_size` rows. Unused rows are fine."""
    if tokenizer.vocab_size > vocab_size:
        last = [tokenizer.vocabulary.name(i) for i in range(vocab_size, min(tokenizer.vocab_size, vocab_size + 3))]
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} tokens but the model's embedding has {vocab_size} rows (no row for "
                         f"{', '.join(map(repr, last))}...): use the model's own tokenizer, or take added tokens out of its "
                         "tokenizer_config.json")
