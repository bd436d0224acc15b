"""Texts to vectors: order, batches, cuts, prompts. That the vectors are sentence-transformers' is tests/parity/test_sentence_transformers.py."""

import dataclasses

import pytest
import torch

import minift as package
from minift import peft
from minift.embed import embed, pooled, rows, token_ids
from minift.errors import InputError
from minift.folder import decoder, load, save
from minift.models.encoder import Encoder
from minift.models.pooling import Pooling
from minift.models.ragged import lay_out
from minift.models.transformer import Transformer
from tests.models.small import CONFIGS, SHAPE, randomised
from tests.models.test_encoder import ENCODERS

TEXTS = ["The object is a list.", "if", "A string literal.", "if", "What is returned is the name of the function that was called, or None if there is none."]


@pytest.fixture
def encoder(small_tokenizer):
    config = dataclasses.replace(ENCODERS["bert"], vocab_size=small_tokenizer.vocab_size, max_positions=64, top="none")
    return randomised(Encoder(config))


def small(name, tokenizer):
    """A random decoder of a family, for this tokenizer's texts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(Transformer(dataclasses.replace(CONFIGS[name], vocab_size=tokenizer.vocab_size)))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "last", "weighted"])
@pytest.mark.parametrize("tokens", [1, 30, 4096])
def test_a_text_has_its_vector_whatever_it_is_embedded_with(encoder, small_tokenizer, tokens, mode):
    pooling = Pooling(mode)
    found = embed(encoder, small_tokenizer, TEXTS, pooling=pooling, tokens=tokens)
    assert found.shape == (5, 24) and found.dtype == torch.float32 and torch.equal(found[1], found[3])
    for text, vector in zip(TEXTS, found):
        close(embed(encoder, small_tokenizer, [text], pooling=pooling)[0], vector)
    close(found.norm(dim=1), torch.ones(5))


def test_a_mean_worked_out_by_its_definition(encoder, small_tokenizer):
    ids = torch.tensor([small_tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        wanted = encoder.hidden(ids)[0].mean(0)
    close(embed(encoder, small_tokenizer, TEXTS[:1], pooling=Pooling(normalize=False))[0], wanted)
    close(embed(encoder, small_tokenizer, TEXTS[:1], dim=5)[0], wanted[:5] / wanted[:5].norm())


def test_decoders_embed_by_their_last_token_unless_told(small_model):
    model, tokenizer = load(small_model)
    found = embed(model, tokenizer, TEXTS)
    with torch.no_grad():
        last = model.hidden(torch.tensor([tokenizer.encode(TEXTS[2])]))[0, -1]
    close(found[2], last / last.norm())
    assert not torch.allclose(found, embed(model, tokenizer, TEXTS, pooling=Pooling("weighted")), atol=0.01)


@pytest.mark.parametrize("name", ["llama", "llama3", "gpt2", "gpt_neox", "gemma", "falcon_40b"])
def test_a_decoder_without_its_causal_mask_is_the_encoder_of_its_weights(name, small_tokenizer):
    decoder = small(name, small_tokenizer)
    pooling = Pooling("mean", False, bidirectional=True)
    found, once = embed(decoder, small_tokenizer, TEXTS, pooling=pooling), embed(decoder, small_tokenizer, TEXTS, pooling=Pooling("mean", False))
    assert (found - once).abs().max() > 0.05 and decoder.config.causal                 # and looks back again afterwards
    encoder = Encoder(dataclasses.replace(decoder.config, causal=False, top="none")).eval()
    encoder.load_state_dict({key: value for key, value in decoder.state_dict().items() if not key.startswith("head.")})
    close(found, embed(encoder, small_tokenizer, TEXTS, pooling=Pooling("mean", False)), atol=1e-4)
    for text, vector in zip(TEXTS, found):
        close(embed(decoder, small_tokenizer, [text], pooling=pooling)[0], vector, atol=1e-4)


@pytest.mark.parametrize("method", [peft.Prefix(length=3), peft.Prompt(length=2)])
def test_virtual_tokens_stand_before_a_text_that_is_read_both_ways(small_tokenizer, method):
    """The first token then sees the last one, and all of them the virtual ones."""
    decoder, pooling = small("llama", small_tokenizer), Pooling("cls", False, bidirectional=True)
    peft.attach(decoder, method)
    vectors = []
    for seed in (3, 4):
        with torch.no_grad():
            for parameter in decoder.parameters():
                if parameter.requires_grad:
                    parameter.normal_(generator=torch.Generator().manual_seed(seed))
        found = embed(decoder, small_tokenizer, ["of a list", "of a name", "if"], pooling=pooling)
        assert (found[0] - found[1]).abs().max() > 0.01
        close(found[0], embed(decoder, small_tokenizer, ["of a list"], pooling=pooling)[0], atol=1e-4)
        vectors.append(found)
    assert ((vectors[0] - vectors[1]).abs().amax(1) > 0.01).all()


def test_what_looks_backwards_only_says_so(small_tokenizer):
    for name in ("mistral", "bloom"):
        with pytest.raises(InputError, match="sliding windows and ALiBi look backwards"):
            embed(small(name, small_tokenizer), small_tokenizer, TEXTS, pooling=Pooling(bidirectional=True))
    decoder, ids = small("llama", small_tokenizer), torch.tensor([[1, 2, 3]])
    for doors in (dict(segments=torch.zeros_like(ids)), dict(cache=decoder.new_cache(1, 5))):
        with pytest.raises(InputError, match="cannot be bidirectional"):
            decoder.hidden(ids, bidirectional=True, **doors)


def test_learned_virtual_tokens_are_seen_by_an_encoders_texts(encoder, small_tokenizer):
    """And learn: their places alone, which move the text's, are not all they do."""
    peft.attach(encoder, peft.Prompt(length=2))
    pooling = Pooling(normalize=False)
    row, ragged, _ = lay_out([small_tokenizer.encode(text) for text in TEXTS])
    pooled(encoder, row, ragged, pooling).square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-3 for parameter in encoder.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("method", [peft.LoRA(rank=2), peft.Prefix(length=3), peft.Prompt(length=2)])
