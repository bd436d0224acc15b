"""minift classify: heads on features, every method, every kind of answer, few-shot, SetFit, reports, refusals."""

import dataclasses
import json

import numpy
import pytest
import torch

from minift.classify import load
from minift.data.classified import Classified
from minift.errors import InputError
from minift.folder import save
from minift.models.encoder import Encoder
from minift.models.pooling import Pooling
from minift.recipes.classify_features import setfit_pairs
from minift.recipes.classify_report import baseline
from minift.recipes.classify_shots import drawn, spread
from minift.recipes.embed import EmbedLoss
from minift.recipes.methods import METHODS
from minift.train.log import read_metrics
from tests.models.test_encoder import ENCODERS

COLOURS = ("red", "green", "blue")


def rows(count: int) -> list[dict]:
    """Texts of three kinds, that differ in a word; two fields say what is asked of one and of two texts."""
    nouns = ("class", "module", "string", "list", "object")
    return [{"text": f"{COLOURS[i % 3]} {nouns[i % 5]} number {i}", "label": COLOURS[i % 3]} for i in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    single = rows(90)
    pair = lambda row: {"sentence1": row["text"], "sentence2": f"a {COLOURS[len(row['text']) % 3]} one"}
    kinds = {
        "single": single,
        "multi": [{"text": row["text"], "labels": [row["label"], *(["odd"] if i % 2 else [])]} for i, row in enumerate(single)],
        "regression": [{"text": row["text"], "score": 1000.0 + 50 * COLOURS.index(row["label"])} for row in single],
        "pairs": [{**pair(row), "label": "same" if row["label"] in pair(row)["sentence2"] else "other"} for row in single],
        "pair scores": [{**pair(row), "score": i % 3} for i, row in enumerate(single)],
    }
    for name, own in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


@pytest.fixture(scope="module")
def encoder_folder(small_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(dataclasses.replace(ENCODERS["bert"], vocab_size=small_tokenizer.vocab_size, max_positions=64, top="pooler"))
    model.pooling = Pooling("mean", True, 64)
    save(model, small_tokenizer, folder)
    return folder


@pytest.fixture
def classify(minift, files, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))

    def run(*options, file="single", out="run", model=None):
        return minift("classify", "--model", model or encoder_folder, "--data", files / f"{file}.jsonl", "--out", tmp_path / out,
                      "--held-out", 0.3, "--precision", "fp32", *options)    # fmt: skip

    return run


def held_out(folder) -> dict[str, float]:
    """report.md's first table: the classifier's column."""
    lines = (folder / "report.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: float(value) for name, value, other in (line for line in cells if len(line) == 3) if name.islower() and value[:1].isdigit()}


@pytest.mark.parametrize("head", ["linear", "mlp", "knn"])
def test_a_head_on_features_learns_and_says_the_same_from_its_folder(classify, head, tmp_path):
    status, said, complaint = classify("--head", head)
    assert status == 0, complaint
    assert held_out(tmp_path / "run")["accuracy"] > (0.6 if head == "knn" else 0.9) and "always the most frequent label" in (tmp_path / "run/report.md").read_text()
    said_by = load(tmp_path / "run").predict(["green class number 10", "blue module number 11"])
    assert [one["label"] for one in said_by][: 1 if head == "knn" else 2] == ["green", "blue"][: 1 if head == "knn" else 2] and sum(said_by[0]["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("file", ["multi", "regression", "pairs", "pair scores"])
@pytest.mark.parametrize("how", [(), ("--head", "mlp"), ("--head", "knn"), ("--method", "full", "--max-steps", 4), ("--method", "lora", "--max-steps", 4)])
def test_every_kind_of_answer_goes_with_every_way_to_learn(classify, file, how, tmp_path):
    status, said, complaint = classify(*how, file=file)
    assert status == 0, complaint
    classifier = load(tmp_path / "run")
    assert classifier.problem == {"multi": "multi", "pairs": "single"}.get(file, "regression") and classifier.sides == (2 if "pair" in file else 1)
    text = ("red list number 3", "a red one") if "pair" in file else "red list number 3"
    said = classifier.predict([text])[0]
    assert {"multi": "labels", "pairs": "label"}.get(file, "score") in said
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= ({"scatter.png"} if "score" in said else {"confusion.png"})


def test_several_labels_and_numbers_are_learned(classify, tmp_path):
    assert classify(file="multi", out="m")[0] == 0 and classify(file="regression", out="r")[0] == 0
    assert held_out(tmp_path / "m")["f1_micro"] > 0.7
    numbers = held_out(tmp_path / "r")
    assert numbers["spearman"] > 0.8 and numbers["mae"] < 15                # of 1000 to 1100, in their own unit


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("fusion", "loftq", "tokens")])
def test_every_method_trains_a_classifier_and_its_folder_gives_the_reported_scores(classify, files, method, tmp_path, minift):
    status, said, complaint = classify("--method", method, "--max-steps", 6, "--rows", 16, *(["--options", "length", 3] if "p" in method[:2] and METHODS[method].idea.count("virtual") else []))
    assert status == 0, complaint
    written = tmp_path / "run" / ("model" if METHODS[method].whole else "adapter")
    assert json.loads((written / "classifier.json").read_text())["labels"] == sorted(COLOURS)
    best = min((line for line in read_metrics(tmp_path / "run") if "eval_loss" in line), key=lambda line: line["eval_loss"])
    assert held_out(tmp_path / "run")["accuracy"] == pytest.approx(best["eval_accuracy"], abs=1e-4)
    valid = [json.loads(line) for line in (files / "single.jsonl").read_text().splitlines()]
    classifier = load(tmp_path / "run")
    said = classifier.predict([row["text"] for row in valid])
    mistakes = (tmp_path / "run/report.md").read_text().partition("clearest mistakes")[2]
    wrong = {row["text"] for row, one in zip(valid, said) if one["label"] != row["label"]}
    for line in mistakes.splitlines():
        if line.startswith("| single.jsonl"):
            assert line.split("|")[2].strip() in wrong


def test_fine_tuning_learns_and_transformers_names_are_in_the_folder(classify, tmp_path):
    status, said, complaint = classify("--method", "full", "--lr", 3e-3, "--epochs", 12, "--rows", 8)
    assert status == 0, complaint
    assert held_out(tmp_path / "run")["accuracy"] > 0.9
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"} and config["problem_type"] == "single_label_classification"
    (tmp_path / "run/model/classifier.json").unlink()                       # the names are the checkpoint's own
    assert load(tmp_path / "run/model").predict(["red list number 77"])[0]["label"] == "red"


@pytest.mark.parametrize("method", ["features", "lora"])
def test_a_decoder_can_be_the_body(classify, small_model, method, tmp_path):
    status, said, complaint = classify("--method", method, *(["--max-steps", 3] if method == "lora" else []), model=small_model)
    assert status == 0, complaint
    assert set(load(tmp_path / "run").predict(["red"])[0]["probabilities"]) == set(COLOURS)


def test_a_classifier_goes_on_with_its_own_labels_and_no_others(classify, files, tmp_path, minift):
    assert classify("--method", "full", "--max-steps", 2)[0] == 0
    first = tmp_path / "run/model"
    assert classify("--method", "full", "--max-steps", 2, out="again", model=first)[0] == 0
    status, _, complaint = classify("--method", "full", file="pairs", out="other", model=first)
    assert status == 2 and "a classifier for other labels (blue, green, red)" in complaint


def test_the_kept_weights_are_those_of_the_least_loss_or_of_the_best_score(classify, files, tmp_path):
    """Labels of which every fourth is wrong: the loss is least early, at little certainty."""
    noisy = [{**row, "label": COLOURS[(COLOURS.index(row["label"]) + (i % 4 == 0)) % 3]} for i, row in enumerate(rows(90))]
    (files / "noisy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in noisy))
    kept = {}
    for best in ("loss", "score"):
        assert classify("--method", "full", "--lr", 1e-2, "--epochs", 12, "--rows", 8, "--best", best, out=best, file="noisy")[0] == 0
        kept[best] = held_out(tmp_path / best)
    lines = [line for line in read_metrics(tmp_path / "score") if "eval_loss" in line]
    least = min(lines, key=lambda line: line["eval_loss"])
    assert kept["loss"]["accuracy"] == pytest.approx(least["eval_accuracy"], abs=1e-4)
    most = max(line["eval_accuracy"] for line in lines)
    assert kept["score"]["accuracy"] == pytest.approx(most, abs=1e-4) and most > least["eval_accuracy"]


def test_a_classifier_without_names_goes_on_with_numbered_labels_in_their_order(classify, files, tmp_path):
    numbered = [{**row, "label": COLOURS.index(row["label"])} for row in rows(90)]
    (files / "numbered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
    assert classify("--method", "full", "--lr", 3e-3, "--epochs", 12, "--rows", 8, file="numbered")[0] == 0
    first = tmp_path / "run/model"
    config = json.loads((first / "config.json").read_text())
    names = {key: f"LABEL_{key}" for key in config.pop("id2label")}
    (first / "config.json").write_text(json.dumps({**config, "id2label": names, "label2id": {name: int(key) for key, name in names.items()}}))
    assert classify("--method", "full", "--max-steps", 1, "--lr", 1e-6, out="again", model=first, file="numbered")[0] == 0
    assert held_out(tmp_path / "again")["accuracy"] > 0.9
    status, _, complaint = classify("--method", "full", "--max-steps", 1, out="other", model=first)
    assert status == 2 and "3 without names, which only the labels 0 to 2 fit" in complaint


def test_a_rounded_encoder_trains_with_a_pooler_of_full_weights(classify, tmp_path):
    status, _, complaint = classify("--method", "lora", "--quantize", "nf4", "--max-steps", 2)
    assert status == 0, complaint
    assert load(tmp_path / "run").predict(["red list"])[0]["label"] in COLOURS


def test_an_adapter_is_asked_from_anywhere(classify, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(encoder_folder.parent)
    assert classify("--method", "lora", "--max-steps", 1, model=encoder_folder.name)[0] == 0
    monkeypatch.chdir("/")
    assert load(tmp_path / "run").predict(["red list"])[0]["label"] in COLOURS


def test_the_price_of_large_weights_is_chosen_so_that_a_head_does_not_lose_to_the_mean(classify, files, tmp_path):
    dice = numpy.random.default_rng(0)
    noise = [{"text": " ".join(dice.choice(["list", "class", "string", "object", "name", "of", "the", "value"], 6)), "score": float(dice.normal())} for _ in range(150)]
    (files / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in noise))
    assert classify(file="noise", out="chosen")[0] == 0 and classify("--l2", 1e-4, file="noise", out="loose")[0] == 0
    mae = {out: held_out(tmp_path / out)["mae"] for out in ("chosen", "loose")}
    plain = float(next(line for line in (tmp_path / "chosen/report.md").read_text().splitlines() if line.startswith("| mae")).split("|")[3])
    assert mae["chosen"] < 1.05 * plain < mae["loose"]


def test_labels_keep_the_order_of_the_classifier_that_goes_on(classify, encoder_folder, tmp_path, small_tokenizer):
    from minift import folder as folders

    model, tokenizer = folders.load(encoder_folder, scores=3)
    model.config = dataclasses.replace(model.config, label_names=("red", "blue", "green"), problem="single")
    model.score.bias.data = torch.tensor([50.0, 0.0, 0.0])                  # it says red, whatever it reads
    folders.save(model, tokenizer, tmp_path / "first")
    assert classify("--method", "full", "--max-steps", 1, "--lr", 1e-6, model=tmp_path / "first")[0] == 0
    assert load(tmp_path / "run").predict(["blue list"])[0]["label"] == "red"


@pytest.mark.parametrize("body", ["encoder", "decoder"])
def test_merging_gives_a_checkpoint_that_says_the_same_with_the_same_names(classify, encoder_folder, small_model, minift, tmp_path, body):
    base = encoder_folder if body == "encoder" else small_model
    assert classify("--method", "lora", "--max-steps", 4, model=base)[0] == 0
    status, _, complaint = minift("merge", "--model", base, "--adapter", tmp_path / "run/adapter", "--out", tmp_path / "whole")
    assert status == 0, complaint
    texts = ["red list number 3", "blue object"]
    torch.testing.assert_close(load(tmp_path / "whole").scores(texts), load(tmp_path / "run").scores(texts), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "whole/config.json").read_text())
    assert list(config["id2label"].values()) == sorted(COLOURS) and config["problem_type"] == "single_label_classification"


def test_features_are_computed_once_and_the_second_head_is_trained_from_disk(classify, tmp_path):
    said = classify(out="one")[1]
    assert "computed in" in said and len(list((tmp_path / "kept/minift/features").glob("*.npy"))) == 2
    assert "read from" in classify("--head", "knn", out="two")[1]
    assert "read from" not in classify("--cache", "none", out="three")[1]
    assert "computed in" in classify("--pooling", "max", out="four")[1]     # other numbers, another file


def test_a_head_on_features_refuses_another_model_than_its_own(classify, encoder_folder, tmp_path, small_tokenizer, minift):
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(encoder_folder, moved)
    assert classify(model=moved)[0] == 0
    from minift import folder as folders

    model, tokenizer = folders.load(moved)
    model.embed.weight.data[5] += 1
    folders.save(model, tokenizer, moved, overwrite=True)
    status, _, complaint = minift("predict", tmp_path / "run", "--data", tmp_path / "none.jsonl")
    (tmp_path / "text.txt").write_text("red list\n")
    status, _, complaint = minift("predict", tmp_path / "run", "--data", tmp_path / "text.txt")
    assert status == 2 and "features of another model" in complaint and "--base" in complaint
    moved.rename(tmp_path / "gone")
    status, _, complaint = minift("predict", tmp_path / "run", "--data", tmp_path / "text.txt")
    assert status == 2 and "which is not there: say where it is now (--base)" in complaint
    assert minift("predict", tmp_path / "run", "--data", tmp_path / "text.txt", "--base", encoder_folder)[0] == 0


def test_an_adapter_of_embed_makes_the_features(classify, files, minift, encoder_folder, tmp_path):
    assert minift("embed", "--model", encoder_folder, "--data", files / "single.jsonl", "--out", tmp_path / "e", "--max-steps", 2, "--rows", 8, "--held-out", 0.4)[0] == 0
    assert classify("--adapter", tmp_path / "e/adapter")[0] == 0
    assert load(tmp_path / "run").predict(["red list number 2"])[0]["label"] in COLOURS
    plain = tmp_path / "plain"
    assert classify(out="plain")[0] == 0
    a, b = (json.loads((folder / "classifier/classifier.json").read_text())["features"]["fingerprint"] for folder in (tmp_path / "run", plain))
    assert a != b


def test_setfit_draws_labels_together_and_its_model_lies_in_the_run(classify, tmp_path, encoder_folder):
    status, said, complaint = classify("--method", "setfit", "--pairs", 2, "--max-steps", 5, "--rows", 8, "--lr", 1e-3)
    assert status == 0, complaint
    assert (tmp_path / "run/embedder/model/model.safetensors").exists() and (tmp_path / "run/pairs.jsonl").exists()
    (tmp_path / "run").rename(tmp_path / "elsewhere")                       # nothing in it names the place
    assert load(tmp_path / "elsewhere").predict(["blue object number 4"])[0]["label"] == "blue"


@pytest.mark.parametrize("shots", [(), ("--shots", 2, 4, "--draws", 2)], ids=str)
def test_an_interrupted_setfit_is_no_classifier_and_says_that_it_cannot_go_on(classify, tmp_path, monkeypatch, shots):
    honest = EmbedLoss.__call__

    def cut(self, model, batch):
        if torch.is_grad_enabled():
            raise KeyboardInterrupt
        return honest(self, model, batch)

    monkeypatch.setattr(EmbedLoss, "__call__", cut)
    status, said, _ = classify("--method", "setfit", "--pairs", 2, "--max-steps", 5, "--rows", 8, *shots)
    assert status == 1 and "run cannot be resumed" in said and said.strip().endswith("start again with --overwrite")
    assert not list((tmp_path / "run").rglob("classifier"))
    assert list((tmp_path / "run").glob("shots-*/*")) == ([tmp_path / "run/shots-2/draw-0"] if shots else [])


def test_setfits_pairs_have_one_label_or_two_as_their_score_says():
    some = [Classified("", (f"{label} {i}",), label) for label, count in (("a", 3), ("b", 2), ("c", 1)) for i in range(count)]
    pairs = setfit_pairs(some, 4, seed=0)
    assert len(pairs) == 4 * 5 + 4 * 6                                      # c's only text has no mate
    for pair in pairs:
        assert (pair["sentence1"][0] == pair["sentence2"][0]) == (pair["score"] == 1.0) and pair["sentence1"] != pair["sentence2"]
    assert pairs != setfit_pairs(some, 4, seed=1) and pairs == setfit_pairs(some, 4, seed=0)


def test_few_shot_tells_mean_and_spread_of_several_draws(classify, tmp_path):
    status, said, complaint = classify("--shots", 1, 4, "--draws", 3)
    assert status == 0, complaint
    report = (tmp_path / "run/report.md").read_text()
    found = [held_out(tmp_path / f"run/shots-4/draw-{i}")["accuracy"] for i in range(3)]
    line = next(line for line in report.splitlines() if line.startswith("| 4 |"))
    assert f"{numpy.mean(found):.4f} ± {numpy.std(found, ddof=1):.4f}" in line and (tmp_path / "run/shots.png").exists()
    assert (tmp_path / "run/shots-4/draw-0/classifier").is_dir() and not (tmp_path / "run/shots-4/draw-1/classifier").exists()
    with pytest.raises(InputError, match="is a few-shot run: name one of its classifiers"):
        load(tmp_path / "run")
    assert "12 to train on" in (tmp_path / "run/shots-4/draw-0/report.md").read_text()


def test_draws_differ_and_a_small_one_is_part_of_a_large_one():
    some = [Classified(str(i), (f"text {i}",), "ab"[i % 2]) for i in range(40)]
    small, large = drawn(some, ["a", "b"], 2, 0), drawn(some, ["a", "b"], 5, 0)
    assert [row.answer for row in small] == ["a", "a", "b", "b"] and {row.where for row in small} <= {row.where for row in large}
    assert small != drawn(some, ["a", "b"], 2, 1) and spread([0.5, 0.7]) == "0.6000 ± 0.1414" and spread([0.5]) == "0.5000"


def test_the_baseline_always_says_the_most_frequent_label():
    found = baseline("single", torch.tensor([0, 1, 1, 2]), ["a", "b", "c"], torch.tensor([1, 1, 0, 2, 1]))
    assert found["accuracy"] == 0.5 and found["auroc"] == 0.5
    assert baseline("regression", torch.tensor([0.0, 4.0]), ["score"], torch.tensor([1.0, 3.0]))["mae"] == 2.0
    assert baseline("multi", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ["a", "b"], torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))["accuracy"] == 0.5


def test_class_weights_bring_out_a_rare_label(classify, tmp_path, files):
    few = [row for i, row in enumerate(rows(90)) if row["label"] != "red" or i % 15 == 0]
    noisy = [{**row, "text": f"number {i}"} for i, row in enumerate(few)]   # nothing to go by: what is said is the prior
    (files / "rare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in noisy))
    assert classify("--l2", 1.0, file="rare", out="plain")[0] == 0 and classify("--l2", 1.0, "--class-weights", "balanced", file="rare", out="even")[0] == 0
    texts = [f"number {i}" for i in range(100, 140)]
    share = lambda out: numpy.mean([one["probabilities"]["red"] for one in load(tmp_path / out).predict(texts)])
    assert share("even") > 2 * share("plain")


def test_label_smoothing_makes_it_less_certain(classify, tmp_path):
    assert classify(out="sure")[0] == 0 and classify("--label-smoothing", 0.3, out="humble")[0] == 0
    sure, humble = (load(tmp_path / out).predict(["red list number 3"])[0]["probability"] for out in ("sure", "humble"))
    assert humble < 0.9 < sure + 0.1 and humble < sure


def test_patience_stops_a_fine_tuning_that_gains_nothing(classify, tmp_path):
    assert classify("--method", "lora", "--lr", 1e-12, "--warmup", 0, "--epochs", 9, "--patience", 2)[0] == 0
    assert len([line for line in read_metrics(tmp_path / "run") if "eval_loss" in line]) < 9


def test_a_run_goes_on_where_it_stopped(classify, tmp_path):
    options = ("--method", "lora", "--save-every", 2, "--eval-every", 100, "--rows", 16)
    assert classify(*options, "--max-steps", 6, out="whole")[0] == 0
    assert classify(*options, "--max-steps", 6, out="parts")[0] == 0
    again = classify(*options, "--max-steps", 6, "--resume", out="parts")
    assert again[0] == 0, again[2]
    a, b = (load(tmp_path / out).scores(["red list", "green class"]) for out in ("whole", "parts"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def said_of(tmp_path, minift, encoder_folder, rows, *options) -> str:
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = minift("classify", "--model", encoder_folder, "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "no", *options)
    assert status == 2 and not (tmp_path / "no").exists()
    return complaint


@pytest.mark.parametrize(
    "rows, options, complaint",
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}] * 5, (), "the label 'x': there is nothing to tell apart"),
        ([{"quark": "a", "label": "x"}], (), "found the fields quark, label. Wanted: text, or sentence1 and sentence2"),
        ([{"text": "a"}], (), "one of label, labels, score"),
        ([{"text": "a", "label": ""}], (), "the label is ''"),
        ([{"text": "a", "score": "much"}], (), "the score is 'much': wanted a number"),
        ([{"text": " ", "label": "x"}], (), "each has an empty text"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--method", "lora", "--head", "knn"), "--head is for a head on features"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--head", "knn", "--l2", 1), "--head knn learns nothing"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--profile",), "--method features has none of its own"),
        ([{"text": f"t{i}", "score": i} for i in range(30)], ("--label-smoothing", 0.1), "--label-smoothing is for rows with one label"),
        ([{"text": f"t{i}", "score": i} for i in range(30)], ("--class-weights", "balanced"), "--class-weights are for labels"),
        ([{"text": f"t{i}", "score": i} for i in range(30)], ("--shots", 2), "--shots are rows of each label"),
        ([{"text": f"t{i}", "score": i} for i in range(30)], ("--method", "setfit"), "--method setfit draws pairs by their one label"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--shots", 100), "has"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--head", "knn", "--neighbours", 99), "--neighbours 99 of"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--head", "knn", "--shots", 2, 4), "--neighbours 5 of 4 training rows"),
        ([{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)], ("--resume",), "--resume: a head on features"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_there_is_a_folder(rows, options, complaint, tmp_path, minift, encoder_folder):
    assert complaint in said_of(tmp_path, minift, encoder_folder, rows, *options)


def test_a_label_that_training_never_shows_is_refused_by_its_name_and_place(tmp_path, minift, encoder_folder, files):
    (tmp_path / "new.jsonl").write_text('{"text": "red list", "label": "red"}\n{"text": "pink list", "label": "pink"}\n')
    status, _, complaint = minift("classify", "--model", encoder_folder, "--data", files / "single.jsonl", "--eval-data", tmp_path / "new.jsonl", "--out", tmp_path / "no")
    assert status == 2 and "'pink'" in complaint and "new.jsonl, line 2" in complaint and not (tmp_path / "no").exists()
