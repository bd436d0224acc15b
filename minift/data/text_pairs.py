"""One text, or two that are read together, as the tokens a classifier sees.

    BERT         [CLS] a [SEP]              [CLS] a [SEP] b [SEP]            types 0 ... 0, 1 ... 1: b and its [SEP] are the second text
    RoBERTa      <s> a </s>                 <s> a </s> </s> b </s>
    DistilBERT, T5: as BERT, without types (T5 without [CLS]). Decoders: a, a line break, b.

A pair that is too long loses the last tokens of its longer text, until it fits; the marks stay.
Proved in tests/data/test_text_pairs.py, equal to transformers' tokenizers in tests/parity/test_classifiers.py."""

from collections.abc import Sequence

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.tokenizer import Tokenizer


def joined(tokenizer: Tokenizer, config: ModelConfig, texts: Sequence[str], limit: int) -> tuple[list[int], list[int]]:
    """(ids, types): at most `limit` tokens of one text or two, and for each which text it is of. Raises InputError for a text without tokens."""
    if config.causal and len(texts) == 2:
        parts = [tokenizer.encode(texts[0], add_special_tokens=False), tokenizer.encode("\n" + texts[1], add_special_tokens=False, continues=True)]
    else:
        parts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    if not all(parts):
        raise InputError(f"the text {texts[0 if not parts[0] else 1]!r:.40} is empty: there is nothing to read, leave it out")
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    after = [tokenizer.eos_id] if tokenizer.adds_eos else []
    between = [] if config.causal else after * (2 if config.family in ("roberta", "xlm-roberta") else 1)
    room = limit - len(before) - len(after) - (len(between) if len(parts) == 2 else 0)
    if room < len(parts):
        raise InputError(f"{limit} tokens leave no room for {len(parts)} texts and the marks around them: give more")
    parts = _cut(parts, room)
    first = [*before, *parts[0], *(between if len(parts) == 2 else after)]
    second = [*parts[1], *after] if len(parts) == 2 else []
    return first + second, [0] * len(first) + [1 if config.token_types > 1 else 0] * len(second)


def _cut(parts: list[list[int]], room: int) -> list[list[int]]:
    """The longer part loses its end until all fit; of two equal ones the second."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    kept = min(len(second), max(room // 2, room - len(first)))          # half, or what the first one leaves
    return [first[: room - kept], second[:kept]]
