"""A model small enough that a whole fine-tuning takes a moment: 2 blocks, 32 wide, a vocabulary of 400 pieces, random weights."""

import os
import signal

os.environ["TRITON_INTERPRET"] = "1"                 # kernels run in Triton's interpreter: it is chosen when they are imported

import pydoc_data.topics
from pathlib import Path

import pytest
import torch

from minift import cli, tokenizer
from minift.folder import save
from minift.models.config import ModelConfig
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer

signal.signal(signal.SIGINT, signal.default_int_handler)    # jobs in the background begin with Ctrl-C ignored, and some tests send it

SHAPE = dict(hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_size=48, max_positions=512)


def random_model(tokens: Tokenizer, **fields) -> Transformer:
    """Weights five times as large as a fresh model's: it prefers some tokens to others, so greedy texts differ from prompt to prompt."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(vocab_size=tokens.vocab_size, bos_token_id=1, eos_token_id=2, **{**SHAPE, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5 if parameter.ndim == 2 else 1
    return model.eval()


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    return tokenizer.train([text[:2000] for text in list(pydoc_data.topics.topics.values())[:12]], 400)


@pytest.fixture(scope="session")
def small_model(small_tokenizer, tmp_path_factory) -> Path:
    """A checkpoint folder; read it, never write into it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    save(random_model(small_tokenizer), small_tokenizer, folder)
    return folder


@pytest.fixture
def minift(capsys, monkeypatch):
    """Run the command line in this process: (exit status, what it printed, what it complained of)."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
