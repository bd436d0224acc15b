"""Classifiers against their peers, live: sklearn's linear models, transformers' pairs, folders, predictions and losses, peft's adapters with a head.

Linear heads in float64: sklearn's objective is C sum loss + |W|^2 / 2 (logistic) or sum (s - y)^2 + alpha |W|^2 (ridge), ours the mean loss + l2 / 2 |W|^2,
so C = 1 / (l2 N), alpha = l2 N / 2. Models are random, small, and in float64 too: 1e-10."""

import dataclasses
import json
import warnings

import peft as hf_peft
import pytest
import sklearn.linear_model
import torch
import transformers
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler

import minift
from minift import folder as folders
from minift import peft
from minift.classify import load
from minift.classify.classifier import Classifier, write_names
from minift.classify.heads import LinearHead
from minift.classify.scores import head_scores, read
from minift.data.text_pairs import joined
from minift.errors import InputError
from minift.losses.classification import multi_label, single_label, squared_error
from minift.models.encoder import Encoder
from minift.models.folder import read_model
from tests.parity.test_encoders import BERT, DISTIL, ROBERTA, peer_of
from tests.small_tokenizers import byte_level

N, C, K = 83, 7, 4


def close(ours, theirs, atol=1e-10):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=0, atol=atol)


# ---- sklearn


def drawn():
    """Features in four units, far from 0, and labels that they tell apart for the most part."""
    dice = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    features = torch.randn(N, C, generator=dice) + 1.5 * torch.randn(K, C, generator=dice)[labels]
    return features.double() * torch.tensor([1e3, 1e-3, 1, 1, 7, 1, 1]) + 3, labels


def fitted(outputs, answers, loss, l2, features):
    """In units of a ten-thousandth the minimum is the same, and the search for it stops ten thousand times later."""
    head = LinearHead(C, outputs).double()
    head.fit(features, answers, lambda scores, own: (1e4 * loss(scores, own)[0], len(own)), 1e4 * l2)
    return head


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("weighed", [False, True])
def test_a_linear_head_is_sklearns_logistic_regression(weighed, l2):
    features, labels = drawn()
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0]).double() if weighed else None
    loss = lambda scores, own: single_label(scores, own, weights=weights)
    head = fitted(K, labels, loss, l2, features)
    x = head.standardized(features).numpy()
    peer = sklearn.linear_model.LogisticRegression(C=1 / (l2 * N), tol=1e-10, max_iter=10_000, class_weight=dict(enumerate(weights.tolist())) if weighed else None)
    peer.fit(x, labels.numpy())
    close(head.out.weight.detach(), peer.coef_, 1e-5)
    bias = head.out.bias.detach()                                            # a number added to all of them changes nothing
    close(bias - bias.mean(), peer.intercept_ - peer.intercept_.mean(), 1e-5)
    close(head(features).softmax(1).detach(), peer.predict_proba(x), 1e-6)
    usual = LinearHead(C, K)                                                 # as it is used: float32, and where it stops
    usual.fit(features.float(), labels, lambda scores, own: single_label(scores, own, weights=None if weights is None else weights.float()), l2)
    close(usual(features.float()).softmax(1).double().detach(), peer.predict_proba(x), 1e-3)


def test_standardized_features_are_sklearns():
    features, labels = drawn()
    features[:, 4] = 0.1
    head = fitted(K, labels, single_label, 0.01, features)
    close(head.standardized(features), StandardScaler().fit_transform(features.numpy()), 1e-10)


@pytest.mark.parametrize("l2", [1e-2, 2.0])
def test_several_labels_are_a_logistic_regression_each(l2):
    """Ours is the mean over K labels: each label's own l2 is K times as large."""
    features, labels = drawn()
    held = torch.stack([labels == 0, labels != 2, labels >= 2, labels % 2 == 1], 1).double()
    head = fitted(K, held, multi_label, l2, features)
    x = head.standardized(features).numpy()
    for k in range(K):
        peer = sklearn.linear_model.LogisticRegression(C=1 / (l2 * K * N), tol=1e-10, max_iter=10_000).fit(x, held[:, k].numpy())
        close(head.out.weight[k].detach(), peer.coef_[0], 1e-5)
        close(head.out.bias[k].detach(), peer.intercept_[0], 1e-5)


