"""New token rows: worked by hand on a small matrix, and trap 43 on a model that has learned something."""

import pytest
import torch

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.folder import read_model, write_model
from minift.models.transformer import Transformer
from minift.models.vocabulary import resize_embeddings, zero_rows
from tests.models.small import SHAPE, model, tokens


def test_new_rows_are_the_mean_of_the_trained_rows_worked_by_hand():
    small = Transformer(ModelConfig(**{**SHAPE, "vocab_size": 3, "hidden_size": 2, "head_dim": 2, "heads": 1, "kv_heads": 1}))
    small.embed.weight.data = torch.tensor([[1.0, 4.0], [0.0, 0.0], [3.0, -2.0]])            # row 1 was never trained
    resize_embeddings(small, 5)
    assert small.embed.weight.tolist() == [[1.0, 4.0], [0.0, 0.0], [3.0, -2.0], [2.0, 1.0], [2.0, 1.0]]
    assert small.head.weight is small.embed.weight and small.config.vocab_size == 5


def test_an_untied_head_grows_too_and_the_result_can_be_saved(tmp_path):
    grown = model("llama").to(torch.bfloat16)
    embed, head = grown.embed.weight.clone(), grown.head.weight.clone()
    resize_embeddings(grown, 34)
    assert torch.equal(grown.embed.weight[:31], embed) and torch.equal(grown.head.weight[:31], head)
    assert torch.equal(grown.head.weight[33], head.float().mean(0).to(torch.bfloat16))
    assert grown.embed.weight.dtype == torch.bfloat16 and grown.embed.weight.requires_grad
    write_model(grown, tmp_path / "m")
    assert read_model(tmp_path / "m")(tokens(1, 4)).shape == (1, 4, 34)


def test_frozen_rows_stay_frozen():
    frozen = model("gpt2").requires_grad_(False)
    resize_embeddings(frozen, 40)
    assert not frozen.embed.weight.requires_grad


def test_a_vocabulary_never_shrinks():
    with pytest.raises(InputError, match="has 31 rows, 30 are wanted: a vocabulary can only grow"):
        resize_embeddings(model(), 30)


def test_zero_rows_are_found_in_the_embedding_and_in_an_untied_head():
    decoder = model("llama")
    assert zero_rows(decoder) == []
    decoder.embed.weight.data[7] = 0
    decoder.head.weight.data[3] = 0
    assert zero_rows(decoder) == [3, 7]


def test_trap43_new_tokens_leave_the_loss_within_a_tenth():
    """A model trained until it knows a sentence (loss far below log V), then 5 rows added to its 31."""
    torch.manual_seed(0)
    decoder = Transformer(ModelConfig(**SHAPE))
    ids = tokens(2, 20)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    loss_of = lambda: torch.nn.functional.cross_entropy(decoder(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for _ in range(30):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
    before = loss_of().item()
    assert before < 2.0                                                                      # log 31 = 3.43
    resize_embeddings(decoder, 36)
    assert abs(loss_of().item() - before) < 0.1 * before
