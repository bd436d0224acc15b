"""Scores of a fine-tuned classifier: read at one place of each text, whatever else lies in the row."""

import dataclasses

import pytest
import torch

from minift import peft
from minift.classify.scores import all_scores, head_scores, read
from minift.errors import InputError
from minift.models.encoder import Encoder
from minift.models.scorer import Scorer
from tests.models.small import CONFIGS, randomised
from tests.models.test_encoder import ENCODERS, encoder

K = 3
ROWS = [("A string literal.",), ("if",), ("The object is a list.", "if"), ("if", "The object is a list."), ("if",), ("of", "is")]
FAMILIES = ["bert", "roberta", "distilbert", "llama", "gpt2", "bloom"]


def small(name: str, tokenizer, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in ENCODERS:
            return randomised(Encoder(dataclasses.replace(ENCODERS[name], vocab_size=tokenizer.vocab_size, max_positions=64, top="pooler", labels=K)))
        return randomised(Scorer(dataclasses.replace(CONFIGS[name], vocab_size=tokenizer.vocab_size, labels=K)))


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_does_not_depend_on_batch_mates(name, small_tokenizer):
    model = small(name, small_tokenizer)
    rows = read(model, small_tokenizer, ROWS, 64)
    with torch.no_grad():
        alone = torch.cat([head_scores(model, [row]) for row in rows])
        close(head_scores(model, rows), alone)
        close(head_scores(model, rows[::-1]), alone.flip(0))
    for tokens in (1, 25, 4096):
        close(all_scores(model, rows, tokens), alone)
    assert torch.equal(all_scores(model, rows)[1], all_scores(model, rows)[4]) and alone.std(0).min() > 0.01
    assert all_scores(model, []).shape == (0, K)


def test_an_encoder_is_read_at_its_first_token_and_a_decoder_at_its_last(small_tokenizer):
    bert, llama = small("bert", small_tokenizer), small("llama", small_tokenizer)
    for model, place in ((bert, 0), (llama, -1)):
        [(ids, _)] = read(model, small_tokenizer, ROWS[:1], 64)
        with torch.no_grad():
            stream = model.hidden(torch.tensor([ids]))[0, place]
            stream = torch.tanh(stream @ model.pooler.weight.T + model.pooler.bias) if model is bert else stream
            wanted = stream @ model.score.weight.T + (model.score.bias if model is bert else 0)
            close(head_scores(model, [(ids, [0] * len(ids))])[0], wanted)


def test_the_types_of_a_pair_reach_the_model_in_the_order_of_the_row():
    model = encoder("bert", top="pooler", labels=K)
    rows = [([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 3], [0, 1]), ([5, 6, 7, 8], [0, 0, 0, 0]), ([4, 4, 4], [0, 1, 1])]
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor([ids]), token_types=torch.tensor([types])) for ids, types in rows])
        close(head_scores(model, rows), wanted)
    assert (wanted[0] - wanted[2]).abs().max() > 0.01


@pytest.mark.parametrize("method", [peft.Prompt(length=3), peft.Prefix(length=3), peft.LoRA(rank=2)])
def test_adapters_with_and_without_virtual_tokens_keep_texts_apart(method, small_tokenizer):
    """A prompt-tuned encoder's score is read at the text's own first token, not at the first virtual one."""
    model = small("bert", small_tokenizer)
    peft.attach(model, method)
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=dice)
    rows = read(model, small_tokenizer, ROWS, 64)
    with torch.no_grad():
        alone = torch.cat([head_scores(model, [row]) for row in rows])
        for row, own in zip(rows, alone):
            stream = model.hidden(torch.tensor([row[0]]), token_types=torch.tensor([row[1]]))
            assert stream.shape[1] == len(row[0])
            close(model.scores(stream[:, 0])[0], own)
    close(all_scores(model, rows, 25), alone)
    assert (alone - all_scores(small("bert", small_tokenizer), rows)).abs().max() > 0.01


def test_gradients_reach_the_body_and_the_head(small_tokenizer):
    model = small("bert", small_tokenizer)
    head_scores(model, read(model, small_tokenizer, ROWS, 64)).square().sum().backward()
    assert all(p.grad is not None for p in (model.embed.weight, model.types.weight, model.blocks[0].attention.q.weight, model.pooler.weight, model.score.bias))


def test_scoring_has_no_dropout_and_leaves_the_mode_as_it_was(small_tokenizer):
    model = small("bert", small_tokenizer).train()
    rows = read(model, small_tokenizer, ROWS, 64)
    assert torch.equal(all_scores(model, rows), all_scores(model, rows)) and model.training
    assert not torch.equal(head_scores(model, rows), head_scores(model, rows))
    assert not all_scores(model, rows).requires_grad and all_scores(model, rows).dtype == torch.float32
    assert not model.eval().training and all_scores(model, rows) is not None and not model.training


def test_rows_are_cut_at_the_shorter_of_max_length_and_the_models_positions(small_tokenizer):
    long = [("a name " * 60,)]
    bert, llama = small("bert", small_tokenizer), small("llama", small_tokenizer)
    lengths = lambda model, limit: [len(ids) for ids, _ in read(model, small_tokenizer, long, limit)]
    assert lengths(bert, 17) == [17] and lengths(bert, 500) == [64] and lengths(llama, 500)[0] > 64          # a rotation ends nowhere
    peft.attach(bert, peft.Prompt(length=5))
    assert lengths(bert, 500) == [59]
    all_scores(bert, read(bert, small_tokenizer, long, 500))
    assert lengths(bert, 17) == [17]                                     # virtual tokens take none of it
    peft.attach(bert, peft.Prompt(length=63), "more")
    with pytest.raises(InputError, match="1 tokens leave no room for 1 texts and the marks around them"):
        read(bert, small_tokenizer, long, 500)