@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_a_number_is_sklearns_ridge_regression(l2):
    features, labels = drawn()
    values = 3.0 * labels + torch.randn(N, generator=torch.Generator().manual_seed(1)).double()
    head = fitted(1, values, squared_error, l2, features)
    x = head.standardized(features).numpy()
    peer = sklearn.linear_model.Ridge(alpha=l2 * N / 2).fit(x, values.numpy())
    close(head.out.weight[0].detach(), peer.coef_, 1e-6)
    close(head(features)[:, 0].detach(), peer.predict(x), 1e-6)


# ---- transformers: tokens of pairs


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a the list ##s of name what is it ? . in object ##ive no ##thing true false not".split()
TEXTS = ["the lists of objectives", "what is it?", "a name", "nothing is true. not the list", "it", "[SEP] in the name"]
PAIRS = [(a, b) for a in TEXTS for b in TEXTS[::-1]]


def tokenizer_of(family: str, folder):
    """transformers' tokenizer of the family, saved; ours, read from there."""
    if family == "roberta":
        made = byte_level(400, "<s>").to_str()
        model = json.loads(made)["model"]
        vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        vocab |= {piece: len(vocab) + i for i, piece in enumerate(piece for piece in model["vocab"] if piece != "<s>")}
        theirs = transformers.RobertaTokenizer(vocab={**vocab, "<mask>": len(vocab)}, merges=[tuple(merge) for merge in model["merges"]])
    else:
        kind = {"bert": transformers.BertTokenizer, "distilbert": transformers.DistilBertTokenizer}[family]
        theirs = kind(vocab={piece: i for i, piece in enumerate(WORDS)})
    theirs.save_pretrained(folder)
    return theirs, minift.tokenizer.load(folder)


FIELDS = {"bert": BERT, "roberta": ROBERTA, "distilbert": DISTIL}


def peer_folder(family: str, folder, **more):
    """(their model in float64, its folder with a tokenizer)."""
    theirs, _ = tokenizer_of(family, folder)
    peer = peer_of(family, "AutoModelForSequenceClassification", **{"vocab_size": len(theirs), **more})
    peer.save_pretrained(folder)
    return peer, theirs


@pytest.fixture
def wide(monkeypatch):
    """Vocabularies as large as the tokenizers'."""
    for fields in FIELDS.values():
        monkeypatch.delitem(fields, "vocab_size")


def their_row(theirs, row, **options):
    found = theirs(*row, return_token_type_ids=True, **options)
    return found["input_ids"], found["token_type_ids"]


