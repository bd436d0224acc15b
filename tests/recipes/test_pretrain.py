"""Pre-training in small: from a text file to a folder that every verb can use."""

import json
import pydoc_data.topics

import pytest
import torch

from minift import tokenizer as tokenizers
from minift.data.pydocs import BASE_PACKAGES
from minift.errors import InputError
from minift.evaluate.perplexity import text_bits_per_byte
from minift.folder import load
from minift.recipes import pretrain
from minift.recipes.pretrain import Config, document, run, shape, texts
from minift.train.log import read_metrics

TINY = dict(vocab_size=360, hidden_size=16, layers=2, heads=2, kv_heads=1, mlp_size=24, context=32, batch_size=4, lr=3e-3, max_steps=3,
            precision="fp32")    # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "book.txt"
    file.write_text("\n\n".join(text[:600].replace("\n\n", "\n") for text in list(pydoc_data.topics.topics.values())[:30]))
    return file


def test_from_a_text_file_to_a_model_that_generates(minift, book, tmp_path):
    status, said, _ = minift("pretrain", "--data", book, "--out", tmp_path / "run", *FLAGS, "--dtype", "float32")
    assert status == 0 and f"held-out texts; written: {tmp_path / 'run' / 'model'}" in said
    for name in ("config.json", "metrics.jsonl", "loss.png", "checkpoints/step-3.safetensors", "model/config.json", "model/tokenizer.model"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    lines = read_metrics(tmp_path / "run")
    losses = [m["loss"] for m in lines if "loss" in m]
    assert len(losses) == 3 and losses[-1] < losses[0]
    [measured] = [m for m in lines if "eval_loss" in m]
    assert f"{measured['eval_bits_per_byte']:.3f} bits per byte" in said
    model, tokenizer = load(tmp_path / "run/model")
    assert (model.config.hidden_size, model.config.layers, model.config.heads, model.config.kv_heads, model.config.mlp_size) == (16, 2, 2, 1, 24)
    assert (model.config.max_positions, tokenizer.vocab_size, model.config.eos_token_id) == (64, 360, tokenizer.eos_id)
    status, text, _ = minift("generate", "--model", tmp_path / "run/model", "--prompt", "The", "--max-new-tokens", 3)
    assert status == 0 and text.startswith("The")


def test_the_reported_bits_per_byte_are_those_of_the_text(book, tmp_path):
    result = run(Config(out=tmp_path / "run", data=(str(book),), **{**TINY, "context": 256}, dtype="float32"), quiet=True)
    model, tokenizer = load(result.model)
    _, valid = texts(Config(out=tmp_path, data=(str(book),)))
    exact = text_bits_per_byte(model, tokenizer, valid, 256, 128).bits_per_byte
    assert result.bits_per_byte == pytest.approx(exact, rel=0.03)                  # its rows cut some text off, and count the end tokens


def test_one_seed_gives_one_model_whatever_was_drawn_before(book, tmp_path):
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number)
        result = run(Config(out=tmp_path / str(number), data=(str(book),), **{**TINY, "max_steps": 1, "lr": 0}, seed=seed), quiet=True)
        weights.append(load(result.model)[0].embed.weight[:300])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_interrupted_pre_training_goes_on_where_it_stopped(minift, book, tmp_path, monkeypatch):
    run(Config(out=tmp_path / "whole", data=(str(book),), **TINY, dropout=0.2), quiet=True)
    honest, calls = pretrain.next_token, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*arguments)

    again = ("pretrain", "--data", book, "--out", tmp_path / "cut", *FLAGS, "--dropout", 0.2)
    monkeypatch.setattr(pretrain, "next_token", interrupting)
    status, said, _ = minift(*again)
    assert status == 1 and "interrupted after step 2 of 3" in said
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "120")
    assert minift(*again, "--resume")[0] == 0
    whole, cut = (load(tmp_path / name / "model")[0] for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters()))


def test_a_tokenizer_can_be_brought_along(minift, book, small_model, tmp_path):
    assert 0 == minift("pretrain", "--data", book, "--out", tmp_path / "run", *FLAGS, "--tokenizer", small_model)[0]
    assert (tmp_path / "run/model/tokenizer.model").read_bytes() == (small_model / "tokenizer.model").read_bytes()


