"""A scorer reads a text's score at its last real token, whatever stands around it, and goes through folders like any model."""

import json

import pytest
import torch

from minift import folder as folders
from minift import quant
from minift.data.branches import Tree, apart, grow
from minift.errors import InputError
from minift.models.folder import read_model, write_model
from minift.models.scorer import Scorer, last_tokens
from minift.models.transformer import Transformer
from tests.models.small import CONFIGS, model, tokens

EOS = 2


def scorer(name: str = "llama", labels: int = 1) -> Scorer:
    return Scorer.on(model(name), labels)


def alone(rewarder: Scorer, ids: list[int]) -> torch.Tensor:
    """The score of one text by itself, at its last token: a row of the table of all scores."""
    return rewarder(torch.tensor([ids]))[0, -1, 0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "qwen2"])
@pytest.mark.parametrize("pad", [0, EOS], ids=["another pad", "pad is the end token"])
def test_trap11_the_reward_is_read_at_the_last_real_token(name, pad):
    """Left pad, right pad, pad == eos, eos inside the prompt, no eos at the end: one score."""
    rewarder = scorer(name)
    texts = [[5, EOS, 7, EOS], [EOS, 3, 9, 4, 8, EOS], [6, 4]]
    T, flat = 8, [torch.tensor([[0] * 8] * 3) + pad for _ in range(2)]
    right, left, segments = *flat, torch.zeros(2, 3, T, dtype=torch.int64)
    for row, ids in enumerate(texts):
        right[row, : len(ids)], segments[0, row, : len(ids)] = torch.tensor(ids), 1
        left[row, T - len(ids) :], segments[1, row, T - len(ids) :] = torch.tensor(ids), 1
    lengths = torch.tensor([len(ids) for ids in texts])
    wanted = torch.stack([alone(rewarder, ids) for ids in texts])
    of_right = rewarder.at(last_tokens(lengths, T), right, segments=segments[0])[:, 0]
    of_left = rewarder.at(last_tokens(torch.full((3,), T), T), left, segments=segments[1])[:, 0]
    torch.testing.assert_close(of_right, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_left, wanted, atol=1e-5, rtol=1e-5)
    trees = [Tree(ids[:1], [ids[1:]]) for ids in texts]
    for batch in (grow(trees, pad_id=pad), grow(trees, length=12, pad_id=pad)):
        torch.testing.assert_close(rewarder.rewards(batch), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_that_share_a_prompt_have_the_rewards_they_have_alone(name):
    rewarder = scorer(name)
    trees = [Tree([3, 4, 5], [[6, EOS], [7, 8, 9, EOS]]), Tree([3], [[4], [5, 6], [EOS]])]
    if name == "dynamic":                                        # stretched by the length of the text: no sharing, see can_branch
        trees = apart(trees)
    wanted = torch.stack([alone(rewarder, tree.prompt + answer) for tree in trees for answer in tree.answers])
    torch.testing.assert_close(rewarder.rewards(grow(trees)), wanted, atol=1e-5, rtol=1e-5)


def test_scores_at_places_are_rows_of_the_scores_at_all_places():
    rewarder, ids = scorer(labels=3), tokens(2, 5)
    everywhere = rewarder(ids)
    assert everywhere.shape == (2, 5, 3)
    torch.testing.assert_close(rewarder.at(torch.tensor([0, 9, 4]), ids), everywhere.flatten(0, 1)[[0, 9, 4]])


def test_the_score_is_the_heads_product_with_the_stream():
    rewarder, ids = scorer("qwen2"), tokens(1, 4)
    by_hand = sum(h * w for h, w in zip(rewarder.hidden(ids)[0, 2].tolist(), rewarder.score.weight[0].tolist()))
    assert rewarder(ids)[0, 2, 0].item() == pytest.approx(by_hand, abs=1e-4)


def test_lengths_that_do_not_fit_a_row_are_refused():
    assert last_tokens(torch.tensor([3, 1]), 4).tolist() == [2, 4]
    for wrong in (0, 5):
        with pytest.raises(InputError, match="1 to 4 tokens"):
            last_tokens(torch.tensor([3, wrong]), 4)


def test_there_is_no_output_head_to_pay_for():
    body = model("llama")
    numbers, V, C = sum(p.numel() for p in body.parameters()), 31, 24
    rewarder = Scorer.on(body)
    assert sum(p.numel() for p in rewarder.parameters()) == numbers - V * C + C
    assert rewarder.embed is body.embed and not any(name.startswith("head") for name, _ in rewarder.named_parameters())


def test_a_new_head_is_drawn_from_the_seed_and_small():
    heads = [Scorer.on(model("llama"), 400, seed).score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(25**-0.5, rel=0.03)                       # 1 / sqrt(C + 1), C = 24
    assert Scorer(CONFIGS["llama"].__class__(**{**vars(CONFIGS["llama"]), "labels": 400})).score.weight.std().item() == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_written_scorer_reads_back_to_the_bit(name, tmp_path):
    before = scorer(name, labels=3)
    write_model(before, tmp_path / "m")
    after = read_model(tmp_path / "m")
    assert type(after) is Scorer and after.config == before.config and torch.equal(before(tokens(2, 9)), after(tokens(2, 9)))
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["architectures"][0].endswith("ForSequenceClassification") and len(written["id2label"]) == 3


def test_a_quantized_scorer_keeps_its_head_full(tmp_path):
    rewarder = Scorer.on(model("llama"))
    quant.quantize_model(rewarder, "nf4")
    assert type(rewarder.score) is torch.nn.Linear
    from minift.quant.folder import read_model as read_any
    from minift.quant.folder import write_model as write_any

    write_any(rewarder, tmp_path / "m")
    assert torch.equal(read_any(tmp_path / "m")(tokens(1, 6)), rewarder(tokens(1, 6)))


def test_rewards_are_float32_under_autocast():
    rewarder, ids = scorer(), tokens(1, 6)
    with torch.autocast("cpu", torch.bfloat16):
        scores = rewarder(ids)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_a_language_model_and_a_scorer_are_not_taken_for_each_other(tmp_path):
    _, tokenizer = folders.load("base")
    body, _ = folders.load("base")
    folders.save(Scorer.on(body), tokenizer, tmp_path / "scorer")
    with pytest.raises(InputError, match="reward model or a classifier"):
        folders.load(tmp_path / "scorer")
    with pytest.raises(InputError, match="gives 1 scores, and 2 are wanted"):
        folders.load(tmp_path / "scorer", scores=2)
    rewarder, _ = folders.load(tmp_path / "scorer", scores=1, dtype=torch.bfloat16)
    assert isinstance(rewarder, Scorer) and rewarder.score.weight.dtype == torch.float32
    with pytest.raises(InputError, match="plain language model"):
        Scorer.on(rewarder)
    with pytest.raises(InputError, match="at least one score"):
        Scorer(CONFIGS["llama"])
    assert type(folders.load("base")[0]) is Transformer


@pytest.mark.parametrize("fields, labels", [({}, 2), ({"num_labels": 1}, 1), ({"id2label": {"0": "bad", "1": "good", "2": "so"}}, 3)])
def test_labels_are_counted_as_transformers_counts_them(fields, labels, tmp_path):
    write_model(scorer(labels=labels), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("num_labels", "id2label", "label2id")}
    path.write_text(json.dumps(config | fields))
    assert read_model(tmp_path / "m").config.labels == labels
    path.write_text(json.dumps(config | {"num_labels": 0}))
    with pytest.raises(InputError, match="num_labels is 0"):
        read_model(tmp_path / "m")
