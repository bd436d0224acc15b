"""Features: what they are, and that a kept file is met by exactly the texts and the model that it was made of."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from minift import peft
from minift.classify import features as module
from minift.classify.features import default_cache, features
from minift.embed import embed, fingerprint
from minift.errors import InputError
from minift.models.encoder import Encoder
from minift.models.pooling import Pooling
from tests.models.small import randomised
from tests.models.test_encoder import ENCODERS

TEXTS = [("The object is a list.",), ("if",), ("A string literal.",), ("if",)]
PAIRS = [("The object is a list.", "if"), ("if", "A string literal."), ("if", "if")]


def make(tokenizer, seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = dataclasses.replace(ENCODERS["bert"], vocab_size=tokenizer.vocab_size, max_positions=64)
        return randomised(Encoder(config), seed)


@pytest.fixture
def encoder(small_tokenizer):
    return make(small_tokenizer)


@pytest.fixture
def read_texts(monkeypatch):
    """The texts that run through the model, call after call."""
    calls = []
    monkeypatch.setattr(module, "embed", lambda model, tokenizer, texts, **options: (calls.append(list(texts)), embed(model, tokenizer, texts, **options))[1])
    return calls


def test_features_are_the_texts_embeddings_in_their_order(encoder, small_tokenizer):
    found = features(encoder, small_tokenizer, TEXTS)
    torch.testing.assert_close(found.vectors, embed(encoder, small_tokenizer, [text for text, in TEXTS]), atol=1e-5, rtol=0)
    assert found.vectors.shape == (4, 24) and found.vectors.dtype == torch.float32 and torch.equal(found.vectors[1], found.vectors[3])
    assert found.file is None and not found.read


def test_of_two_texts_both_their_distance_and_their_product(encoder, small_tokenizer):
    u, v = (embed(encoder, small_tokenizer, list(side)) for side in zip(*PAIRS))
    found = features(encoder, small_tokenizer, PAIRS).vectors
    torch.testing.assert_close(found, torch.cat([u, v, (u - v).abs(), u * v], 1), atol=1e-5, rtol=0)
    assert found.shape == (3, 96) and found[2, 48:72].eq(0).all() and (found[0, :24] - found[0, 24:48]).abs().max() > 0.05


def test_each_different_text_runs_through_the_model_once(encoder, small_tokenizer, read_texts):
    features(encoder, small_tokenizer, TEXTS)
    features(encoder, small_tokenizer, PAIRS)
    assert read_texts == [["The object is a list.", "if", "A string literal."]] * 2


def test_the_second_time_they_are_read_and_the_model_does_not_run(encoder, small_tokenizer, tmp_path, read_texts):
    first = features(encoder, small_tokenizer, TEXTS, cache=tmp_path / "kept")
    again = features(encoder, small_tokenizer, TEXTS, cache=tmp_path / "kept")
    assert not first.read and again.read and len(read_texts) == 1 and torch.equal(first.vectors, again.vectors) and first.file == again.file
    assert [file.name for file in (tmp_path / "kept").iterdir()] == [first.file.name] and re.fullmatch(r"[0-9a-f]{32}\.npy", first.file.name)
    named = features(encoder, small_tokenizer, TEXTS, cache=tmp_path / "kept", name=fingerprint(encoder))
    assert named.read and not features(encoder, small_tokenizer, TEXTS, cache=tmp_path / "kept", name="another").read


@pytest.mark.parametrize("what", ["weights", "adapter", "pooling", "prompt", "precision", "order", "text", "more", "sides", "cut elsewhere"])
def test_another_model_prompt_or_text_meets_another_file(what, encoder, small_tokenizer, tmp_path):
    keep = dict(cache=tmp_path)
    first = features(encoder, small_tokenizer, TEXTS, **keep)
    if what == "weights":
        encoder.blocks[1].mlp.up.bias.data[3] += 1.0
    if what == "adapter":
        peft.attach(encoder, peft.LoRA(rank=2))
    if what == "pooling":
        encoder.pooling = Pooling("max")
    texts = {
        "order": TEXTS[::-1], "text": [*TEXTS[:3], ("else",)], "more": [*TEXTS, ("if",)], "sides": [(TEXTS[0] + TEXTS[1]), (TEXTS[2] + TEXTS[3])],
        "cut elsewhere": [("The object is a list.i",), ("f",), *TEXTS[2:]],
    }.get(what, TEXTS)    # fmt: skip
    options = {"prompt": {"prompt": "name of "}, "precision": {"precision": "bf16"}}.get(what, {})
    second = features(encoder, small_tokenizer, texts, **keep, **options)
    assert not second.read and second.file != first.file
    back = make(small_tokenizer)
    assert features(back, small_tokenizer, TEXTS, **keep).read                          # the first one's file is as it was


def test_texts_of_a_pair_do_not_run_together(encoder, small_tokenizer, tmp_path):
    one, other = (features(encoder, small_tokenizer, [pair], cache=tmp_path) for pair in (("list", "of"), ("listo", "f")))
    assert one.file != other.file and not other.read


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "pickle"])
def test_a_damaged_file_is_made_anew(damage, encoder, small_tokenizer, tmp_path):
    first = features(encoder, small_tokenizer, TEXTS, cache=tmp_path)
    whole = first.file.read_bytes()
    if damage == "pickle":
        np.save(first.file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        first.file.write_bytes({"empty": b"", "cut": whole[:-50], "garbage": b"no array at all"}[damage])
    again = features(encoder, small_tokenizer, TEXTS, cache=tmp_path)
    assert not again.read and torch.equal(again.vectors, first.vectors) and first.file.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [first.file.name]


def test_a_prompt_stands_before_every_text(encoder, small_tokenizer):
    found = features(encoder, small_tokenizer, [("list",), ("name",)], prompt="a ")
    torch.testing.assert_close(found.vectors, embed(encoder, small_tokenizer, ["a list", "a name"]), atol=1e-5, rtol=0)


def test_reduced_precision_is_used_where_it_is_asked_for(encoder, small_tokenizer):
    full, half = (features(encoder, small_tokenizer, TEXTS, precision=p).vectors for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and 1e-4 < (full - half).abs().max() < 0.1
    assert torch.equal(features(encoder, small_tokenizer, TEXTS, precision="auto").vectors, full) or torch.equal(features(encoder, small_tokenizer, TEXTS, precision="auto").vectors, half)


def test_an_empty_text_is_refused(encoder, small_tokenizer, tmp_path):
    with pytest.raises(InputError, match="is empty: there is nothing to embed"):
        features(encoder, small_tokenizer, [("a",), (" ",)], cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_default_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "minift" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "minift" / "features"
