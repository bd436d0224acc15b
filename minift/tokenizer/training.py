"""Training a vocabulary: byte-pair encoding over raw text (Sennrich et al. 2016, arXiv:1508.07909), done by sentencepiece.

Start from characters, join the most frequent pair of neighbours into a new piece, repeat until there are V pieces.
Proved in tests/test_tokenizer.py. Left out: unigram vocabularies, and every normalisation of the text."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece

from minift.errors import InputError
from minift.tokenizer.folder import from_sentencepiece
from minift.tokenizer.tokenizer import Tokenizer


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
        reason = str(error).split("] ")[-1].strip() or "it is empty"
        raise InputError(f"no tokenizer of {vocab_size} pieces can be made of this text ({reason}): "
                         "give more text or another vocab_size") from None
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": None}
    return Tokenizer(from_sentencepiece(model.getvalue(), config), config, {"tokenizer.model": model.getvalue()})
