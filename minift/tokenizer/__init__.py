"""Text to token ids and back: one Tokenizer over the two ways vocabularies are stored.

    encode: text -> [bos] + ids          decode: ids -> text          V = vocab_size; every id is in 0..V-1

Five files, simplest first:
    vocabulary.py   SentencePiece and Fast: pieces and ids, and nothing else
    tokenizer.py    Tokenizer: special tokens, segments; StreamDecoder: text that arrives id by id
    folder.py       load: which vocabulary a Hugging Face folder holds, and who its special tokens are
    training.py     train: a new sentencepiece vocabulary from text
    answer.py       the text of an answer whose tokens come one by one

Three rules the rest of minift leans on:
    one BOS      a text that already starts with the BOS token (a chat template wrote it) does not get a second one (trap 4);
    segments     training and generation cut a conversation at the same places and tokenise each piece by itself, so a prompt has
                 the same ids with and without its answer, even where "ab" + "cd" would have merged into one token (trap 5);
    continues    a piece that follows earlier text gets no BOS and no word-start marker (the dummy space before a first word).
A special token spelled out in a text becomes that special token, as in transformers: clean the text you do not trust.
Proved in tests/test_tokenizer.py and, id for id against transformers, in tests/parity/test_tokenizers.py."""

from minift.tokenizer.folder import load
from minift.tokenizer.tokenizer import StreamDecoder, Tokenizer, check_fits
from minift.tokenizer.training import train

__all__ = ["StreamDecoder", "Tokenizer", "check_fits", "load", "train"]
