"""Tiny T5s with odd shapes, and a tiny vocabulary of T5's kind: Unigram, <pad> 0, </s> 1, <unk> 2, no BOS. Made here, from Python's documentation."""

import dataclasses
import functools
import io
import json
from pathlib import Path

import sentencepiece
import torch
from torch import nn

from minift.models.config import ModelConfig
from minift.models.encoder import Encoder
from minift.models.encoder_decoder import EncoderDecoder, encoder_of
from tests.small_tokenizers import TEXTS

SHAPE = dict(
    vocab_size=31, hidden_size=20, layers=3, heads=3, kv_heads=3, head_dim=6, mlp_size=26, max_positions=512, norm_eps=1e-6,
    position="relative", relative_buckets=14, relative_furthest=20, attention_scale=1.0, decoder_layers=2, start_token_id=0, eos_token_id=1, pad_token_id=0,
)    # fmt: skip
PAIRS = {
    "t5": ModelConfig(**SHAPE, family="t5", activation="relu", gated=False, head_scale=20**-0.5, dropout=0.1),
    "flan": ModelConfig(**SHAPE, family="t5", activation="gelu_tanh", tie_embeddings=False, dropout=0.1),
    "mt5": ModelConfig(**{**SHAPE, "layers": 2, "decoder_layers": 3}, family="mt5", activation="gelu_tanh", tie_embeddings=False),
}


def spread(model: nn.Module, seed: int) -> nn.Module:
    """Random weights in float64: attention far from uniform, norms not 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.data = ("norm" in name) + 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def pair(name: str = "flan", seed: int = 2, **fields) -> EncoderDecoder:
    return spread(EncoderDecoder(dataclasses.replace(PAIRS[name], **fields)), seed)


def encoder(name: str = "flan", seed: int = 2) -> Encoder:
    return spread(Encoder(encoder_of(PAIRS[name])), seed)


@functools.cache
def unigram(vocab_size: int = 700) -> bytes:
    """A spiece.model as T5's was made."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="unigram", vocab_size=vocab_size, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        normalization_rule_name="nmt_nfkc", max_sentence_length=2**20, num_threads=1, minloglevel=2)
    return model.getvalue()


def write_tokenizer(folder: Path, family: str = "t5", **config) -> None:
    """spiece.model and as little as a folder may say beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(unigram())
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