@pytest.mark.parametrize("family", FIELDS)
def test_pairs_have_the_tokens_and_types_of_transformers_tokenizers(family, tmp_path, wide):
    peer, theirs = peer_folder(family, tmp_path)
    ours, config = minift.tokenizer.load(tmp_path), read_model(tmp_path).config
    for row in [*PAIRS, *((text,) for text in TEXTS)]:
        ids, types = joined(ours, config, row, 99)
        assert (ids, types) == their_row(theirs, row) if family == "bert" else ids == their_row(theirs, row)[0] and not any(types), row
    assert len({tuple(joined(ours, config, row, 99)[0]) for row in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize("family", FIELDS)
def test_long_pairs_are_cut_as_transformers_cuts_them_but_for_one_odd_token(family, tmp_path, wide):
    """Where both texts are cut to half of an odd room, ours gives the odd token to the first text, as BERT's own code did; the Rust tokenizers
    give it to the one that was longer, and of equal ones to the second."""
    peer, theirs = peer_folder(family, tmp_path)
    ours, config = minift.tokenizer.load(tmp_path), read_model(tmp_path).config
    same = odd = 0
    for row in PAIRS:
        whole = len(joined(ours, config, row, 99)[0])
        for limit in range(8, whole + 2):
            ids, wanted = joined(ours, config, row, limit)[0], their_row(theirs, row, truncation="longest_first", max_length=limit)[0]
            lengths = [len(ours.encode(text, add_special_tokens=False)) for text in row]
            room = limit - (whole - sum(lengths))
            halved = sum(lengths) > room and room % 2 == 1 and min(lengths) > room // 2
            assert len(ids) == len(wanted) and (ids == wanted or halved and lengths[1] >= lengths[0])
            same, odd = same + (ids == wanted), odd + (ids != wanted)
    assert same > 2 * odd > 0
    for text in TEXTS:
        for limit in range(3, 12):
            assert joined(ours, config, (text,), limit)[0] == their_row(theirs, (text,), truncation=True, max_length=limit)[0]


# ---- transformers: models


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
@pytest.mark.parametrize("family", FIELDS)
def test_our_folder_is_their_classifier_with_names_problem_predictions_and_loss(family, problem, tmp_path, wide):
    labels = 1 if problem == "regression" else 3
    _, theirs = peer_folder(family, tmp_path / "body", num_labels=2)
    body, tokenizer = folders.load(tmp_path / "body", torch.float64, scores=2)
    plain = Encoder(dataclasses.replace(body.config, labels=0)).double()
    plain.load_state_dict({key: value for key, value in body.state_dict().items() if not key.startswith("score")})
    model = Encoder.on(plain, labels, seed=3).double().eval()
    names = ("score",) if labels == 1 else ("rot", "grün", "blau")
    model.config = dataclasses.replace(model.config, label_names=names, problem=problem)
    minift.save(model, tokenizer, tmp_path / "ours")

    peer, told = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert type(peer).__name__.lower().startswith(family) and not told["missing_keys"] and not told["unexpected_keys"]
    assert peer.config.id2label == dict(enumerate(names)) and peer.config.label2id == {name: k for k, name in enumerate(names)}
    assert peer.config.problem_type == {"single": "single_label_classification", "multi": "multi_label_classification"}.get(problem, problem)
    answers = {"single": torch.arange(len(PAIRS)) % 3, "multi": (torch.arange(3 * len(PAIRS)).reshape(-1, 3) % 4 < 2).double(), "regression": torch.arange(len(PAIRS)) / 7.0}[problem]
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")(*zip(*PAIRS), padding=True, return_tensors="pt", return_token_type_ids=family == "bert")
    out = peer.eval()(**batch, labels=answers)
    scores = head_scores(model, read(model, tokenizer, PAIRS, 40))
    assert out.logits.std() > 0.05
    close(scores, out.logits)
    loss = {"single": single_label, "multi": multi_label, "regression": squared_error}[problem]
    total, rows = loss(scores, answers)
    close(total / rows, out.loss)

    said = load(tmp_path / "ours")
    close(said.scores(PAIRS).double(), out.logits.detach(), 1e-4)                      # it computes in float32
    assert said.problem == problem and said.labels == list(names)
    if problem == "single":
        assert [one["label"] for one in said.predict(PAIRS)] == [peer.config.id2label[k] for k in out.logits.argmax(1).tolist()]


@pytest.mark.parametrize("family", FIELDS)
def test_their_folder_is_our_classifier_with_its_names(family, tmp_path, wide):
    names = {0: "no", 1: "maybe", 2: "yes"}
    peer, theirs = peer_folder(family, tmp_path, id2label=names, label2id={name: k for k, name in names.items()}, problem_type="multi_label_classification")
    ours = load(tmp_path)
    assert (ours.problem, ours.labels, ours.sides) == ("multi", ["no", "maybe", "yes"], 0)
    for row in PAIRS[::5]:
        with torch.no_grad():
            wanted = peer(**theirs(*row, return_tensors="pt", return_token_type_ids=family == "bert")).logits[0].sigmoid()
        close(torch.tensor([*ours.predict([row])[0]["probabilities"].values()]).double(), wanted, 1e-4)
    peer.config.id2label, peer.config.label2id, peer.config.problem_type = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, None
    peer.save_pretrained(tmp_path)
    assert read_model(tmp_path).config.label_names == () and load(tmp_path).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_torchs_weighted_mean_divides_by_the_weights_of_the_batch_ours_by_its_rows():
    scores, labels, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([1.0, 4.0, 0.5]).double()
    total, rows = single_label(scores, labels, weights=weights)
    close(total / weights[labels].sum(), torch.nn.functional.cross_entropy(scores, labels, weight=weights))
    assert rows == 5 and weights[labels].sum() == 10.5
    total, rows = single_label(scores, labels, smoothing=0.2)
    close(total / rows, torch.nn.functional.cross_entropy(scores, labels, label_smoothing=0.2))
    held, weighed = (scores > 0).double().flip(0), torch.nn.BCEWithLogitsLoss(pos_weight=weights)
    total, rows = multi_label(scores, held, weights=weights)
    close(total / rows, weighed(scores, held))


# ---- peft


MODULES = {"bert": ["pooler", "classifier"], "roberta": ["classifier"], "distilbert": ["pre_classifier", "classifier"]}
TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"], "distilbert": ["q_lin", "v_lin"]}
NORMS = {"distilbert": ["sa_layer_norm", "output_layer_norm"]}


def base_of(family, folder):
    """A body without a head, as a folder with a tokenizer."""
    theirs, _ = tokenizer_of(family, folder)
    peer_of(family, "AutoModel", vocab_size=len(theirs)).float().save_pretrained(folder)
    return theirs


def with_a_head(folder):
    torch.manual_seed(5)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


@torch.no_grad()
def logits(model, theirs, family) -> torch.Tensor:
    return torch.cat([model(**theirs(*row, return_tensors="pt", return_token_type_ids=family == "bert")).logits for row in PAIRS])


def moved(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def their_config(method, family, **more):
    if method == "norms":
        return hf_peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm", *NORMS.get(family, [])], **more)
    return hf_peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=TARGETS[family], **more)


OURS = {"lora": peft.LoRA(rank=3, alpha=5), "norms": peft.LayerNormTuning()}


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("family", FIELDS)
def test_our_adapter_with_its_head_gives_the_same_logits_in_peft(family, method, tmp_path, wide):
    theirs = base_of(family, tmp_path / "base")
    model, tokenizer = folders.load(tmp_path / "base", scores=3)
    peft.attach(model, OURS[method])
    moved(model)
    peft.save(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    write_names(tmp_path / "adapter", Classifier("single", ["a", "b", "c"], 2, model, tokenizer, 40))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        loaded = hf_peft.PeftModel.from_pretrained(with_a_head(tmp_path / "base"), tmp_path / "adapter").eval()
    wanted = logits(loaded, theirs, family)
    ours = load(tmp_path / "adapter").scores(PAIRS)
    close(ours, wanted, 1e-4)
    assert (wanted - logits(with_a_head(tmp_path / "base"), theirs, family)).abs().max() > 0.1 and wanted.std(0).min() > 0.02


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("family", FIELDS)
def test_pefts_adapter_with_its_head_gives_the_same_scores_here(family, method, tmp_path, wide):
    theirs = base_of(family, tmp_path / "base")
    peer = moved(hf_peft.get_peft_model(with_a_head(tmp_path / "base"), their_config(method, family, modules_to_save=MODULES[family])))
    peer.save_pretrained(tmp_path / "adapter")
    model, tokenizer = folders.load(tmp_path / "base", scores=3)
    peft.load(model, tmp_path / "adapter")
    write_names(tmp_path / "adapter", Classifier("single", ["a", "b", "c"], 2, model, tokenizer, 40))
    close(load(tmp_path / "adapter", base=str(tmp_path / "base")).scores(PAIRS), logits(peer, theirs, family), 1e-4)
    peft.save(model, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.parametrize("family", FIELDS)
def test_what_peft_saves_unasked_is_read_and_refused_where_the_pooler_is_left_out(family, tmp_path, wide):
    """Unasked it takes what is called ...classifier: RoBERTa's and DistilBERT's pooler with it, BERT's not."""
    theirs = base_of(family, tmp_path / "base")
    peer = moved(hf_peft.get_peft_model(with_a_head(tmp_path / "base"), their_config("lora", family)))
    peer.save_pretrained(tmp_path / "adapter")
    model, tokenizer = folders.load(tmp_path / "base", scores=3)
    if family == "bert":
        with pytest.raises(InputError, match="2 missing: base_model.model.bert.pooler.dense.bias"):
            peft.load(model, tmp_path / "adapter")
    else:
        peft.load(model, tmp_path / "adapter")
        close(Classifier("single", ["a", "b", "c"], 0, model.eval(), tokenizer).scores(PAIRS), logits(peer, theirs, family), 1e-4)


def test_a_prompt_tuned_encoder_is_read_at_its_texts_first_token_and_in_peft_at_the_first_virtual_one(tmp_path, wide):
    """The streams are the same; our scores are those of peft's stream behind its virtual tokens."""
    theirs = base_of("bert", tmp_path / "base")
    model, tokenizer = folders.load(tmp_path / "base", scores=3)
    peft.attach(model, peft.Prompt(length=4))
    moved(model)
    peft.save(model, tmp_path / "adapter")
    peer = hf_peft.PeftModel.from_pretrained(with_a_head(tmp_path / "base"), tmp_path / "adapter").eval()
    ours = Classifier("single", ["a", "b", "c"], 2, model, tokenizer).scores(PAIRS[:4])
    for row, own in zip(PAIRS[:4], ours):
        out = peer(**theirs(*row, return_tensors="pt"), output_hidden_states=True)
        stream = out.hidden_states[-1][0]
        with torch.no_grad():
            close(model.scores(stream[4]), own, 1e-4)
            close(model.scores(stream[0]), out.logits[0], 1e-4)
            assert (out.logits[0] - own).abs().max() > 1e-3
