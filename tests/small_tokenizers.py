"""Tiny vocabularies that stand for the three kinds of file: sentencepiece with or without LLaMA's dummy space, GPT-2's byte-level
BPE, and a tokenizer.json with the Prepend normalizer of LLaMA 2. Made here, from the Python documentation on this machine."""

import io
import json
import pydoc_data.topics

import sentencepiece
import tokenizers

TEXTS = list(pydoc_data.topics.topics.values())[:12]
STRANGE = ["", " ", "a", " a", "  two  spaces ", "tab\there", "line\n\n\n    indented\r\n", "1234567", "naïve café 日本語 😀👩‍👩‍👧",
           "\ufffd?", "x\0y"]


def sentencepiece_model(dummy_space: bool) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=dummy_space, max_sentence_length=2**20)
    return model.getvalue()


def byte_level(size: int = 500, special: str = "<|endoftext|>") -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[special], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return made


def prepending(model: bytes) -> tokenizers.Tokenizer:
    """A sentencepiece BPE model as LLaMA 2's tokenizer.json has it: Prepend and Replace, byte fallback, BOS by post-processor."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = {sp.id_to_piece(i): i for i in range(sp.get_piece_size())}
    merges = [(p[:k], p[k:]) for p in pieces for k in range(1, len(p)) if p[:k] in pieces and p[k:] in pieces]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace, d = tokenizers.normalizers.Replace(" ", "▁"), tokenizers.decoders
    made.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), replace])
    made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return made


def write(folder, **files) -> None:
    """files: name with _ for the dot -> bytes, text, or an object to be written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        name = ".".join(name.rsplit("_", 1))
        content = content if isinstance(content, (bytes, str)) else json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
