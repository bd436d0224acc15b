"""`minift reward` from the command line: pairs in, a reward model out that ranks unseen pairs by a rule it was never told."""

import json
import random
import shutil

import pytest
import torch

from minift import folder as folders
from minift import peft
from minift.data.branches import Tree
from minift.errors import InputError
from minift.evaluate.scoring import load_scorer, rewards
from minift.models.scorer import Scorer
from minift.recipes.methods import METHODS
from minift.recipes.reward import Config, Pairs, RewardLoss, centring, pad_apart_from_end, summary
from minift.recipes.tuning import choose_parameters
from minift.train.log import read_metrics

WORDS = ["table", "function", "object", "string", "value", "class", "module", "name"]
ALONE = [name for name in METHODS if name != "fusion"]
NEEDED = {"tokens": ("--options", "ids", "5,7"), "bitfit": ("--options", "add-missing", "true"), "adalora": ("--options", "init-r", "3", "target-r", "2")}
QUICK = ("--epochs", 9, "--max-steps", 3, "--lr", 1e-2, "--samples", 2, "--precision", "fp32")


def pairs(count: int, seed: int, **more) -> list[dict]:
    """The rule: an answer that says please is preferred, wherever in it the word stands."""
    dice, rows = random.Random(seed), []
    for number in range(count):
        said = dice.sample(WORDS, 3)
        polite = [*said[:2], "please"]
        dice.shuffle(polite)
        rows.append({"prompt": f"say the {dice.choice(WORDS)} {number}", "chosen": " " + " ".join(polite), "rejected": " " + " ".join(said), **more})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in {"pairs": pairs(40, 0), "others": pairs(30, 1), "many": pairs(240, 2), "margins": pairs(40, 0, margin=2.0)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def teach(minift, small_model, data, tmp_path):
    def run(*options, file="pairs", share=("--held-out", 0.3), quick=QUICK, model=small_model):
        return minift("reward", "--model", model, "--data", data / f"{file}.jsonl", "--out", tmp_path / "run", *quick, *share, *options)

    return run


def accuracy(line: str) -> float:
    return float(line.split(" -> ")[2].split("%")[0]) / 100


def line_of(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("held-out loss"))


def trees(file, tokenizer) -> list[Tree]:
    """The pairs of a file, tokenised here by hand."""
    encode = lambda text: [*tokenizer.encode(text, add_special_tokens=False, continues=True), tokenizer.eos_id]
    return [Tree(tokenizer.encode(row["prompt"]), [encode(row["chosen"]), encode(row["rejected"])]) for row in map(json.loads, file.read_text().splitlines())]


def ranked_right(scorer, tokenizer, file) -> float:
    scores = rewards(scorer, trees(file, tokenizer)).view(-1, 2)
    return (scores[:, 0] > scores[:, 1]).float().mean().item()


@pytest.mark.parametrize("method, steps", [("lora", 120), ("full", 100)])
def test_it_learns_to_prefer_by_a_rule_and_what_it_learned_is_in_the_folder(teach, data, tmp_path, method, steps):
    status, said, complaint = teach("--method", method, "--eval-data", data / "others.jsonl", file="many", share=(), quick=(
        "--epochs", 99, "--max-steps", steps, "--lr", 1e-2, "--batch-tokens", 1024, "--precision", "fp32", "--eval-every", 20))    # fmt: skip
    assert status == 0, complaint
    assert accuracy(line_of(said)) >= 0.9, said
    scorer, tokenizer = load_scorer(tmp_path / "run")
    assert ranked_right(scorer, tokenizer, data / "others.jsonl") == pytest.approx(accuracy(line_of(said)), abs=0.001)
    assert not any(parameter.requires_grad for parameter in scorer.parameters()) and not scorer.training
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert sum(line["accuracy"] for line in lines[-9:]) > sum(line["accuracy"] for line in lines[:9])
    for name in ("config.json", "loss.png", "rewards.png", "samples.md", "checkpoints"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name


@pytest.mark.parametrize("name", ALONE)
def test_trap26_every_method_writes_a_scorer_with_its_head(teach, data, tmp_path, name):
    small = () if "rank" not in METHODS[name].fields() else ("--rank", 2)
    status, said, complaint = teach("--method", name, *small, *NEEDED.get(name, ()), "--eval-data", data / "others.jsonl", share=())
    assert status == 0, complaint
    scorer, tokenizer = load_scorer(tmp_path / "run")
    assert ranked_right(scorer, tokenizer, data / "others.jsonl") == pytest.approx(accuracy(line_of(said)), abs=0.001)
    fresh, _ = folders.load(json.loads((tmp_path / "run/config.json").read_text())["settings"]["model"], scores=1)
    trained = scorer.score.adapters["default"].weight if not METHODS[name].whole else scorer.score.weight
    assert not torch.allclose(trained, fresh.score.weight, atol=1e-4)                       # the head has moved


def test_a_base_in_4_bits_is_loaded_in_4_bits_again(teach, data, tmp_path):
    status, said, complaint = teach("--quantize", "nf4", "--eval-data", data / "others.jsonl", share=())
    assert status == 0, complaint
    scorer, tokenizer = load_scorer(tmp_path / "run/adapter")
    assert scorer.blocks[0].mlp.up.base.q.scheme == "nf4" and type(scorer.score.base) is torch.nn.Linear
    assert ranked_right(scorer, tokenizer, data / "others.jsonl") == pytest.approx(accuracy(line_of(said)), abs=0.001)


def test_two_reward_adapters_are_mixed_by_a_fusion(teach, minift, small_model, data, tmp_path):
    for name in ("one", "two"):
        quick = ("--model", small_model, "--data", data / "pairs.jsonl", "--held-out", 0.3, *QUICK)
        assert minift("reward", *quick, "--method", "pfeiffer", "--out", tmp_path / name, "--seed", len(name) + (name == "two"))[0] == 0
    mixed = f"{tmp_path / 'one/adapter'},{tmp_path / 'two/adapter'}"
    status, said, complaint = teach("--method", "fusion", "--options", "adapters", mixed, "--eval-data", data / "others.jsonl", share=())
    assert status == 0, complaint
    scorer, tokenizer = load_scorer(tmp_path / "run")
    assert ranked_right(scorer, tokenizer, data / "others.jsonl") == pytest.approx(accuracy(line_of(said)), abs=0.001)


def test_training_goes_on_from_a_scorers_folder(teach, small_model, data, tmp_path):
    model, tokenizer = folders.load(small_model, scores=1, seed=7)
    folders.save(model, tokenizer, tmp_path / "start")
    status, _, complaint = teach("--method", "lora", model=tmp_path / "start")
    assert status == 0, complaint
    assert torch.equal(load_scorer(tmp_path / "run")[0].score.base.weight, model.score.weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(teach, tmp_path):
    longer = lambda steps: ("--epochs", 9, "--max-steps", steps, "--lr", 1e-2, "--schedule", "constant", "--warmup", 0, "--precision", "fp32", "--save-every", 1)
    assert teach(quick=longer(4))[0] == 0
    whole = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert teach("--overwrite", quick=longer(2))[0] == 0
    status, _, complaint = teach("--resume", quick=longer(4))
    assert status == 0, complaint
    assert [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line] == whole


@pytest.mark.parametrize("batching", ["packed", "bucketed"])
def test_a_pairs_loss_does_not_depend_on_its_batch(small_model, data, batching):
    model, tokenizer = folders.load(small_model, scores=1)
    some = trees(data / "pairs.jsonl", tokenizer)[:7]
    class Examples:
        trees, margins = some, torch.arange(7.0)

    together, alone = RewardLoss(0.1), RewardLoss(0.1)
    total = sum(together(model, batch)[0].item() for batch in Pairs(Examples, True).batches(64, 0, batching == "bucketed"))
    assert total == pytest.approx(sum(alone(model, Pairs(Examples, share).batch([i]))[0].item() for i in range(7) for share in [i % 2 == 0]), rel=1e-5)


def test_the_loss_of_a_pair_worked_by_hand():
    """Rewards 1.5 and 0.5, margin 2, center 0.01: log(1 + e^(2 - 1)) + 0.01 x 2^2 = 1.353262; the chosen answer is the first."""

    class Scores(torch.nn.Module):
        rewards = staticmethod(lambda batch: torch.tensor([1.5, 0.5]))

    class Batch:
        values, trees = {"margin": torch.tensor([2.0])}, 1

    loss = RewardLoss(0.01)
    total, count = loss(Scores(), Batch())
    assert total.item() == pytest.approx(1.353262, abs=1e-5) and int(count) == 1
    assert loss.taken()["accuracy"] == 1.0 and not loss.seen


def test_the_pairs_of_the_data_are_trained_on_and_not_those_measured_on(teach, data, tmp_path):
    status, said, complaint = teach("--eval-data", data / "others.jsonl", share=())
    assert status == 0, complaint
    assert "of 30, mean margin" in said
    assert [line["pairs"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [40, 40, 40]


def test_margins_of_the_file_reach_the_loss(teach, tmp_path):
    assert teach(file="pairs")[0] == 0
    without = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line][0]
    assert teach("--overwrite", file="margins")[0] == 0
    assert [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line][0] > without + 0.5


def test_center_holds_a_pairs_rewards_around_zero_and_the_report_says_where_the_mean_is(teach, data, tmp_path):
    often, middles = ("--epochs", 99, "--max-steps", 25, "--lr", 1e-3, "--precision", "fp32"), []
    for center in (0.0, 0.1):
        status, said, complaint = teach("--center", center, "--overwrite", quick=often)
        assert status == 0, complaint
        scorer, tokenizer = load_scorer(tmp_path / "run")
        middles.append(rewards(scorer, trees(data / "pairs.jsonl", tokenizer)).view(-1, 2).sum(1).abs().mean().item())
    assert middles[1] < 0.5 * middles[0]
    assert centring(dict(reward=2.0, reward_std=1.0), 0.0).endswith("not centred; --center 0.01 would hold it near 0")
    assert centring(dict(reward=-0.1, reward_std=1.0), 0.0) == "rewards -0.10 ± 1.00, centred"


def test_the_summary_worked_by_hand():
    found = summary(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [4.0, 0.0]]))
    assert (found["accuracy"], found["margin"], found["reward_chosen"], found["reward_rejected"], found["reward"]) == (0.5, 0.5, 1.75, 1.25, 1.5)


def test_the_samples_are_the_clearest_pairs_of_both_kinds(teach, tmp_path):
    teach()
    text = (tmp_path / "run/samples.md").read_text()
    assert text.index("Ranked the other way") < text.index("Ranked as people did")
    rows = [line for line in text.splitlines() if line.startswith("| say")]
    margins = [float(cells[3]) - float(cells[5]) for cells in (row.split(" | ") for row in (r.replace("| ", " | ", 1).rstrip(" |") for r in rows))]
    wrong, right = [m for m in margins if m < 0], [m for m in margins if m > 0]
    assert wrong == sorted(wrong) and right == sorted(right, reverse=True) and len(wrong) <= 2 and len(right) <= 2


def test_trap11_the_pad_that_is_written_is_not_the_end_token(teach, small_model, tmp_path):
    """transformers finds a text's end by the pad id: with pad == eos it would read one token too early."""
    shutil.copytree(small_model, tmp_path / "padless")
    fields = json.loads((tmp_path / "padless/tokenizer_config.json").read_text())
    (tmp_path / "padless/tokenizer_config.json").write_text(json.dumps({**fields, "pad_token": fields["eos_token"]}))
    assert teach("--method", "head", model=tmp_path / "padless")[0] == 0
    scorer, tokenizer = load_scorer(tmp_path / "run")
    assert tokenizer.pad_id == scorer.config.pad_token_id and tokenizer.pad_id not in (None, tokenizer.eos_id)


def test_a_pad_that_is_no_end_token_stays(small_model):
    model, tokenizer = folders.load(small_model, scores=1)
    tokenizer.pad_id = 7
    pad_apart_from_end(model, tokenizer)
    assert model.config.pad_token_id == 7


@pytest.mark.parametrize("options, words", [
    (("--compile",), "compile has nothing to gain"),
    (("--center", -1), "--center is -1.0"),
    (("--method", "full", "--dtype", "bfloat16"), "pass --dtype float32"),
    (("--rank", 3, "--method", "ia3"), "--rank is an option of"),
])    # fmt: skip
def test_options_without_sense_are_refused(teach, tmp_path, options, words):
    status, _, complaint = teach(*options)
    assert status == 2 and words in complaint and not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", [
    [{"prompt": "p", "completion": "c"}],                                                   # no pairs
    [{"prompt": f"p{i}", "chosen": " same", "rejected": " same"} for i in range(9)],        # all ties
    [{"prompt": "one question", "chosen": f" {i}", "rejected": " no"} for i in range(9)],   # cannot be split by question
], ids=["no pairs", "all ties", "one question"])    # fmt: skip
def test_files_with_nothing_to_learn_are_refused(minift, small_model, tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = minift("reward", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run", *QUICK)
    assert status == 2 and complaint and not (tmp_path / "run").exists()


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(teach, small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "other")

    folders.load("base")[1].save(tmp_path / "other")                                        # 4,096 tokens for an embedding of 400 rows
    status, _, complaint = teach(model=tmp_path / "other")
    assert status == 2 and "embedding has" in complaint


def test_a_language_model_is_no_reward_model(small_model, tmp_path):
    with pytest.raises(InputError, match="gives no scores"):
        load_scorer(small_model)
    model, _ = folders.load(small_model)
    peft.attach(model, peft.LoRA(rank=2))
    peft.save(model, tmp_path / "adapter", base_model=str(small_model))
    with pytest.raises(InputError, match="holds no score head"):
        load_scorer(tmp_path / "adapter")
    peft.save(model, tmp_path / "nameless")
    with pytest.raises(InputError, match="does not name its base"):
        load_scorer(tmp_path / "nameless")


def test_the_rest_of_the_body_is_frozen_under_an_adapter(small_model):
    model, _ = folders.load(small_model, scores=1)
    choose_parameters(model, Config(data=(), out="", method="lora"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".adapters.default." in name for name in trained)
    assert isinstance(model, Scorer) and "score.adapters.default.weight" in trained
