"""A classifier's folder: every kind of head and every method comes back with its scores, its labels' names, and refuses what is not its own."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minift import folder as folders
from minift import peft
from minift.classify.classifier import FILE, HEAD, Classifier, embedder, load, save_head, write_names
from minift.classify.features import features
from minift.classify.heads import make
from minift.errors import InputError
from minift.losses.classification import multi_label, single_label, squared_error
from minift.models.encoder import Encoder
from minift.models.families import from_hf, to_hf
from minift.models.pooling import Pooling
from minift.models.scorer import Scorer
from minift.recipes.methods import method_config
from tests.models.small import CONFIGS, randomised, tokens
from tests.models.test_encoder import ENCODERS
from tests.peft.test_head import KINDS, OPTIONS

NAMES = ["blau", "grün", "rot"]
WORDS = ("class", "module", "string", "list", "object", "name", "value")
TEXTS = [f"a {WORDS[i % 7]} of {WORDS[i * i % 5]} {i}" for i in range(23)]
EVERY = [(method, "bert") for method in KINDS] + [(method, name) for name in ("roberta", "distilbert") for method in ("lora", "head", "full", "bitfit", "prompt")]
PAIRS = [(text, other) for text, other in zip(TEXTS, TEXTS[5:])]


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def encoder(family: str, tokenizer, seed: int = 0, **fields) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(Encoder(dataclasses.replace(ENCODERS[family], vocab_size=tokenizer.vocab_size, max_positions=64, **fields)), seed)


@pytest.fixture
def base(small_tokenizer, tmp_path):
    """The folder of an encoder without a head, that says how it embeds."""
    model = encoder("bert", small_tokenizer)
    model.pooling = Pooling("mean", True, 40, {"query": "find "})
    folders.save(model, small_tokenizer, tmp_path / "base")
    return tmp_path / "base"


def on_features(base, kind: str = "linear", problem: str = "single", pairs: bool = False, **more) -> Classifier:
    """A trained head on the features of `base`."""
    rows = PAIRS if pairs else [(text,) for text in TEXTS]
    model, tokenizer = embedder(str(base), None, None, "float32", None, "cpu")
    found = features(model, tokenizer, rows, prompt=more.get("prompt")).vectors
    labels = ["score"] if problem == "regression" else NAMES
    y = torch.arange(len(rows)) % 3
    answers = {"single": y, "multi": torch.stack([y == 0, y != 1, y == 2], 1).float(), "regression": 10.0 * y}[problem]
    loss = {"single": single_label, "multi": multi_label, "regression": squared_error}[problem]
    head = make(kind, found.shape[1], len(labels), problem, hidden=9, k=3)
    head.fit(found, answers) if kind == "knn" else head.fit(found, answers, loss, 1e-2)
    return Classifier(problem, labels, 2 if pairs else 1, model, tokenizer, 64, head.eval(), **more)


def written(classifier: Classifier, base, folder, adapter=None, **loaded):
    kind = {"LinearHead": "linear", "MLPHead": "mlp", "NearestHead": "knn"}[type(classifier.head).__name__]
    width = classifier.head.features.shape[1] if kind == "knn" else len(classifier.head.standardized.mean)
    shape = dict(kind=kind, width=width, outputs=len(classifier.labels), problem=classifier.problem, hidden=9, k=3)
    save_head(classifier, folder, shape, str(base), adapter, {"dtype": "float32", "quantize": None, **loaded})
    return folder


# ---- heads on features


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "knn"])
def test_every_kind_of_head_comes_back_with_its_scores(kind, problem, pairs, base, tmp_path):
    one = on_features(base, kind, problem, pairs)
    again = load(written(one, base, tmp_path / "head"))
    asked = [tuple(reversed(pair)) for pair in PAIRS] if pairs else ["a new list", *TEXTS]
    assert torch.equal(again.scores(asked), one.scores(asked)) and one.scores(asked).std() > 0.05
    assert (again.problem, again.labels, again.sides, again.precision) == (problem, one.labels, 2 if pairs else 1, "fp32")
    assert again.predict(asked[:1]) == one.predict(asked[:1])


def test_a_heads_model_prompt_pooling_and_adapter_come_back(base, tmp_path):
    model, tokenizer = folders.load(base)
    peft.attach(model, peft.LoRA(rank=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    peft.save(model, tmp_path / "adapter")
    one = on_features(base, prompt="query")
    plain = one.scores(TEXTS)
    one.model = model
    model.pooling = Pooling("max", False, 12)
    again = load(written(one, base, tmp_path / "head", str(tmp_path / "adapter")))
    assert again.model.pooling == Pooling("max", False, 12) and again.prompt == "query"
    close(again.scores(TEXTS), one.scores(TEXTS))
    assert (again.scores(TEXTS) - plain).abs().max() > 0.05
    again.prompt = None
    assert (again.scores(TEXTS) - one.scores(TEXTS)).abs().max() > 0.01


def test_a_model_inside_the_run_is_found_wherever_the_run_lies(base, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    one = on_features(base)
    base.rename(run / "embedder")
    written(one, "../embedder", run / "classifier")
    run.rename(tmp_path / "moved")
    assert torch.equal(load(tmp_path / "moved").scores(TEXTS), one.scores(TEXTS))


def test_a_head_refuses_another_model_than_its_own(base, tmp_path, small_tokenizer):
    folder = written(on_features(base), base, tmp_path / "head")
    other = encoder("bert", small_tokenizer, seed=1)
    other.pooling = Pooling("mean", True, 40, {"query": "find "})
    folders.save(other, small_tokenizer, tmp_path / "other")
    with pytest.raises(InputError, match="its head reads features of another model than .*other is now: name the one it was trained on"):
        load(folder, base=str(tmp_path / "other"))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="which is not there: say where it is now"):
        load(folder)
    assert load(folder, base=str(tmp_path / "elsewhere")).labels == NAMES


@pytest.mark.parametrize("damage", ["missing", "cut", "another head's"])
def test_a_head_that_is_missing_damaged_or_anothers_is_refused(damage, base, tmp_path):
    folder = written(on_features(base), base, tmp_path / "head")
    if damage == "missing":
        (folder / HEAD).unlink()
    elif damage == "cut":
        (folder / HEAD).write_bytes((folder / HEAD).read_bytes()[:-9])
    else:
        numbers = load_file(folder / HEAD)
        save_file({**numbers, "out.weight": numbers["out.weight"][:, :5].contiguous()}, folder / HEAD)
    with pytest.raises(InputError, match="head.safetensors is missing, damaged, or another head's .*: train the head again"):
        load(folder)


def test_features_are_kept_where_the_classifier_is_told_to(base, tmp_path):
    one = on_features(base)
    assert torch.equal(one.scores(TEXTS, cache=tmp_path / "kept"), one.scores(TEXTS)) and len(list((tmp_path / "kept").iterdir())) == 1
    assert torch.equal(one.scores(TEXTS, cache=tmp_path / "kept"), one.scores(TEXTS))


# ---- what it says


def test_what_is_said_of_scores_worked_by_hand(base):
    one = on_features(base)
    said = one.said(torch.tensor([0.25, 0.5, 0.25]).log())
    assert said["label"] == "grün" and said["probability"] == pytest.approx(0.5) and said["probabilities"] == pytest.approx(dict(zip(NAMES, (0.25, 0.5, 0.25))))
    several = dataclasses.replace(one, problem="multi").said(torch.tensor([0.0, 1e-3, -5.0]))
    assert several["labels"] == ["grün"] and several["probabilities"]["blau"] == 0.5
    assert dataclasses.replace(one, problem="regression").said(torch.tensor([-7.5])) == {"score": -7.5}


def test_predictions_are_the_rows_own_whatever_is_asked_with_them(base):
    one = on_features(base)
    every = one.predict(TEXTS)
    for text, said in zip(TEXTS[:4], every):
        assert one.predict([text])[0]["probabilities"] == pytest.approx(said["probabilities"], abs=1e-5)
    assert one.predict([]) == [] and one.scores([]).shape == (0, 3)


def test_rows_it_cannot_read_are_refused(base):
    one, two = on_features(base), on_features(base, pairs=True)
    with pytest.raises(InputError, match="row 1 has 2 texts, and this classifier reads 1"):
        one.scores(["a", ("a", "b")])
    with pytest.raises(InputError, match="row 0 has 1 texts, and this classifier reads 2"):
        two.scores(["a"])
    with pytest.raises(InputError, match="row 2 has an empty text"):
        one.scores(["a", "b", " \n"])
    with pytest.raises(InputError, match="row 0 has an empty text"):
        two.scores([("a", "")])
    with pytest.raises(InputError, match="row 0 has 3 texts, and this classifier reads 1 or 2"):
        dataclasses.replace(one, sides=0).scores([("a", "b", "c")])


# ---- heads in the model


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_a_checkpoint_keeps_names_and_problem_with_and_without_our_file(problem, family, small_tokenizer, tmp_path):
    names = ["score"] if problem == "regression" else NAMES
    model = encoder(family, small_tokenizer, top="pooler", labels=len(names), label_names=tuple(names), problem=problem)
    one = Classifier(problem, names, 2, model, small_tokenizer, 17)
    folders.save(model, small_tokenizer, tmp_path / "run" / "model")
    for ours in (False, True):
        if ours:
            write_names(tmp_path / "run" / "model", one)
        again = load(tmp_path / "run" / "model") if not ours else load(tmp_path / "run")
        assert (again.problem, again.labels, again.sides, again.max_length) == (problem, names, 2 if ours else 0, 17 if ours else 512)
        assert torch.equal(again.scores(PAIRS), one.scores(PAIRS) if ours else dataclasses.replace(one, max_length=512).scores(PAIRS))
    assert again.model.config == model.config and not any(p.requires_grad for p in again.model.parameters())


@pytest.mark.parametrize("method, family", EVERY)
def test_trap26_pooler_and_head_are_saved_with_every_method(method, family, small_tokenizer, tmp_path):
    body = lambda: encoder(family, small_tokenizer, top="none" if family != "bert" else "pooler")
    folders.save(body(), small_tokenizer, tmp_path / "base")
    model = Encoder.on(body(), labels=3)
    torch.manual_seed(0)
    peft.attach(model, method_config(method, {}, OPTIONS.get(method, {})))
    moved = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    for part in ("pooler", "score"):
        assert {name.rpartition(".")[2] for name in moved if name.startswith(f"{part}.")} == {"weight", "bias"}, moved
    one = Classifier("single", NAMES, 1, model.eval(), small_tokenizer, 64)
    peft.save(model, tmp_path / "run" / "adapter", base_model=str(tmp_path / "base"))
    write_names(tmp_path / "run" / "adapter", one)
    close(load(tmp_path / "run").scores(TEXTS), one.scores(TEXTS), 2e-5)
    other = Encoder.on(body(), labels=3, seed=5)                             # other fresh heads: the saved ones have to replace them
    fresh = dataclasses.replace(one, model=other).scores(TEXTS)
    peft.load(other, tmp_path / "run" / "adapter")
    close(dataclasses.replace(one, model=other.eval()).scores(TEXTS), one.scores(TEXTS), 2e-5)
    assert (fresh - one.scores(TEXTS)).abs().max() > 0.05
    if method != "full":                                                    # it trains the base's own numbers
        with peft.disabled(other):
            close(dataclasses.replace(one, model=other).scores(TEXTS), fresh)


@pytest.mark.parametrize("method, family", EVERY)
def test_pooler_and_head_learn_with_every_method(method, family):
    model = Encoder.on(randomised(Encoder(dataclasses.replace(ENCODERS[family], dropout=0.0))), labels=3)
    peft.attach(model, method_config(method, {}, OPTIONS.get(method, {})))
    model(tokens(2, 7)).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and name.startswith(("pooler", "score"))}
    assert len(grads) == 4 and all(grad is not None and grad.any() for grad in grads.values())


@pytest.mark.parametrize("family, saved", [("bert", ["pooler", "classifier"]), ("roberta", ["classifier"]), ("distilbert", ["pre_classifier", "classifier"])])
def test_the_file_says_it_as_peft_does(family, saved, tmp_path):
    model = Encoder.on(randomised(Encoder(ENCODERS[family])), labels=3)
    peft.attach(model, peft.LoRA(rank=2))
    peft.save(model, tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["task_type"] == "SEQ_CLS" and fields["modules_to_save"] == saved
    keys = {key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "lora" not in key}
    places = {"bert": ("bert.pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj"), "distilbert": ("pre_classifier", "classifier")}[family]
    assert keys == {f"base_model.model.{place}.{kind}" for place in places for kind in ("weight", "bias")}


def test_a_head_and_its_encoder_are_not_parted(tmp_path):
    body = lambda: randomised(Encoder(ENCODERS["bert"]))
    plain = body()
    peft.attach(plain, peft.LoRA(rank=2))
    peft.save(plain, tmp_path / "without")
    with pytest.raises(InputError, match="holds no score head, so it is an adapter for the plain model"):
        peft.load(Encoder.on(body(), labels=3), tmp_path / "without")
    model = Encoder.on(body(), labels=3)
    peft.attach(model, peft.LoRA(rank=2))
    peft.save(model, tmp_path / "with")
    with pytest.raises(InputError, match="comes with a score head .* `minift predict` make the model it belongs to"):
        peft.load(body(), tmp_path / "with")
    with pytest.raises(InputError, match=r"classifier.weight has shape \(3, 24\), but .* call for \(4, 24\)"):
        peft.load(Encoder.on(body(), labels=4), tmp_path / "with")
    weights = tmp_path / "with" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(weights).items() if "pooler" not in key}, weights)
    with pytest.raises(InputError, match="2 missing: base_model.model.bert.pooler.dense.bias"):
        peft.load(Encoder.on(body(), labels=3), tmp_path / "with")


def test_a_decoders_checkpoint_and_adapter_are_classifiers_too(small_tokenizer, tmp_path):
    from minift.models.transformer import Transformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = lambda: randomised(Transformer(dataclasses.replace(CONFIGS["llama"], vocab_size=small_tokenizer.vocab_size)))
        decoder = body()
    model = Scorer.on(decoder, labels=3)
    model.config = dataclasses.replace(model.config, label_names=tuple(NAMES), problem="single")
    folders.save(model, small_tokenizer, tmp_path / "whole")
    one = Classifier("single", NAMES, 1, model, small_tokenizer)
    assert torch.equal(load(tmp_path / "whole").scores(TEXTS), one.scores(TEXTS)) and load(tmp_path / "whole").labels == NAMES


# ---- names in config.json


CLASSIFIER = dataclasses.replace(ENCODERS["bert"], labels=3, label_names=("rot", "grün", "blau"), problem="multi")


def test_label_names_and_problem_go_through_config_json_both_ways():
    hf = to_hf(CLASSIFIER)
    assert hf["id2label"] == {"0": "rot", "1": "grün", "2": "blau"} and hf["label2id"] == {"rot": 0, "grün": 1, "blau": 2}
    assert hf["problem_type"] == "multi_label_classification" and hf["num_labels"] == 3 and hf["architectures"] == ["BertForSequenceClassification"]
    assert from_hf(json.loads(json.dumps(hf))) == CLASSIFIER
    shuffled = {**hf, "id2label": {"2": "blau", "0": "rot", "1": "grün"}}
    assert from_hf(shuffled).label_names == ("rot", "grün", "blau")
    assert from_hf({**hf, "id2label": {0: "rot", 1: "grün", 2: "blau"}}) == CLASSIFIER      # numbers as keys, before they are JSON
    for ours, theirs in (("single", "single_label_classification"), ("regression", "regression"), (None, None)):
        said = to_hf(dataclasses.replace(CLASSIFIER, problem=ours))
        assert said.get("problem_type") == theirs and from_hf(said).problem == ours


def test_names_that_transformers_makes_up_are_no_names():
    hf = to_hf(dataclasses.replace(CLASSIFIER, label_names=()))
    assert hf["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} and from_hf(hf).label_names == () and from_hf(hf).labels == 3
    assert from_hf({**hf, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "yes"}}).label_names == ("LABEL_0", "LABEL_1", "yes")
    assert from_hf({key: value for key, value in hf.items() if key != "id2label"}).labels == 3
    assert to_hf(dataclasses.replace(CLASSIFIER, label_names=("LABEL_0", "LABEL_1", "LABEL_2"))) == hf       # whose labels are called that can be saved


@pytest.mark.parametrize("names", [{"0": "a", "1": "a"}, {"0": "a", "2": "b"}, {"1": "a", "2": "b"}, {"0": "a", "one": "b"}])
def test_names_that_do_not_tell_labels_apart_are_refused(names):
    with pytest.raises(InputError, match="wanted a name of its own for each of 0 to 1"):
        from_hf({**to_hf(CLASSIFIER), "id2label": names})
    with pytest.raises(InputError, match="problem_type is 'ranking': wanted one of single_label_classification"):
        from_hf({**to_hf(CLASSIFIER), "problem_type": "ranking"})
    with pytest.raises(ValueError, match="label_names has 2 names for 3 labels"):
        dataclasses.replace(CLASSIFIER, label_names=("a", "b"))
    assert from_hf({**to_hf(CLASSIFIER), "architectures": ["BertModel"], "id2label": names}).labels == 0      # of a body they are left over


def test_a_checkpoint_without_names_numbers_its_labels(small_tokenizer, tmp_path):
    folders.save(encoder("bert", small_tokenizer, labels=3), small_tokenizer, tmp_path / "three")
    folders.save(encoder("bert", small_tokenizer, labels=1), small_tokenizer, tmp_path / "one")
    three, one = load(tmp_path / "three"), load(tmp_path / "one")
    assert (three.problem, three.labels) == ("single", ["LABEL_0", "LABEL_1", "LABEL_2"]) and one.problem == "regression"
    assert set(one.predict(["a list"])[0]) == {"score"}
    folders.save(encoder("bert", small_tokenizer, labels=3, problem="regression"), small_tokenizer, tmp_path / "numbers")
    with pytest.raises(InputError, match="tells 3 numbers of a text, and a classifier here tells one"):
        load(tmp_path / "numbers")


# ---- what is no classifier


def test_folders_that_are_no_classifiers_are_refused(base, small_tokenizer, tmp_path):
    with pytest.raises(InputError, match="holds no classifier: name a run of `minift classify`"):
        load(base)
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nothing")
    model = Encoder.on(encoder("bert", small_tokenizer), labels=3)
    peft.attach(model, peft.LoRA(rank=2))
    peft.save(model, tmp_path / "adapter", base_model=str(base))
    with pytest.raises(InputError, match="is an adapter without classifier.json, so its labels have no names"):
        load(tmp_path / "adapter")
    write_names(tmp_path / "adapter", Classifier("single", [*NAMES, "weiß"], 1, model, small_tokenizer))
    with pytest.raises(InputError, match="call for"):                       # four names, three scores
        load(tmp_path / "adapter")


@pytest.mark.parametrize("said, text", [
    ("{", "is not valid JSON"), ("[]", "does not say all of problem, labels, sides, max_length"), ('{"problem": "single", "labels": ["a", "b"]}', "does not say all"),
    ('{"problem": "single", "labels": ["a", "b"], "sides": 1, "max_length": 9, "head": {}}', "max_length, features, precision"),
])    # fmt: skip
def test_a_damaged_file_of_names_is_refused(said, text, base, tmp_path):
    folder = written(on_features(base), base, tmp_path / "head")
    (folder / FILE).write_text(said)
    with pytest.raises(InputError, match=text):
        load(folder)