def test_weights_are_written_in_bfloat16_unless_told(book, tmp_path):
    result = run(Config(out=tmp_path / "run", data=(str(book),), **TINY), quiet=True)
    assert json.loads((result.model / "config.json").read_text()).get("dtype", "") == "bfloat16" and not result.interrupted


@pytest.mark.parametrize("options, text", [
    (dict(heads=3), "--hidden-size 16 is not a multiple of twice --heads 3"),
    (dict(heads=16, kv_heads=1), "a head needs an even width to rotate"),
    (dict(kv_heads=3), "--heads 2 is not a multiple of --kv-heads 3"),
    (dict(layers=0), "--layers is 0: wanted 1 or more"),
    (dict(vocab_size=90000), "no tokenizer of 90000 pieces can be made of this text"),
    (dict(context=100_000), "fewer than one row of 100000: give more text or a smaller --context"),
    (dict(tokenizer="nowhere"), "no tokenizer in nowhere"),
])    # fmt: skip
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(minift, book, tmp_path, options, text):
    flags = [word for name, value in {**TINY, **options}.items() for word in (f"--{name.replace('_', '-')}", value)]
    status, _, complaint = minift("pretrain", "--data", book, "--out", tmp_path / "run", *flags)
    assert status == 2 and text in complaint and not (tmp_path / "run").exists()


@pytest.mark.parametrize("options, text", [
    (("--optimizer", "galore", "--galore-rank", 16), "pass a smaller --galore-rank"), (("--optimizer", "paged-adamw8bit"), "take plain adamw8bit"),
], ids=str)    # fmt: skip
def test_an_optimizer_that_cannot_be_is_refused_before_an_earlier_run_is_given_up(minift, book, tmp_path, options, text):
    again = ("pretrain", "--data", book, "--out", tmp_path / "run", *FLAGS)
    assert minift(*again)[0] == 0
    status, _, complaint = minift(*again, *options, "--overwrite")
    assert status == 2 and text in complaint and (tmp_path / "run/model/model.safetensors").exists()


def test_pairs_are_no_text_to_pre_train_on(minift, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    status, _, complaint = minift("pretrain", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "run")
    assert status == 2 and "prompt/completion data, plain text was wanted" in complaint


def test_without_data_the_text_is_this_machines_documentation(monkeypatch):
    asked = []
    monkeypatch.setattr(pretrain.pydocs, "documents", lambda split, packages: asked.append((split, packages)) or [split])
    assert texts(Config(out="")) == (["train"], ["valid"])
    assert asked == [("train", BASE_PACKAGES), ("valid", BASE_PACKAGES)]


def test_a_document_begins_with_bos_and_ends_with_one_eos(small_tokenizer, small_model):
    ids = document(small_tokenizer, "The end.")
    assert ids[0] == small_tokenizer.bos_id and ids.count(small_tokenizer.eos_id) == 1 and ids[-1] == small_tokenizer.eos_id
    adding = tokenizers.load(small_model)
    adding.adds_eos = True
    assert document(adding, "The end.").count(adding.eos_id) == 1


def test_a_validation_text_of_one_character_still_has_a_target(small_model, tmp_path):
    (tmp_path / "letters.txt").write_text("\n\n".join("abcdefghijklmnop"))
    config = Config(out=tmp_path / "run", data=(str(tmp_path / "letters.txt"),), tokenizer=small_model, **{**TINY, "context": 8})
    assert texts(config)[1] == ["l"]                                               # with BOS and EOS three tokens, half of which is one
    assert 0 < run(config, quiet=True).bits_per_byte < 100


def test_a_shape_is_the_options(small_tokenizer):
    made = shape(Config(out="", **TINY), small_tokenizer)
    assert (made.head_dim, made.vocab_size, made.bos_token_id, made.eos_token_id) == (8, 400, 1, 2)
    with pytest.raises(InputError, match="--mlp-size is -1"):
        shape(Config(out="", **{**TINY, "mlp_size": -1}), small_tokenizer)
