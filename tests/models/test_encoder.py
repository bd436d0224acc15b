"""Encoders and texts without pads: identities on tiny models. That the numbers are transformers' is tests/parity/test_encoders.py."""

import dataclasses

import pytest
import torch

from minift import peft
from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.encoder import Encoder
from minift.models.folder import read_model, write_model
from minift.models.ragged import Ragged, lay_out
from minift.models.transformer import Transformer
from tests.models.small import BIASED, CONFIGS, SHAPE, model, randomised, tokens

POST = dict(causal=False, norm="layernorm", norm_after=True, embed_norm=True, position="learned", activation="gelu", gated=False, dropout=0.1, **BIASED)
ENCODERS = {
    "bert": ModelConfig(**SHAPE, **POST, family="bert", token_types=2, top="pooler", pad_token_id=0),
    "roberta": ModelConfig(**SHAPE, **POST, family="roberta", token_types=1, first_position=2, top="none", bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "distilbert": ModelConfig(**SHAPE, **{**POST, "norm_after": True}, family="distilbert", norm_eps=1e-12, top="mask", pad_token_id=0),
}
LENGTHS = (5, 2, 9, 2, 1)
TEXTS = [tokens(n, seed=10 + i).tolist() for i, n in enumerate(LENGTHS)]


def encoder(name: str, **fields) -> Encoder:
    return randomised(Encoder(dataclasses.replace(ENCODERS[name], **fields)))


def close(a, b, atol=5e-6):                                   # values up to 5: ten float32 roundings
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(token_ids, segments): the texts on one side of the row, pads (token 0, also a real one) in a segment of their own."""
    ids, segments = torch.zeros(len(TEXTS), 9, dtype=torch.int64), torch.ones(len(TEXTS), 9, dtype=torch.int64)
    for row, text in enumerate(TEXTS):
        there = slice(0, len(text)) if side == "right" else slice(9 - len(text), 9)
        ids[row, there], segments[row, there] = torch.tensor(text), 0
    return ids, segments


# ---- the encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_every_token_sees_the_whole_text(name):
    one = encoder(name)
    ids = tokens(1, 7)
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 31
    with torch.no_grad():
        moved = (one.hidden(ids) - one.hidden(changed)).abs().amax(-1)[0]
    assert (moved > 1e-4).all()                                               # a decoder's first token would not move


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ENCODERS)
def test_traps_9_10_11_pads_change_nothing_on_either_side(name, side):
    one, (ids, segments) = encoder(name), padded(side)
    with torch.no_grad():
        stream = one.hidden(ids, segments=segments)
        assert torch.isfinite(stream).all()                                   # a row that is mostly pads has no empty softmax
        for row, text in enumerate(TEXTS):
            close(stream[row][segments[row] == 0], one.hidden(torch.tensor([text]))[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_traps_9_10_11_texts_end_to_end_are_the_texts_alone(name):
    one = encoder(name)
    row, ragged, order = lay_out(TEXTS)
    assert ragged.runs == ((1, 1), (2, 2), (1, 5), (1, 9)) and order.tolist() == [4, 1, 3, 0, 2] and row.shape == (1, 19)
    with torch.no_grad():
        for text, number in zip(one.hidden(row, ragged=ragged)[0].split(ragged.lengths().tolist()), order.tolist()):
            close(text, one.hidden(torch.tensor([TEXTS[number]]))[0])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dynamic"])
def test_decoders_read_texts_end_to_end_too(name):
    one = model(name)
    row, ragged, order = lay_out(TEXTS)
    with torch.no_grad():
        for text, number in zip(one(row, ragged=ragged)[0].split(ragged.lengths().tolist()), order.tolist()):
            close(text, one(torch.tensor([TEXTS[number]]))[0], 1e-5)


def test_gradients_of_texts_end_to_end_are_the_sum_of_each_alone():
    one = encoder("bert")
    weights = [torch.randn(len(text), 24, generator=torch.Generator().manual_seed(i)) for i, text in enumerate(TEXTS)]
    row, ragged, order = lay_out(TEXTS)
    (one.hidden(row, ragged=ragged)[0] * torch.cat([weights[i] for i in order])).sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in one.named_parameters() if parameter.grad is not None}
    one.zero_grad()
    for text, weight in zip(TEXTS, weights):
        (one.hidden(torch.tensor([text]))[0] * weight).sum().backward()
    assert len(together) > 30
    for name, parameter in one.named_parameters():
        if name in together:
            close(together[name], parameter.grad, 1e-4)


def test_a_decoder_may_look_both_ways():
    one = model("llama")
    ids = tokens(1, 6)
    with torch.no_grad():
        before = one.hidden(ids)
        one.config = dataclasses.replace(one.config, causal=False, top="none")
        for block in one.blocks:
            block.attention.config = one.config
        after = one.hidden(ids)
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-3 and torch.isfinite(after).all()


def test_the_type_of_a_token_is_a_vector_and_the_first_unless_said():
    one, ids = encoder("bert"), tokens(2, 5)
    with torch.no_grad():
        assert torch.equal(one.hidden(ids), one.hidden(ids, token_types=torch.zeros_like(ids)))
        types = torch.tensor([[0, 0, 1, 1, 1]] * 2)
        moved = one.types.weight[1] - one.types.weight[0]
        shifted = one.embed(ids) + torch.where(types[..., None] == 1, moved, torch.zeros(24))
        close(one.hidden(ids, token_types=types), one.hidden(embeds=shifted))


def test_positions_begin_behind_the_rows_that_are_left_out():
    one, ids = encoder("roberta"), tokens(1, 4)
    with torch.no_grad():
        before = one.hidden(ids)
        one.positions.weight[:2] = 99.0
        assert torch.equal(one.hidden(ids), before)
        one.positions.weight[2] += 1.0
        assert not torch.equal(one.hidden(ids), before)
    assert one.positions.weight.shape[0] == 66
    with pytest.raises(InputError, match="has 64 learned positions, the text has 65 tokens: shorten it"):
        one.hidden(tokens(1, 65))


# ---- tops


def test_a_class_is_read_at_the_first_token_worked_by_hand():
    one = encoder("bert", labels=3)
    row, ragged, order = lay_out(TEXTS)
    with torch.no_grad():
        first = torch.stack([one.hidden(torch.tensor([TEXTS[i]]))[0, 0] for i in order])
        wanted = torch.tanh(first @ one.pooler.weight.T + one.pooler.bias) @ one.score.weight.T + one.score.bias
        close(one(row, ragged=ragged), wanted)
        ids, segments = padded("right")
        close(one(ids, segments=segments)[order], wanted)


def test_masked_tokens_are_told_by_the_embedding():
    one = encoder("distilbert")
    with torch.no_grad():
        logits = one(tokens(2, 5))
        one.embed.weight[7] *= 0
        one.head.bias[7] = 0.25
        assert logits.shape == (2, 5, 31) and one(tokens(2, 5))[..., 7].eq(0.25).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifier_on_an_encoder_keeps_its_body_and_gets_a_new_head(name):
    one = encoder(name)
    made = Encoder.on(one, labels=4, seed=1)
    assert made.config.labels == 4 and made.score.weight.shape == (4, 24) and made(tokens(2, 5)).shape == (2, 4)
    assert made.blocks is one.blocks and made.embed is one.embed and (made.pooler is one.pooler) == (name == "bert")
    assert torch.equal(Encoder.on(encoder(name), 4, 1).score.weight, made.score.weight)
    assert not torch.equal(Encoder.on(encoder(name), 4, 2).score.weight, made.score.weight)
    assert not {"head.weight", "transform.weight"} & dict(made.named_parameters()).keys()
    with pytest.raises(InputError, match="has labels already"):
        Encoder.on(made, 2)
    with pytest.raises(InputError, match="this is none"):
        Encoder.on(model("llama"), 2)


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_folder_goes_out_and_in(name, labels, tmp_path):
    one = encoder(name, **({"labels": 3, "top": "pooler"} if labels else {}))
    write_model(one, tmp_path / "model")
    again = read_model(tmp_path / "model")
    assert again.config == one.config
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_low_rank_changes_go_into_an_encoder():
    one, ids = encoder("bert", labels=2), tokens(2, 6)
    before = one(ids)
    peft.attach(one, peft.LoRA(rank=2))
    assert torch.equal(one(ids), before)
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    assert any("blocks.0.attention.q" in name for name in trained) and not any(name.startswith("embed") for name in trained)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name in trained and "score" not in name:
                parameter += 0.3
    assert not torch.allclose(one(ids), before)
    with peft.disabled(one):
        assert torch.equal(one(ids), before)


# ---- refusals


@pytest.mark.parametrize("fields, text", [
    (dict(top="next"), "a decoder predicts the next token, an encoder does not"),
    (dict(windows=(3, 3)), "look backwards: they are choices of decoders"),
    (dict(parallel=True), "norm_after is a choice of blocks that are not parallel"),
])
def test_choices_that_contradict_each_other_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(ENCODERS["bert"], **fields)


def test_a_row_that_is_not_what_ragged_says_is_refused():
    one = encoder("bert")
    with pytest.raises(InputError, match=r"ragged lays 4 tokens in one row, without a cache and segments: the row is \(1, 5\)"):
        one.hidden(tokens(1, 5), ragged=Ragged(((2, 2),)))
    with pytest.raises(InputError, match="without a cache and segments"):
        one.hidden(tokens(1, 4), ragged=Ragged(((2, 2),)), segments=torch.zeros(1, 4, dtype=torch.int64))


def test_virtual_tokens_want_texts_of_their_own():
    one = Transformer(CONFIGS["llama"])
    peft.attach(one, peft.Prompt(length=2))
    with pytest.raises(InputError, match="would have to stand before each text of the row: pad or pack"):
        one.hidden(tokens(1, 4), ragged=Ragged(((2, 2),)))


def test_prefixes_stand_before_every_text_of_the_row():
    one = model("llama")
    peft.attach(one, peft.Prefix(length=3))
    row, ragged, order = lay_out(TEXTS)
    with torch.no_grad():
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
        for text, number in zip(one.hidden(row, ragged=ragged)[0].split(ragged.lengths().tolist()), order.tolist()):
            close(text, one.hidden(torch.tensor([TEXTS[number]]))[0], 1e-5)


def test_a_padded_text_behind_a_prefix_reads_as_it_does_alone_and_learned_tokens_that_read_too_want_one_text():
    ids, lengths = tokens(2, 7), (4, 7)
    segments = (torch.arange(7) >= torch.tensor(lengths)[:, None]).long()
    one = encoder("bert").double()
    peft.attach(one, peft.Prefix(length=3))
    for parameter in one.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) if parameter.requires_grad else 0
    padded = one.hidden(ids, segments=segments)
    for row, length in enumerate(lengths):
        close(padded[row, :length], one.hidden(ids[row : row + 1, :length])[0], 1e-10)
    peft.attach(other := encoder("bert"), peft.Prompt(length=2))
    with pytest.raises(InputError, match="run texts of one length together, without segments"):
        other.hidden(ids, segments=segments)
