"""minift embed: every shape of rows learns, batches hold no text twice, GradCache and adapters, reports, refusals."""

import dataclasses
import json
import math
import random
import re

import numpy
import pytest
import torch
from safetensors import safe_open

from minift import folder as folders
from minift.embed import embed
from minift.folder import save
from minift.models.encoder import Encoder
from minift.models.pooling import Pooling
from minift.models.transformer import Transformer
from minift.recipes import embed_teacher
from minift.recipes.embed import Config, EmbedLoss
from minift.recipes.embed_losses import LOSSES, part_of, related
from minift.recipes.embed_report import measured
from minift.recipes.embed_rows import Row, Rows, mined
from minift.recipes.encode import EmbedderChoice
from minift.train import precision
from minift.train.log import read_metrics
from tests.models.small import CONFIGS
from tests.models.test_encoder import ENCODERS

WORDS = [f"{a} {b}" for a in ("list", "string", "object", "class", "name", "value", "method", "module") for b in ("is", "returns", "has", "of")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of each shape, of which a model can learn something: the second text repeats a word of the first."""
    folder, dice = tmp_path_factory.mktemp("data"), random.Random(0)
    rows = {
        "pairs": [{"anchor": f"{word} {i}", "positive": f"{i} the {word.split()[0]} {word.split()[1]}"} for i, word in enumerate(WORDS * 3)],
        "triplets": [{"anchor": f"{w} {i}", "positive": f"{i} the {w}", "negative": f"{i} not a {dice.choice(WORDS)}!"} for i, w in enumerate(WORDS * 2)],
        "scored": [{"sentence1": f"{w} {i}", "sentence2": f"{w if i % 2 else dice.choice(WORDS)}, {i}", "score": 1 + 4 * (i % 2)} for i, w in enumerate(WORDS * 3)],
        "nli": [{"sentence1": f"{w} {i}", "sentence2": f"{w if i % 2 else 'not a class of'}, {i}", "label": ("no", "yes")[i % 2]} for i, w in enumerate(WORDS * 3)],
        "labelled": [{"text": f"{word} {i}", "label": word.split()[0]} for i, word in enumerate(WORDS * 3)],
        "texts": [{"text": f"{word} {i}"} for i, word in enumerate(WORDS * 3)],
    }    # fmt: skip
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


@pytest.fixture(scope="module")
def encoder_folder(small_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(dataclasses.replace(ENCODERS["bert"], vocab_size=small_tokenizer.vocab_size, max_positions=64, top="none"))
    model.pooling = Pooling("mean", True, 64)
    save(model, small_tokenizer, folder)
    return folder


@pytest.fixture
def learn(minift, files, encoder_folder, tmp_path):
    def run(*options, file="pairs", out="run", model=None, steps=3):
        return minift("embed", "--model", model or encoder_folder, "--data", files / f"{file}.jsonl", "--out", tmp_path / out, "--held-out", 0.3,
                      "--max-steps", steps, "--rows", 8, "--precision", "fp32", *options)    # fmt: skip

    return run


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_its_steps_and_says_what_it_brought(learn, loss, tmp_path):
    shape = LOSSES[loss][0]
    shape = "texts" if shape == "any" else shape
    more = ["--score-range", 1, 5] if shape == "scored" else ["--teacher", "base"] if loss == "distill" else []
    status, said, complaint = learn("--loss", loss, *more, file="triplets" if loss == "triplet" else shape)
    assert status == 0, complaint
    assert "held-out loss" in said and (tmp_path / "run/adapter/modules.json").exists() and (tmp_path / "run/report.md").exists()
    name = {"pairs": "eval_mrr@10", "scored": "eval_spearman", "nli": "eval_accuracy", "labelled": "eval_nearest", "texts": "eval_uniformity"}[shape]
    assert name in [line for line in read_metrics(tmp_path / "run") if "eval_loss" in line][-1]


@pytest.mark.parametrize("options", [[], ["--mini-batch", 3], ["--dims", 4, 12, 24], ["--learn-temperature"], ["--negatives", 2],
                                     ["--method", "full", "--lr", 3e-3, "--learn-temperature"]], ids=str)
def test_pairs_are_learned(learn, tmp_path, options):
    status, said, complaint = learn("--lr", 1e-2, "--epochs", 9, *options, steps=40)
    assert status == 0, complaint
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert sum(line["loss"] for line in lines[-5:]) < 0.7 * sum(line["loss"] for line in lines[:5])
    assert ("temperature 0.05 ->" in said) == ("--learn-temperature" in options) and ("hard negatives found" in said) == ("--negatives" in options)
    assert (tmp_path / "run/dims.png").exists() == ("--dims" in options)


def test_mini_batches_have_the_gradient_of_the_whole_batch(encoder_folder, files):
    """Dropout off, so that one pass over all rows and several over some draw nothing; with dropout on (trap 40): tests/train/test_grad_cache.py."""
    model, tokenizer = folders.load(encoder_folder)
    grads = []
    for size in (0, 3):
        loss, batch = EmbedLoss(Config(data=("x",), out="y", loss="infonce", mini_batch=size), Pooling()), _rows(files, tokenizer, "pairs").batches(8, 0)[0]
        model.zero_grad()
        total, count = loss(model.eval(), batch)
        (total / count).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(grads[0]) > 20
    scale = max(g.abs().max() for g in grads[0].values())
    for name, gradient in grads[0].items():
        assert (gradient - grads[1][name]).abs().max() < 1e-5 * scale, name


def _rows(files, tokenizer, shape, prompts={}, **options):
    every = [json.loads(line) for line in (files / f"{shape}.jsonl").read_text().splitlines()]
    rows = [Row("", tuple(v for k, v in row.items() if k not in ("score", "label")), row.get("score"), row.get("label"), shape) for row in every]
    config = Config(data=("x",), out="y", **{"loss": "infonce", **options})
    return Rows(rows, lambda texts, side: [tokenizer.encode(prompts.get(side, "") + text) for text in texts], config)


SHARED = [(f"a{i % 7}", f"b{i}") for i in range(30)]
"""Pairs of which some share their anchor, and so do not fit together."""


def _pairs(pairs):
    return Rows([Row("", pair) for pair in pairs], lambda texts, side: [[1]] * len(texts), Config(data=("x",), out="y", loss="infonce"))


def test_trap41_no_text_is_in_a_batch_twice_and_every_row_is_in_one():
    rows = _pairs([*SHARED, ("x", "b3")])
    batches = rows.batches(6, seed=3)
    assert sum(batch.targets for batch in batches) >= 30 and max(batch.targets for batch in batches) == 6
    for batch in batches:
        seen = torch.cat(batch.ids).tolist()
        assert len(set(seen)) == len(seen)
    assert [batch.ids[0].tolist() for batch in rows.batches(6, 3)] == [batch.ids[0].tolist() for batch in batches] != [b.ids[0].tolist() for b in rows.batches(6, 4)]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_epoch_has_as_many_batches_as_the_first(seed):
    rows, seen = _pairs(SHARED), lambda batches: [batch.ids[1].tolist() for batch in batches]
    wanted, counts = len(rows.epoch(0, 6, seed)), set()
    for number in range(50):
        own, found = seen(rows.batches(6, seed + number)), seen(rows.epoch(number, 6, seed))
        assert len(found) == wanted and found[: len(own)] == own[:wanted]
        assert found == seen(_pairs(SHARED).epoch(number, 6, seed))                    # in another process, that goes on
        assert not any(batch in own for batch in found[len(own) :])                    # what fills it up is of another order
        counts.add(len(own))
    assert len(counts) > 1


def test_no_step_of_several_epochs_is_empty(minift, encoder_folder, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in SHARED))
    status, _, complaint = minift("embed", "--model", encoder_folder, "--data", tmp_path / "pairs.jsonl", "--eval-data", tmp_path / "pairs.jsonl", "--rows", 6,
                                  "--out", tmp_path / "run", "--epochs", 8, "--eval-every", 1000, "--precision", "fp32")    # fmt: skip
    assert status == 0, complaint
    assert all(line["rows"] > 1 and line["loss"] > 0 for line in read_metrics(tmp_path / "run") if "loss" in line)


def test_batches_of_labels_have_mates(files, small_tokenizer):
    rows = _rows(files, small_tokenizer, "labelled", loss="batch-hard")
    for batch in rows.batches(8, 0):
        counts = batch.values.unique(return_counts=True)[1]
        assert (counts > 1).any() and len(counts) > 1


def test_prompts_stand_before_their_side(files, small_tokenizer):
    rows = _rows(files, small_tokenizer, "pairs", {"query": "find ", "document": "in "})
    batch = rows.batch([0])
    assert batch.columns == [[small_tokenizer.encode("find " + rows.rows[0].texts[0])], [small_tokenizer.encode("in " + rows.rows[0].texts[1])]]


def test_the_models_own_prompts_are_used_unless_others_are_given(minift, files, encoder_folder, small_tokenizer, tmp_path, monkeypatch):
    model, _ = folders.load(encoder_folder)
    model.pooling = Pooling(prompts={"query": "find ", "document": "in "}, default_prompt=None)
    save(model, small_tokenizer, tmp_path / "model")
    seen, kept = [], Rows.batch
    monkeypatch.setattr(Rows, "batch", lambda self, some: seen.append(kept(self, some).columns) or kept(self, some))
    quick = ["--data", files / "pairs.jsonl", "--out", tmp_path / "run", "--held-out", 0.3, "--max-steps", 1, "--rows", 8, "--overwrite"]
    for options, starts in (([], ("find ", "in ")), (["--anchor-prompt", "of "], ("of ", ""))):
        seen.clear()
        assert minift("embed", "--model", tmp_path / "model", *quick, *options)[0] == 0
        for column, start in zip(seen[0], starts):
            ids = small_tokenizer.encode(start + "x")[: -1 if start else 1]
            assert all(text[: len(ids) - 1] == ids[:-1] for text in column)


def test_hard_negatives_are_near_but_not_too_near_worked_by_hand():
    at = {"q": [1.0, 0.0], "right": [0.8, 0.6], "near": [0.79, 0.613], "apt": [0.6, 0.8], "far": [0.0, 1.0], "q2": [0.0, 1.0]}
    encode = lambda texts, side: torch.tensor([at[text] for text in texts])
    rows = [Row("", ("q", "right")), Row("", ("q2", "near")), Row("", ("q2", "apt")), Row("", ("q2", "far"))]
    found, said = mined(rows, encode, 1, margin=0.05)
    assert found[0].texts == ("q", "right", "apt") and "hard negatives found for 4 rows" in said      # near is at 0.79 > 0.8 - 0.05
    assert found[1].texts[2:] == ("right",)                                                           # of q2 far, apt and near are right
    assert mined(rows, encode, 9, margin=0.0)[0][0].texts == ("q", "right", "near", "apt", "far")


def test_held_out_rows_are_measured_worked_by_hand():
    at = {"a": [1.0, 0.0], "b": [0.96, 0.28], "c": [0.8, 0.6], "d": [0.0, 1.0]}
    encode = lambda texts, side, dim=None: torch.tensor([at[text] for text in texts])
    labelled = [Row("", (text,), None, label, "labelled") for text, label in zip("abcd", "xxyy")]
    assert measured(labelled, encode) == {"nearest": 0.75}              # a - b, b - a; c's nearest is b, of another label; d - c
    pairs, second = [Row("", ("a", "b")), Row("", ("a", "d")), Row("", ("c", "a"))], math.log(2, 3)        # of b, d, a:
    ndcg = ((second + 1 / 2) / (1 + second) + second) / 2                     # a finds a, b, d: right in places 2 and 3; c finds b, a, d: in 2
    found = measured(pairs, encode)
    assert {name: found[name] for name in ("mrr@10", "ndcg@10", "recall@1")} == {"mrr@10": 0.5, "ndcg@10": pytest.approx(ndcg), "recall@1": 0.0}
    assert found["alignment"] == pytest.approx((0.08 + 2.0 + 0.4) / 3)         # |a - b|² = 2 - 2 cos, of each row
    scored = [Row("", texts, score, None, "scored") for texts, score in ((("a", "b"), 3.0), (("a", "c"), 2.0), (("a", "d"), 1.0))]
    assert measured(scored, encode)["spearman"] == pytest.approx(1.0)
    told = [Row("", texts, None, label, "nli") for texts, label in ((("a", "b"), "yes"), (("a", "c"), "no"), (("a", "d"), "no"))]
    assert measured(told, encode, judge=lambda u, v: ["yes", "yes", "no"]) == {"accuracy": pytest.approx(2 / 3)}


def test_uniformity_is_of_every_text_of_the_pairs_once_worked_by_hand():
    at = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.0]}
    found = measured([Row("", ("a", "b")), Row("", ("a", "c"))], lambda texts, side, dim=None: torch.tensor([at[text] for text in texts]))
    assert found["alignment"] == pytest.approx((2.0 + 0.0) / 2)                # a - b lie at 90 degrees, a - c in one place
    assert found["uniformity"] == pytest.approx(math.log((1 + 2 * math.exp(-4)) / 3))    # a, b, c: one pair at 0, two at |.|² = 2


def test_scores_are_scaled_and_matter(learn):
    status, _, complaint = learn("--loss", "cosine", file="scored")
    assert status == 2 and "outside 0 to 1: say what the scores reach from and to with --score-range" in complaint
    assert learn("--loss", "cosine", "--score-range", 1, 5, file="scored")[0] == 0


def test_an_adapter_keeps_how_embeddings_are_made(learn, minift, tmp_path, encoder_folder):
    assert learn("--pooling", "cls", "--anchor-prompt", "find ")[0] == 0
    modules = json.loads((tmp_path / "run/adapter/config_sentence_transformers.json").read_text())
    assert modules["prompts"] == {"query": "find ", "document": ""}
    assert json.loads((tmp_path / "run/adapter/1_Pooling/config.json").read_text())["pooling_mode_cls_token"] is True


def test_a_merged_adapter_embeds_as_it_did_beside_the_model(learn, minift, encoder_folder, tmp_path):
    assert learn("--pooling", "max", "--lr", 1e-2)[0] == 0
    status, _, complaint = minift("merge", "--model", encoder_folder, "--adapter", tmp_path / "run/adapter", "--out", tmp_path / "merged")
    assert status == 0, complaint
    merged, tokenizer = folders.load(tmp_path / "merged")
    beside = EmbedderChoice(model=str(encoder_folder), adapter=tmp_path / "run/adapter").load()[0]
    assert merged.pooling == beside.pooling and merged.pooling.mode == "max"
    torch.testing.assert_close(embed(merged, tokenizer, WORDS), embed(beside, tokenizer, WORDS), rtol=0, atol=1e-5)
    assert minift("inspect", tmp_path / "merged")[0] == 0


def test_a_decoder_learns_to_embed(learn, small_model, tmp_path):
    status, said, complaint = learn("--pooling", "weighted", model=small_model)
    assert status == 0, complaint


def test_a_decoder_that_looks_both_ways_is_embedded_so_from_what_is_written(learn, minift, small_model, tmp_path):
    for method, options in (("adapter", []), ("model", ["--method", "full", "--lr", 1e-3])):
        status, _, complaint = learn("--bidirectional", *options, model=small_model, out=method)
        assert status == 0, complaint
        written = tmp_path / method / method
        choice = EmbedderChoice(model=str(small_model), adapter=written) if method == "adapter" else EmbedderChoice(model=str(written))
        model, tokenizer = choice.load()
        assert model.pooling == Pooling("mean", True, 256, bidirectional=True)             # the mean, not a decoder's last token
        found = embed(model, tokenizer, WORDS)
        assert (embed(model, tokenizer, WORDS, pooling=Pooling("mean", True, 256)) - found).abs().max() > 0.01
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
        where = ["--model", small_model, "--adapter", written] if method == "adapter" else ["--model", written]
        assert minift("encode", *where, "--data", tmp_path / "texts.jsonl", "--out", tmp_path / f"index-{method}")[0] == 0
        torch.testing.assert_close(torch.from_numpy(numpy.load(tmp_path / f"index-{method}" / "vectors.npy")), found, rtol=0, atol=1e-6)
        assert minift("search", *where, "--index", tmp_path / f"index-{method}", "--query", WORDS[3])[1].splitlines()[1].split()[:2] == ["1.000", "3"]
    status, _, complaint = minift("merge", "--model", small_model, "--adapter", tmp_path / "adapter/adapter", "--out", tmp_path / "merged")
    assert status == 0, complaint
    merged, beside = folders.load(tmp_path / "merged")[0], EmbedderChoice(model=str(small_model), adapter=tmp_path / "adapter/adapter").load()[0]
    assert merged.pooling.bidirectional
    torch.testing.assert_close(embed(merged, tokenizer, WORDS), embed(beside, tokenizer, WORDS), rtol=0, atol=1e-5)


def test_training_sees_the_whole_text_too(learn, small_model, monkeypatch):
    seen, kept = [], Transformer.hidden
    monkeypatch.setattr(Transformer, "hidden", lambda self, *a, **k: seen.append(k.get("bidirectional", False)) or kept(self, *a, **k))
    for options in (["--bidirectional"], ["--bidirectional", "--mini-batch", 3, "--checkpointing"]):
        assert learn(*options, "--overwrite", model=small_model)[0] == 0
        assert seen and all(seen)


def test_a_classifier_learns_beside_the_model_and_is_not_kept(learn, tmp_path):
    status, said, complaint = learn("--loss", "nli", "--lr", 1e-2, "--epochs", 20, "--dims", 6, 24, file="nli", steps=60)
    assert status == 0, complaint
    accuracy = [line["eval_accuracy"] for line in read_metrics(tmp_path / "run") if "eval_accuracy" in line]
    assert accuracy[-1] > 0.9 and re.search(r"accuracy 0\.\d+ -> (0\.9|1\.0)", said)
    assert "accuracy" in (tmp_path / "run/report.md").read_text() and (tmp_path / "run/dims.png").exists()
    with safe_open(tmp_path / "run/adapter/adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "relation" in name]
    assert learn("--loss", "nli", "--method", "full", "--lr", 1e-3, file="nli", out="whole")[0] == 0
    folders.load(tmp_path / "whole/model")                                             # strict: nothing is left over


def test_a_classifiers_part_is_that_of_the_first_numbers_worked_by_hand():
    head = torch.nn.Linear(6, 2)                                                       # u, v and |u - v| of two numbers each
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 20, 3, 40, 5, 60], [0, 0, 0, 0, 0, 0]]))
        head.bias.copy_(torch.tensor([0.0, 15.0]))
    assert part_of(head, 1).tolist() == [[1, 3, 5], [0, 0, 0]]
    u, v = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert related(head, u, v) == [1, 0]                                               # 1 + 6 + 5 = 12 and 1 + 9 + 10 = 20, against 15


def test_labels_are_counted_from_those_to_train_on(files, minift, encoder_folder, tmp_path):
    row = lambda label, i: json.dumps({"sentence1": f"a {i}", "sentence2": "b", "label": label}) + "\n"
    (tmp_path / "train.jsonl").write_text("".join(row("yn"[i % 2], i) for i in range(8)))
    (tmp_path / "new.jsonl").write_text(row("y", 20) + row("maybe", 21))
    (tmp_path / "one.jsonl").write_text("".join(row("y", i) for i in range(8)))
    run = lambda data, valid: minift("embed", "--model", encoder_folder, "--data", data, "--eval-data", valid, "--out", tmp_path / "run", "--rows", 4)
    status, _, complaint = run(tmp_path / "train.jsonl", tmp_path / "new.jsonl")
    assert status == 2 and re.search("new.jsonl, line 2: the label 'maybe' is in no row to train on; there are 'n', 'y'", complaint)
    status, _, complaint = run(tmp_path / "one.jsonl", tmp_path / "one.jsonl")
    assert status == 2 and "rows have the label 'y': there is nothing to tell apart" in complaint
    rows = [Row("", ("a", "b"), None, label, "nli") for label in ("y", "n", "y")]
    made = Rows(rows, lambda texts, side: [[1]] * len(texts), Config(data=("x",), out="y", loss="nli"), ["n", "x", "y"])
    assert made.batch([0, 1, 2]).values.tolist() == [2, 0, 2]


def test_pairs_have_a_picture_of_their_alignment(learn, tmp_path):
    status, said, _ = learn()
    assert status == 0 and re.search(r"alignment \d\.\d+ -> \d\.\d+; uniformity -\d\.\d+ -> -\d\.\d+", said)
    assert (tmp_path / "run/alignment.png").stat().st_size > 5000 and "alignment" in (tmp_path / "run/report.md").read_text()


def test_an_interrupted_run_ends_where_a_whole_one_ends(learn, tmp_path, monkeypatch):
    assert learn("--learn-temperature", "--eval-every", 2, out="whole", steps=6)[0] == 0
    calls, kept = [], EmbedLoss.__call__

    def cut(self, model, batch):
        calls.append(1)
        if model.training and torch.is_grad_enabled() and sum(calls) > 12:
            raise KeyboardInterrupt
        return kept(self, model, batch)

    monkeypatch.setattr(EmbedLoss, "__call__", cut)
    assert learn("--learn-temperature", "--eval-every", 2, steps=6)[0] == 1
    monkeypatch.undo()
    status, said, complaint = learn("--learn-temperature", "--eval-every", 2, "--resume", steps=6)
    assert status == 0, complaint
    whole, pieced = ((tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "run"))
    assert whole == pieced


@pytest.mark.parametrize("what", ["negatives", "teacher"])
def test_what_is_made_before_a_resumed_run_is_made_in_the_arithmetic_of_its_start(learn, small_model, monkeypatch, what):
    options = ("--precision", "auto", *(("--negatives", 2) if what == "negatives" else ("--loss", "distill", "--teacher", small_model)))
    rounded, honest = [], embed_teacher.embed
    monkeypatch.setattr(embed_teacher, "embed", lambda *given, **named: rounded.append(torch.is_autocast_enabled("cpu")) or honest(*given, **named))
    for arithmetic, more in (("bf16", ()), ("fp32", ("--resume",))):                    # another process, which measures something else
        monkeypatch.setattr(precision, "_recalled", {})
        monkeypatch.setattr(precision, "fastest", lambda device: arithmetic)
        rounded.clear()
        status, _, complaint = learn(*options, *more)
        assert status == 0 and all(rounded) and rounded, complaint


@pytest.mark.parametrize("options, file, text", [
    (["--loss", "cosent"], "pairs", "--loss cosent learns from scored rows, and these are pairs: take infonce, symmetric, triplet"),
    (["--margin", 0.2], "pairs", "--margin is no option of --loss infonce: leave it out"),
    (["--learn-temperature"], "labelled", "--learn-temperature is no option of --loss batch-hard"),
    (["--negatives", 2], "texts", "--negatives are looked for where rows are pairs"),
    (["--loss", "triplet"], "pairs", "--loss triplet wants one negative in every row"),
    (["--rows", 500], "pairs", "a batch cannot be larger than the data"),
    (["--rows", 1], "pairs", "--rows is 1: wanted 2 or more"),
    (["--dims", 4, 99], "pairs", "--dims 4 99: wanted 1 to 24"),
    (["--temperature", 0], "pairs", "want more than 0"),
    (["--loss", "online", "--score-range", 0, 9], "scored", "wants scores of 0 .apart. and 1 .alike."),
    (["--bidirectional"], "pairs", "takes a decoder's causal mask off, and .* is an encoder, which has none: leave it out"),
    (["--loss", "nli", "--mini-batch", 2], "nli", "--mini-batch is for losses that look at a whole batch"),
    (["--compile"], "pairs", "--compile has nothing to gain"),
])    # fmt: skip
def test_what_cannot_be_is_refused_before_there_is_a_folder(learn, tmp_path, options, file, text):
    status, _, complaint = learn(*options, file=file)
    assert status == 2 and not (tmp_path / "run").exists()
    assert re.search(text, complaint), complaint


def test_what_looks_backwards_cannot_look_ahead(learn, small_tokenizer, tmp_path):
    shape = dict(vocab_size=small_tokenizer.vocab_size)
    for name in ("mistral", "bloom"):
        with torch.random.fork_rng():
            save(Transformer(dataclasses.replace(CONFIGS[name], **shape)), small_tokenizer, tmp_path / name)
        status, _, complaint = learn("--bidirectional", model=tmp_path / name)
        assert status == 2 and "has ALiBi or a sliding window, which look backwards" in complaint


def test_simcse_needs_dropout_and_labels_need_two(learn, small_model, minift, tmp_path, encoder_folder):
    status, _, complaint = learn(file="texts", model=small_model)
    assert status == 2 and "under other dropout, and this model has none" in complaint
    (tmp_path / "one.jsonl").write_text("".join(json.dumps({"text": f"a {i}", "label": "b"}) + "\n" for i in range(20)))
    status, _, complaint = minift("embed", "--model", encoder_folder, "--data", tmp_path / "one.jsonl", "--out", tmp_path / "run", "--rows", 4)
    assert status == 2 and "rows have the label 'b': there is nothing to tell apart" in complaint
