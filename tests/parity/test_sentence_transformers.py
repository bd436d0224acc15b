"""Embeddings against sentence-transformers 6: the real all-MiniLM-L6-v2, and every pooling on small random models, folders both ways."""

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

import minift
from minift.models.pooling import Pooling
from tests.parity.test_encoders import minilm

TEXTS = ["A man is eating food.", "What is this?", "Übung macht den Meister!", " ".join(["word"] * 400), "a", "What is this?", "x = [i for i in range(10)]"]


def theirs(folder, **options):
    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **options))


def test_minilm_gives_its_embeddings():
    model, tokenizer = minift.load(minilm())
    assert model.pooling == Pooling("mean", True, 256)
    torch.testing.assert_close(minift.embed(model, tokenizer, TEXTS), theirs(minilm()), rtol=0, atol=2e-6)


def test_our_folder_is_read_by_sentence_transformers(tmp_path):
    model, tokenizer = minift.load(minilm())
    model.pooling = Pooling("mean", True, 128, {"query": "find: "}, "query")
    minift.save(model, tokenizer, tmp_path / "ours")
    own = minift.embed(model, tokenizer, TEXTS)
    torch.testing.assert_close(theirs(tmp_path / "ours"), own, rtol=0, atol=2e-6)
    torch.testing.assert_close(theirs(tmp_path / "ours", prompt_name="query"), own, rtol=0, atol=2e-6)
    assert (minift.embed(model, tokenizer, TEXTS, prompt="") - own).abs().max() > 0.01


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["cls", "mean", "max", "last", "weighted"])
def test_every_pooling_of_a_small_bert(mode, normalize, tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=30522, hidden_size=36, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(tmp_path / "plain")
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(tmp_path / "plain")
    model, tokenizer = minift.load(tmp_path / "plain")
    assert model.pooling is None
    model.pooling = Pooling(mode, normalize, 64)
    minift.save(model, tokenizer, tmp_path / "ours")
    torch.testing.assert_close(theirs(tmp_path / "ours"), minift.embed(model, tokenizer, TEXTS), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["mean", "last", "weighted"])
def test_decoders_as_encoders(mode, tmp_path):
    model, tokenizer = minift.load("base")
    model.pooling = Pooling(mode, True, 128)
    minift.save(model, tokenizer, tmp_path / "ours")
    torch.testing.assert_close(theirs(tmp_path / "ours"), minift.embed(model, tokenizer, TEXTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "last", "weighted"])
def test_decoders_that_look_both_ways(mode, tmp_path):
    model, tokenizer = minift.load("base")
    model.pooling = Pooling(mode, True, 128)
    causal = minift.embed(model, tokenizer, TEXTS)
    model.pooling = Pooling(mode, True, 128, bidirectional=True)
    own = minift.embed(model, tokenizer, TEXTS)
    minift.save(model, tokenizer, tmp_path / "ours")
    assert (own - causal).abs().max() > 0.01
    torch.testing.assert_close(theirs(tmp_path / "ours"), own, rtol=0, atol=1e-5)
    again, _ = minift.load(tmp_path / "ours")
    assert torch.equal(minift.embed(again, tokenizer, TEXTS), own)


def test_a_vocab_txt_alone_splits_as_its_tokenizer_json(tmp_path):
    from minift import tokenizer as tokenizers

    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm() / name).read_bytes())
    ours, whole = tokenizers.load(tmp_path), tokenizers.load(minilm())
    for text in [*TEXTS, "unaffable 東京 [MASK] naïve [SEP] b", "\u200b\x00 …"]:
        assert ours.encode(text) == whole.encode(text) == transformers.AutoTokenizer.from_pretrained(minilm())(text).input_ids
    assert ours.decode(ours.encode(TEXTS[0])) == whole.decode(whole.encode(TEXTS[0])) == "a man is eating food."
