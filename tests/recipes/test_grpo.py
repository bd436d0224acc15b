"""Learning from rewards by comparing answers: what is learned, what is refused, and that a run cut short ends where a whole one does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minift.folder import load
from minift.recipes import grpo
from minift.recipes.on_policy import prompts_of
from minift.train.log import read_metrics

RULE = '''
def share_of_e(prompts, completions, **columns):
    return [text.count("e") / max(1, len(text)) for text in completions]

def has_an_e(prompts, completions):
    return [float("e" in text) for text in completions]

def raises(prompts, completions):
    raise ValueError("the judge is ill")

def nothing(prompts, completions):
    return [float("nan")] * len(completions)

def too_few(prompts, completions):
    return [1.0]

def words(prompts, completions):
    return ["good"] * len(completions)

def always(prompts, completions):
    return [1.0] * len(completions)

def exact(prompts, completions, answer):
    return [float(text.strip() == reference) for text, reference in zip(completions, answer)]

def number(prompts, completions, answer):
    assert all(f"Question {own}:" in prompt for prompt, own in zip(prompts, answer))
    return [float(own) for own in answer]
'''


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rule.py").write_text(RULE)
    rows = [{"prompt": f"Question {n}: say", "answer": str(n)} for n in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def learn(minift, files, small_model):
    def run(*more, reward="share_of_e", out="run", steps=3, group=4):
        own = ["--data", files / "prompts.jsonl", "--model", small_model, "--out", files / out, "--max-steps", steps, "--prompts", 3]
        spec = reward if ":" in reward or reward == "numeric" else f"{files / 'rule.py'}:{reward}"
        groups = [] if group is None else ["--group", group]
        return minift("grpo", *own, *groups, "--new-tokens", 6, "--precision", "fp32", "--rewards", spec, 1.0, *more)

    return run


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = adapter(one), adapter(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(folder: Path) -> list[dict]:
    return [line for line in read_metrics(folder) if "loss" in line]


def test_each_step_has_its_own_prompts_and_an_epoch_has_every_one():
    seen = [row for step in range(5) for row in prompts_of(10, 4, step, seed=0)]
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce"])
def test_what_is_rewarded_becomes_more_frequent(learn, files, algorithm):
    """Random text has an e in a quarter of the answers; 48 of them a step, so the mean of five steps strays by 0.03."""
    status, said, complaints = learn("--algorithm", algorithm, "--lr", 1e-2, "--kl-coef", 0, "--prompts", 6, reward="has_an_e", steps=50, group=8)
    assert status == 0, complaints
    lines = [line for line in read_metrics(files / "run") if "eval_reward" in line]
    learned = [line["reward"] for line in steps(files / "run")]

    assert sum(learned[-5:]) / 5 > 0.15 + sum(learned[:5]) / 5
    assert lines[0]["eval_kl"] == 0 < lines[-1]["eval_kl"]
    for name in ("rewards.png", "samples.md", "samples.jsonl", "adapter/adapter_model.safetensors"):
        assert (files / "run" / name).exists(), name
    assert not (files / "run" / "ratios.png").exists()                          # one pass: every ratio is 1


def test_trap16_equal_rewards_take_no_step_and_are_counted(learn, files):
    assert learn("--kl-coef", 0, reward="always")[0] == 0
    assert all(not tensor.any() for name, tensor in adapter(files / "run").items() if "lora_B" in name)
    assert [line["idle"] for line in steps(files / "run")] == [1, 2, 3]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_group_of_one_is_refused(learn, files, algorithm):
    status, _, complaints = learn("--algorithm", algorithm, group=1)
    assert status == 2 and "needs at least 2" in complaints and "reinforce" in complaints and not (files / "run").exists()


def test_reinforce_needs_no_group(learn):
    assert learn("--algorithm", "reinforce", group=1)[0] == 0


@pytest.mark.parametrize("reward, message", [
    ("raises", "the judge is ill"), ("nothing", "nan"), ("too_few", "1 number"), ("words", "'good'"),
])  # fmt: skip
def test_a_reward_that_fails_stops_the_run_with_its_row_named_and_its_state_saved(learn, files, reward, message):
    """It fails from the first evaluation on; later, in the middle of a run, it is mended and the run goes on."""
    status, _, complaints = learn(reward=reward)
    assert status == 1 and message in complaints and "line" in complaints


def test_after_mending_a_reward_the_run_goes_on_and_ends_where_a_whole_one_ends(learn, files):
    assert learn(out="whole")[0] == 0
    rule = files / "rule.py"
    failing = RULE.replace("def share_of_e(prompts, completions, **columns):", "calls = []\n\ndef share_of_e(prompts, completions, **columns):\n"
                           "    calls.append(1)\n    if len(calls) == 4:\n        raise ValueError('out of paper')")    # fmt: skip
    rule.write_text(failing)
    status, _, complaints = learn(out="cut")
    assert status == 1 and "out of paper" in complaints and "--resume" in complaints
    rule.write_text(RULE)
    assert learn("--resume", out="cut")[0] == 0
    assert same(files / "whole", files / "cut") and [line["step"] for line in steps(files / "cut")] == [1, 2, 3]


@pytest.mark.parametrize("more", [[], ["--passes", 2, "--minibatches", 3], ["--algorithm", "reinforce"]])
def test_an_interrupted_run_ends_where_a_whole_one_ends(learn, files, monkeypatch, more):
    more = [*more, "--eval-every", 3]                                                   # nothing is saved before the interruption
    assert learn(*more, out="whole")[0] == 0
    honest, calls = grpo.GroupLearner.learn, []

    def cut(self, *given):
        calls.append(1)
        if len(calls) == 2:                                                             # not in the last step, whose rate is 0
            raise KeyboardInterrupt
        return honest(self, *given)

    monkeypatch.setattr(grpo.GroupLearner, "learn", cut)
    status, said, _ = learn(*more, out="cut")
    assert status == 1 and "--resume" in said
    monkeypatch.undo()
    assert learn(*more, "--resume", out="cut")[0] == 0
    assert same(files / "whole", files / "cut")


def test_trap13_ratios_are_one_in_the_first_pass_and_move_in_later_ones(learn, files):
    learn("--top-k", 20, "--temperature", 0.8, out="once")
    assert all(line["ratio_max"] == line["ratio_min"] == 1 for line in steps(files / "once"))
    learn("--passes", 3, "--lr", 1e-2, out="often")
    assert any(line["ratio_max"] > 1.001 for line in steps(files / "often"))


def test_several_rewards_are_logged_apart_and_columns_reach_their_function(learn, files):
    assert learn("--rewards", f"{files / 'rule.py'}:share_of_e", 2.0, f"{files / 'rule.py'}:exact", 0.5)[0] == 0
    line = steps(files / "run")[0]
    parts = [name for name in line if name.startswith("reward_") and name.rpartition(":")[2] in ("share_of_e", "exact")]
    assert len(parts) == 2 and line["reward"] == pytest.approx(2 * line[parts[0]] + 0.5 * line[parts[1]], abs=1e-6)


def test_an_answer_is_judged_beside_its_own_prompt(learn, files):
    """A reward that looks at the prompt alone is the same for a whole group: nothing to learn."""
    assert learn("--kl-coef", 0, reward="number")[0] == 0
    assert [(line["idle"], line["reward_std"] > 0) for line in steps(files / "run")] == [(1, True), (2, True), (3, True)]


def test_the_numeric_reward_reads_the_files_answers(minift, files, small_model):
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is so.\n#### {n + 1}"} for n in range(12)]
    (files / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaints = minift("grpo", "--data", files / "math.jsonl", "--columns", "prompt", "question", "--rewards", "numeric", 1.0, "--model", small_model,
                                   "--max-steps", 2, "--prompts", 2, "--group", 2, "--new-tokens", 4, "--held-out", 0.3, "--out", files / "math")    # fmt: skip
    assert status == 0, complaints


def test_answers_cut_off_get_the_reward_for_it(learn, files):
    learn("--unfinished", -1, "--kl-coef", 0, reward="always")
    for line in steps(files / "run"):
        assert line["reward"] == pytest.approx(line["finished"] - (1 - line["finished"]))


def test_the_run_stops_when_it_is_too_far_from_the_reference(learn, files):
    status, said, _ = learn("--lr", 3e-2, "--kl-coef", 0, "--kl-limit", 0.01, "--eval-every", 1, steps=20)
    taken = len(steps(files / "run"))
    assert status == 0 and "more than --kl-limit 0.01: stopped at step" in said and taken < 20
    status, said, _ = learn("--lr", 3e-2, "--kl-coef", 0, "--kl-limit", 0.01, "--eval-every", 1, "--resume", steps=20)
    assert status == 0 and f"stopped at step {taken}" in said and len(steps(files / "run")) == taken      # and does not go on when it is resumed


@pytest.mark.parametrize("more", [["--method", "full", "--lr", 1e-3], ["--quantize", "nf4"], ["--method", "prefix"]])
def test_every_kind_of_training_has_its_reference(learn, files, more):
    status, _, complaints = learn(*more, steps=2)
    assert status == 0, complaints
    first = [line for line in read_metrics(files / "run") if "eval_kl" in line][0]
    assert abs(first["eval_kl"]) < (1e-5 if "prefix" not in more else 10)               # a prefix is not the base at step 0


def test_a_named_reference_with_the_same_tokenizer(learn, small_model):
    assert learn("--reference", small_model, steps=1)[0] == 0


@pytest.mark.parametrize("more, message", [
    (["--lora-dropout", 0.1], "another policy"), (["--patience", 2], "no effect"), (["--std", "none", "--algorithm", "rloo"], "option of grpo"),
    (["--kl-coef", -1], "0 or more"), (["--skip-kl"], "--kl-coef 0"), (["--temperature", 0], "cannot differ"), (["--minibatches", 9], "9 of 3 prompts"),
    (["--kl-estimator", "k1", "--algorithm", "rloo"], "k1"),
])  # fmt: skip
def test_what_could_not_be_or_would_do_nothing_is_refused(learn, more, message):
    status, _, complaints = learn(*more)
    assert status == 2 and message in complaints


def test_training_moves_the_policy_and_not_the_base(learn, files, small_model):
    before = {name: tensor.clone() for name, tensor in load(small_model)[0].state_dict().items()}
    learn()
    assert any(tensor.any() for name, tensor in adapter(files / "run").items() if "lora_B" in name)
    assert all(torch.equal(before[name], tensor) for name, tensor in load(small_model)[0].state_dict().items())