def test_any_adapter_embeds_and_batches_do_not_show(encoder, small_tokenizer, method):
    before = embed(encoder, small_tokenizer, TEXTS)
    peft.attach(encoder, method)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    found = embed(encoder, small_tokenizer, TEXTS)
    assert not torch.allclose(found, before, atol=0.01)
    for text, vector in zip(TEXTS, found):
        close(embed(encoder, small_tokenizer, [text])[0], vector)
    embed(encoder, small_tokenizer, [TEXTS[4] * 30])                          # cut to the positions that virtual tokens leave


def test_the_mode_comes_back_and_dropout_is_off(encoder, small_tokenizer):
    encoder.train()
    assert torch.equal(embed(encoder, small_tokenizer, TEXTS), embed(encoder, small_tokenizer, TEXTS)) and encoder.training


def test_prompts_are_named_or_spelled_out(encoder, small_tokenizer):
    pooling = Pooling(prompts={"query": "name of "}, default_prompt="query")
    named = embed(encoder, small_tokenizer, ["list"], pooling=pooling, prompt="query")
    assert torch.equal(named, embed(encoder, small_tokenizer, ["name of list"]))
    assert torch.equal(named, embed(encoder, small_tokenizer, ["list"], pooling=pooling))                    # the default
    assert torch.equal(named, embed(encoder, small_tokenizer, ["list"], pooling=pooling, prompt="name of "))
    assert torch.equal(embed(encoder, small_tokenizer, ["list"], pooling=pooling, prompt=""), embed(encoder, small_tokenizer, ["list"]))


def test_long_texts_are_cut_and_keep_their_end(encoder, small_tokenizer, monkeypatch):
    whole = small_tokenizer.encode(TEXTS[4])
    assert token_ids(encoder, small_tokenizer, [TEXTS[4]], Pooling(max_length=7))[0] == whole[:7]
    monkeypatch.setattr(small_tokenizer, "adds_eos", True)
    monkeypatch.setattr(small_tokenizer, "eos_id", 2)
    assert token_ids(encoder, small_tokenizer, [TEXTS[4]], Pooling(max_length=7))[0] == [*whole[:6], 2]
    assert len(token_ids(encoder, small_tokenizer, [TEXTS[4] * 30], Pooling())[0]) == SHAPE["max_positions"]    # the last learned position


def test_rows_hold_so_many_tokens_and_every_text_once():
    ids = [[1] * n for n in (3, 9, 1, 3, 2, 20)]
    found = list(rows(ids, 8))
    assert [ragged.runs for _, ragged, _ in found] == [((1, 1), (1, 2), (1, 3)), ((1, 3),), ((1, 9),), ((1, 20),)]
    assert [places.tolist() for *_, places in found] == [[2, 4, 0], [3], [1], [5]]


def test_a_folder_keeps_how_its_embeddings_are_made(encoder, small_tokenizer, tmp_path):
    encoder.pooling = Pooling("cls", False, 40, {"query": "find "})
    save(encoder, small_tokenizer, tmp_path / "one")
    again, tokenizer = package.load(tmp_path / "one")
    assert again.pooling == encoder.pooling and torch.equal(package.embed(again, tokenizer, TEXTS), package.embed(encoder, small_tokenizer, TEXTS))


def test_bad_input_is_named(encoder, small_tokenizer, tmp_path):
    with pytest.raises(InputError, match="text 1 is empty: there is nothing to embed"):
        embed(encoder, small_tokenizer, ["a", "  "])
    with pytest.raises(InputError, match="a single string"):
        embed(encoder, small_tokenizer, "a")
    with pytest.raises(InputError, match="dim is 25: these vectors have 24 numbers"):
        embed(encoder, small_tokenizer, ["a"], dim=25)
    save(encoder, small_tokenizer, tmp_path / "one")
    with pytest.raises(InputError, match="is an encoder: it reads texts and writes none, and a decoder is wanted here"):
        decoder(tmp_path / "one")
    assert embed(encoder, small_tokenizer, []).shape == (0, 24)
