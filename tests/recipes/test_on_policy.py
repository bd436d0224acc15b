"""The loop of grpo and ppo: what an update is made of, what a run keeps, how it is cut short and goes on, what it refuses."""

import json
import math
import os
import pydoc_data.topics
import signal
from collections import Counter

import matplotlib.pyplot as plt
import pytest
import torch
from safetensors.torch import load_file

from minift import peft, tokenizer
from minift.errors import InputError
from minift.folder import load, save
from minift.losses.logprobs import per_answer
from minift.models.scorer import Scorer
from minift.recipes import grpo, on_policy, on_policy_start
from minift.recipes.grpo import Config, GroupLearner, minibatches, settled
from minift.recipes.on_policy_plots import draw_ratios, draw_rewards, keep_samples
from minift.recipes.on_policy_start import reference_of, same_tokens, split_prompts
from minift.recipes.tuning import choose_parameters
from minift.rl.reference import Reference, logprobs_of
from minift.rl.rollout import roll_out
from minift.train.alone import alone
from minift.train.log import read_metrics
from tests.conftest import random_model

WORDS = ["table", "function", "object", "string", "value", "class", "module", "name"]
QUICK = ("--max-steps", 4, "--eval-every", 4, "--prompts", 4, "--group", 3, "--new-tokens", 5, "--judged", 4, "--held-out", 0.3, "--lr", 1e-2,
         "--precision", "fp32")    # fmt: skip
REWARDS = """
def low(completion_ids):                       # of the vocabulary's first third
    return [sum(i < 130 for i in ids) / len(ids) for ids in completion_ids]

def odd(completion_ids):
    return [sum(i % 2 for i in ids) / len(ids) for ids in completion_ids]

def size(completion_ids):
    return [len(ids) for ids in completion_ids]

def same(completions):
    return [0.1] * len(completions)
"""
GPT2 = dict(family="gpt2", norm="layernorm", gated=False, kv_heads=4, activation="gelu_tanh", position="learned", qkv="joined", mlp_size=128,
            qkv_bias=True, attention_out_bias=True, mlp_bias=True, tie_embeddings=True)    # fmt: skip
OTHER_TEXT = ["the other words of another book, which has none of these pieces " * 40]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"say the {WORDS[i % 8]} {i}"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def policy(small_tokenizer, tmp_path_factory):
    """The small model, surer of what it says: embeddings that are also its head, twice as large. A few steps turn it around."""
    model = random_model(small_tokenizer)
    model.embed.weight.data *= 2
    folder = tmp_path_factory.mktemp("models") / "policy"
    save(model, small_tokenizer, folder)
    return folder


@pytest.fixture
def learn(minift, policy, data, tmp_path):
    """`minift grpo` on that model with options behind the quick ones."""

    def run(*options, reward="odd", out="run", model=policy, file=data / "prompts.jsonl", rewards=None):
        rewards = rewards or [f"{data / 'rewards.py'}:{reward}", 1.0]
        return minift("grpo", "--model", model, "--data", file, "--rewards", *rewards, "--out", tmp_path / out, *QUICK, *options)

    return run


def steps(folder):
    return [line for line in read_metrics(folder) if "loss" in line]


def held_out(folder):
    return [line for line in read_metrics(folder) if "eval_reward" in line]


def weights(folder):
    return load_file(folder / ("adapter/adapter_model.safetensors" if (folder / "adapter").exists() else "model/model.safetensors"))


def equal(one, other):
    """Two runs ended with the same bits and wrote the same numbers."""
    a, b = weights(one), weights(other)
    keep = lambda line: {name: value for name, value in line.items() if not name.endswith("_s")}
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [keep(line) for line in read_metrics(one)] == [keep(line) for line in read_metrics(other)]
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


def learner_of(policy, **fields):
    """(learner, rollout of 3 prompts with answers of many lengths, reference's log-probabilities) with a policy that has left its reference."""
    model, _ = load(policy)
    config = settled(Config(data=(), out="", rewards={}, **{"lr": 1e-2, "group": 3, "prompts": 3, "precision": "fp32", "weight_decay": 0.1, **fields}))
    choose_parameters(model, config)
    dice = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=dice)
    rollout = roll_out(model, [[5, 9, 30], [7], [70, 8]], config.group, config.sampling, 4, seed=1, eos_ids=range(2, 400, 3))
    reference = Reference(off=peft.disabled).logprobs(model, rollout, config.temperature, 1000, "fp32")
    return GroupLearner(model, config), rollout, reference


# ---- what an update is made of


@pytest.mark.parametrize("algorithm, kl_in", [("grpo", "loss"), ("grpo", "reward"), ("rloo", "reward"), ("rloo", "loss"), ("reinforce", "reward")])
def test_advantages_worked_by_hand_reach_every_token_of_their_answer(policy, monkeypatch, algorithm, kl_in):
    learner, rollout, reference = learner_of(policy, algorithm=algorithm, kl_in=kl_in, kl_coef=0.3, group=4, temperature=0.8)
    learner.baseline.update(torch.tensor([2.0, 4.0]))                               # mean 3
    rewards = torch.tensor([1.0, 2.0, 4.0, 0.5, 0.0, 0.0, 3.0, 1.0, 5.0, 5.5, 6.0, 8.0])
    drew = logprobs_of(learner.model, rollout, 0.8, 1000, "fp32")
    assert len(rollout.lengths.unique()) > 2
    distance = per_answer(drew - reference, rollout.lengths)
    assert distance.abs().max() > 0.05
    scores = rewards - 0.3 * distance if kl_in == "reward" else rewards             # what is far from the reference is worth less
    expected = []
    for group in scores.view(3, 4).tolist():
        for R in group:
            mean, others = sum(group) / 4, (sum(group) - R) / 3
            std = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
            expected.append({"grpo": (R - mean) / (std + 1e-4), "rloo": R - others, "reinforce": R - 3.0}[algorithm])
    seen = []
    monkeypatch.setattr(learner, "update", lambda experience, step: seen.append(experience) or {"loss": 0.0, "logprobs": drew})
    found = learner.learn(rollout, rewards, reference, 0)
    by_token = [A for A, n in zip(expected, rollout.lengths.tolist()) for _ in range(n)]
    torch.testing.assert_close(seen[0].advantages, torch.tensor(by_token), rtol=0, atol=1e-4)
    assert (seen[0].reference is not None) == (kl_in == "loss")
    assert found["kl"] == pytest.approx(distance.mean().item(), abs=1e-5)           # nats per answer
    if kl_in == "reward":
        torch.testing.assert_close(seen[0].old, drew, rtol=0, atol=0)
    total, count = learner.baseline.total, learner.baseline.count                   # the running mean has seen these answers only now
    assert (total, count) == ((pytest.approx(6.0 + scores.sum().item(), abs=1e-4), 14) if algorithm == "reinforce" else (6.0, 2))


@pytest.mark.parametrize("parts, aggregation", [(1, "token"), (3, "token"), (3, "constant")])
def test_trap14_ratios_are_to_the_policy_that_drew_on_every_pass(policy, monkeypatch, parts, aggregation):
    """The first step's are 1; later ones compare with the same log-probabilities, not with those of the step before."""
    learner, rollout, reference = learner_of(policy, passes=3, minibatches=parts, aggregation=aggregation, temperature=0.8)
    seen, honest = [], grpo.gradients
    drew = logprobs_of(learner.model, rollout, 0.8, 1000, "fp32")
    monkeypatch.setattr(grpo, "gradients", lambda *given, **more: seen.append((given[1], honest(*given, **more))) or seen[-1][1])
    learner.learn(rollout, torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 1]), reference, 0)
    assert len(seen) == 3 * parts and torch.equal(seen[0][1].ratio, torch.ones_like(seen[0][1].ratio)) and (seen[-1][1].ratio - 1).abs().max() > 0.01
    order = {tuple(tree.prompt): i for i, tree in enumerate(rollout.trees)}
    per_tree = drew.split([sum(map(len, tree.answers)) for tree in rollout.trees])
    for number, (part, _) in enumerate(seen):
        own = torch.cat([per_tree[order[tuple(tree.prompt)]] for tree in part.trees])
        torch.testing.assert_close(part.old if number else seen[0][1].logprobs, own, rtol=0, atol=1e-5)
        by = {"token": len(own), "constant": len(part.lengths) * learner.config.new_tokens}[aggregation]
        torch.testing.assert_close(part.weights, torch.full_like(own, 1 / by))                       # of the minibatch's own tokens
    assert learner.ratios is seen[-1][1].ratio


def test_minibatches_cover_every_prompt_once_a_pass_in_another_order():
    found = minibatches(7, 2, 3, seed=5)
    assert len(found) == 6 and sorted(sum(found[:3], [])) == sorted(sum(found[3:], [])) == list(range(7)) and found[:3] != found[3:]
    assert {len(part) for part in found} == {2, 3} and minibatches(7, 2, 3, seed=5) == found != minibatches(7, 2, 3, seed=6)
    assert minibatches(3, 2, 1, seed=5) == [[0, 1, 2], [0, 1, 2]]


def test_minibatches_of_every_step_are_others(learn, monkeypatch):
    found, honest = [], grpo.minibatches
    monkeypatch.setattr(grpo, "minibatches", lambda *given: found.append(honest(*given)) or found[-1])
    assert learn("--minibatches", 2, "--passes", 2)[0] == 0 and len({str(one) for one in found}) == len(found) == 4


def test_a_learner_goes_on_from_its_state(policy):
    one, other = (learner_of(policy, algorithm="reinforce")[0] for _ in range(2))
    one.baseline.update(torch.tensor([2.0, 5.0]))
    one.idle = 3
    other.restore(json.loads(json.dumps(one.state())))
    assert (other.baseline.value, other.baseline.count, other.idle) == (3.5, 2, 3)


def test_the_learning_rate_is_that_of_the_step(learn, tmp_path):
    assert learn("--schedule", "linear", "--warmup", 0.5, "--max-steps", 5, "--eval-every", 5)[0] == 0
    assert [line["lr"] for line in steps(tmp_path / "run")] == pytest.approx([0.005, 0.01, 0.01, 0.02 / 3, 0.01 / 3])    # 2 steps up, then down, never to 0


def test_distances_are_nats_per_answer(learn, monkeypatch, tmp_path):
    """From a reference that finds every token one nat less likely, an answer is as far as it is long."""
    monkeypatch.setattr(Reference, "logprobs", lambda self, policy, *how: logprobs_of(policy, *how) - 1)
    assert learn("--kl-coef", 0)[0] == 0
    assert all(line["kl"] == pytest.approx(line["length"], abs=1e-4) for line in steps(tmp_path / "run"))
    assert all(line["eval_kl"] == pytest.approx(line["eval_length"], abs=1e-4) for line in held_out(tmp_path / "run"))


def test_every_step_draws_with_other_random_numbers_and_every_evaluation_with_the_same(learn, monkeypatch):
    seeds, honest = [], on_policy.roll_out
    monkeypatch.setattr(on_policy, "roll_out", lambda *given: seeds.append((given[2], given[5])) or honest(*given))
    learn("--eval-every", 2)
    training, judging = [seed for group, seed in seeds if group == 3], [seed for group, seed in seeds if group == 1]
    assert len(set(training)) == 4 and len(judging) == 3 and len(set(judging)) == 1


# ---- equal rewards (trap 16)


@pytest.mark.parametrize("options", [
    [], ["--algorithm", "rloo"], ["--algorithm", "reinforce"], ["--algorithm", "reinforce", "--group", 1], ["--minibatches", 2, "--passes", 2],
    ["--entropy-coef", 0.1], ["--kl-in", "reward"],
], ids=str)    # fmt: skip
def test_trap16_equal_rewards_of_any_algorithm_take_no_step_and_are_counted(learn, tmp_path, options):
    status, said, complaint = learn(*options, "--weight-decay", 0.5, reward="same")
    assert status == 0 and not complaint and "4 of 4 rounds taught nothing: all answers to each of their prompts had one reward" in said
    assert [line["idle"] for line in steps(tmp_path / "run")] == [1, 2, 3, 4]
    assert all(line["loss"] == line["grad_norm"] == 0 for line in steps(tmp_path / "run")) and not (tmp_path / "run/ratios.png").exists()
    assert not any(value.any() for name, value in weights(tmp_path / "run").items() if "lora_B" in name)


@pytest.mark.parametrize("fields", [{}, dict(kl_in="reward"), dict(algorithm="rloo"), dict(minibatches=3, passes=2)], ids=str)
def test_trap16_not_even_a_policy_far_from_its_reference_moves(policy, fields):
    learner, rollout, reference = learner_of(policy, **fields)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    found = learner.learn(rollout, torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, -1.0, -1.0, -1.0]), reference, 0)
    assert found["idle"] == 1 and abs(found["kl"]) > 0.01 and not learner.optimizers[0].state
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    found = learner.learn(rollout, torch.tensor([0.1, 0.1, 0.2, 0.7, 0.7, 0.7, -1.0, -1.0, -1.0]), reference, 1)
    assert found["idle"] == 1 and found["grad_norm"] > 0


# ---- what it leaves


def test_samples_are_the_same_prompts_at_every_evaluation(learn, tmp_path):
    assert learn("--eval-every", 2)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert Counter(line["step"] for line in lines) == {0: 4, 2: 4, 4: 4} and len({line["prompt"] for line in lines}) == 4
    table = (tmp_path / "run/samples.md").read_text()
    assert [int(row.split("|")[1]) for row in table.splitlines() if row.startswith(("| 0", "| 2", "| 4"))] == [0, 2, 4] * 4     # prompt by prompt
    assert all(line["prompt"] in table for line in lines) and [line["step"] for line in held_out(tmp_path / "run")] == [0, 2, 4]


def test_samples_of_a_step_taken_again_replace_the_old_ones(tmp_path):
    for step, text in ((0, "a"), (1, "b"), (2, "c"), (1, "d")):
        keep_samples(tmp_path, step, [{"step": step, "answer": text}])
    assert [json.loads(line)["answer"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == ["a", "d"]


def test_the_ratios_of_the_last_step_are_drawn_with_the_clips(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_ratios(tmp_path, [0.7, 0.9, 1.0, 1.0, 1.4], 0.2, 0.3)
    axes = drawn[0].axes[0]
    assert plt.get_fignums() == []
    assert [line.get_xdata()[0] for line in axes.lines] == [0.8, 1.3] and sum(bar.get_height() for bar in axes.patches) == 5


def test_the_cost_of_a_reward_is_drawn_against_the_distance(tmp_path, monkeypatch):
    drawn, lines = [], [{"step": 0, "eval_reward": 0.1, "eval_kl": 0.0}, {"step": 1, "reward": 0.2}, {"step": 2, "reward": 0.4},
                        {"step": 2, "eval_reward": 0.5, "eval_kl": 3.0}]    # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(plt.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_rewards(tmp_path)
    points = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] for axes in drawn[0].axes]
    assert points == [[([1, 2], [0.2, 0.4]), ([0, 2], [0.1, 0.5])], [([0.0, 3.0], [0.1, 0.5])]]
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["0", "2"]


# ---- what it starts from


def test_held_out_prompts_are_not_learned_from(learn, monkeypatch):
    seen, honest = [], on_policy.Loop.score
    monkeypatch.setattr(on_policy.Loop, "score", lambda self, rollout, asked: seen.append({ask.text for ask in asked}) or honest(self, rollout, asked))
    assert learn("--max-steps", 12, "--eval-every", 12, "--judged", 99)[0] == 0
    before, *training, after = seen
    assert before == after and len(before) > 5 and not before & set.union(*training)
    assert len(before | set.union(*training)) == 40                                 # 12 steps of 4 prompts are more than one epoch


def test_a_named_reference_is_another_model(learn, policy, small_tokenizer, tmp_path):
    other = random_model(small_tokenizer)
    save(other, small_tokenizer, tmp_path / "other")
    assert learn("--reference", tmp_path / "other", out="one")[0] == 0 and learn("--reference", policy, out="two")[0] == 0
    assert steps(tmp_path / "one")[0]["kl"] > 0.1 and steps(tmp_path / "two")[0]["kl"] == 0.0


def test_conversations_are_asked_through_their_template(learn, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"Say {word} {i}"}]} for i in range(4) for word in WORDS]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = learn("--template", "alpaca", file=tmp_path / "chat.jsonl")
    assert status == 0, complaint
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert all("### Instruction:\nSay" in prompt and "### Response:" in prompt for prompt in prompts)
    assert (tmp_path / "run/adapter/chat_template.jinja").exists()


def test_a_reward_model_may_have_another_tokenizer_and_a_reference_may_not(learn, tmp_path):
    other = tokenizer.train(OTHER_TEXT, 300)
    save(Scorer.on(random_model(other), labels=1), other, tmp_path / "scorer")
    status, _, complaint = learn(rewards=[tmp_path / "scorer", 1.0])
    assert status == 0 and not complaint, complaint
    assert all(math.isfinite(line["reward"]) and line["reward_std"] > 0 for line in steps(tmp_path / "run"))
    save(random_model(other), other, tmp_path / "model")
    status, _, complaint = learn("--reference", tmp_path / "model", out="two")
    assert status == 2 and "has another tokenizer than the model (" in complaint and not (tmp_path / "two").exists()


@pytest.mark.parametrize("method, second", [("lora", False), ("full", True)])
def test_weights_that_train_are_held_to_a_second_model(policy, small_tokenizer, method, second):
    found = reference_of(Config(data=(), out="", rewards={}, model=str(policy), method=method), small_tokenizer)
    assert (found.model is not None, found.off is not None) == (second, not second)
    assert not second or not any(p.requires_grad for p in found.model.parameters())


def test_tokenizers_of_one_size_need_not_be_one(small_tokenizer):
    other = tokenizer.train([text[:2000] for text in list(pydoc_data.topics.topics.values())[12:24]], 400)
    assert other.vocab_size == small_tokenizer.vocab_size
    with pytest.raises(InputError, match="it has another tokenizer"):
        same_tokens(small_tokenizer, other, "it")
    same_tokens(small_tokenizer, small_tokenizer, "it")


def test_docstrings_are_judged_by_held_out_modules(monkeypatch):
    monkeypatch.setattr(on_policy_start, "docstring_prompts", lambda split: [split])
    assert split_prompts(Config(data=("pydocs",), out="", rewards={})) == (["train"], ["valid"])


def test_parts_of_a_reward_are_logged_at_evaluations_too(learn, data, tmp_path):
    odd, size = (f"{data / 'rewards.py'}:{name}" for name in ("odd", "size"))
    assert learn(rewards=[odd, 2.0, size, -0.5, "length:3", 0.0])[0] == 0
    for line in steps(tmp_path / "run"):
        assert line["reward"] == pytest.approx(2 * line[f"reward_{odd}"] - 0.5 * line[f"reward_{size}"], abs=1e-6)
        assert line[f"reward_{size}"] == pytest.approx(line["length"]) and "reward_length:3" in line
    last = held_out(tmp_path / "run")[-1]
    assert last["eval_reward"] == pytest.approx(2 * last[f"eval_{odd}"] - 0.5 * last[f"eval_{size}"], abs=1e-6)


# ---- refusals


@pytest.mark.parametrize("options, message", [
    (["--group", 0, "--algorithm", "reinforce"], "--group 0"), (["--kl-in", "reward", "--kl-estimator", "k2"], "off the reward it is k1"),
    (["--epochs", 2], "--epochs and --batching have no effect"), (["--batching", "bucketed"], "--epochs and --batching have no effect"),
    (["--compile"], "have no effect here"), (["--accumulate", 2], "have no effect here"), (["--optimizer", "muon"], "--optimizer muon"),
    (["--method", "adalora"], "--method adalora"), (["--clip-low", 1.5], "--clip-low is 1.5"), (["--passes", 0], "want 1 or more"),
    (["--method", "full", "--dtype", "bfloat16"], "pass --dtype float32"), (["--kl-coef", 0, "--skip-kl", "--reference", "base"], "--reference has no effect"),
    (["--held-out", 0], "must lie between 0 and 1"), (["--keep-best", 2], "--keep-best has no effect here"),
], ids=str)    # fmt: skip
def test_what_cannot_be_is_refused_before_there_is_a_folder(learn, tmp_path, options, message):
    status, _, complaint = learn(*options)
    assert status == 2 and message in complaint and not (tmp_path / "run").exists(), complaint


def test_answers_longer_than_a_models_positions_are_refused(learn, small_tokenizer, tmp_path):
    save(random_model(small_tokenizer, **GPT2), small_tokenizer, tmp_path / "gpt2")
    status, _, complaint = learn("--new-tokens", 505, model=tmp_path / "gpt2")
    assert status == 2 and "and an answer up to 505, this model has positions for 512" in complaint and not (tmp_path / "run").exists()


def test_a_run_wants_to_know_how_long_it_is(minift, data, policy, tmp_path):
    status, _, complaint = minift("grpo", "--model", policy, "--data", data / "prompts.jsonl", "--rewards", "length:3", 1.0, "--out", tmp_path / "run")
    assert status == 2 and "say how long to learn: --max-steps 100" in complaint


def test_an_algorithms_own_settings():
    own = lambda **fields: settled(Config(data=(), out="", rewards={}, **fields))
    grpos, rloos = own(), own(algorithm="rloo")
    assert (grpos.aggregation, grpos.kl_in, grpos.kl_coef) == ("answer", "loss", 0.04)
    assert (rloos.aggregation, rloos.kl_in, rloos.kl_coef) == ("sum", "reward", 0.05)
    assert own(kl_coef=0.0).kl_coef == 0.0 and own(algorithm="reinforce", group=1).group == 1


# ---- stopping and going on

FAULTS = {
    "raises": ("raise ValueError('no such word')", "ValueError: no such word"), "nan": ("return [float('nan')] * len(completions)", "is nan for the answer"),
    "count": ("return [1.0]", "returned 1 numbers for"), "text": ("return ['good'] * len(completions)", "is 'good', a str"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", [0, 3])
def test_a_reward_that_fails_stops_the_run_which_goes_on_once_it_is_mended(learn, tmp_path, fault, call):
    """The first call judges held-out prompts, the fourth is the third step's."""
    good = "from itertools import count\nnumber = count()\ndef odd(completions, completion_ids):\n    {}\n    return [sum(i % 2 for i in ids) for ids in completion_ids]\n"
    (tmp_path / "mine.py").write_text(good.format(f"if next(number) == {call}: {FAULTS[fault][0]}"))
    options = dict(rewards=[f"{tmp_path / 'mine.py'}:odd", 1.0])
    status, _, complaint = learn(**options)
    assert status == 1 and FAULTS[fault][1] in complaint and "prompts.jsonl, line " in complaint and "Traceback" not in complaint
    assert f"Stopped after step {max(0, call - 1)} of 4" in complaint and "--resume" in complaint and (tmp_path / f"run/checkpoints/step-{max(0, call - 1)}.safetensors").exists()
    (tmp_path / "mine.py").write_text(good.format("pass"))
    status, _, complaint = learn("--resume", **options)
    assert status == 0, complaint
    assert learn(**options, out="whole")[0] == 0
    equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("options", [
    ["--passes", 2, "--minibatches", 3], ["--algorithm", "reinforce", "--group", 1], ["--method", "full", "--lr", 1e-3], ["--algorithm", "rloo", "--save-every", 1],
], ids=str)    # fmt: skip
@pytest.mark.parametrize("place", ["first evaluation", "rollout", "update", "evaluation", "last evaluation"])
def test_a_run_that_was_cut_short_anywhere_ends_where_a_whole_one_ends(learn, tmp_path, monkeypatch, options, place):
    options = [*options, "--eval-every", 2]
    assert learn(*options, out="whole")[0] == 0
    home, name, when = {"first evaluation": (on_policy.Loop, "evaluate", 1), "rollout": (on_policy.Loop, "answer", 3), "update": (grpo, "take_step", None),
                        "evaluation": (on_policy.Loop, "evaluate", 2), "last evaluation": (on_policy.Loop, "evaluate", 3)}[place]    # fmt: skip
    honest, calls = getattr(home, name), []

    def cut(*given):
        calls.append(1)
        if place == "update" and len(calls) == 3:                                   # a real one: with minibatches in the middle of an update
            os.kill(os.getpid(), signal.SIGINT)
        elif len(calls) == when:
            raise KeyboardInterrupt
        return honest(*given)

    monkeypatch.setattr(home, name, cut)
    status, said, complaint = learn(*options)
    after = {"first evaluation": 0, "rollout": 2, "update": 1 if "--minibatches" in options else 3, "evaluation": 2, "last evaluation": 4}[place]
    assert status == 1 and f"interrupted after step {after} of 4" in said and not complaint
    assert all(((tmp_path / "run" / file).exists(), "held-out reward" in said) == (after > 0,) * 2 for file in ("samples.md", "rewards.png"))
    monkeypatch.undo()
    status, _, complaint = learn(*options, "--resume")
    assert status == 0, complaint
    equal(tmp_path / "whole", tmp_path / "run")


def test_a_resumed_run_may_be_interrupted_in_the_same_evaluation_again(learn, tmp_path, monkeypatch):
    assert learn("--eval-every", 2, out="whole")[0] == 0
    honest = on_policy.Loop.evaluate

    def cut(self, judged, learner, step):
        if step == 2:
            raise KeyboardInterrupt
        return honest(self, judged, learner, step)

    monkeypatch.setattr(on_policy.Loop, "evaluate", cut)
    for more in ((), ("--resume",)):
        status, said, complaint = learn("--eval-every", 2, *more)
        assert status == 1 and "interrupted after step 2 of 4" in said and not complaint
    monkeypatch.undo()
    assert learn("--eval-every", 2, "--resume")[0] == 0
    equal(tmp_path / "whole", tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_or_with_a_damaged_one_ends_where_a_whole_one_ends(learn, tmp_path):
    options = ("--eval-every", 2, "--passes", 2, "--algorithm", "reinforce", "--group", 1)
    assert learn(*options, out="whole")[0] == learn(*options)[0] == 0
    assert sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir()) == ["step-2.safetensors", "step-4.safetensors"]
    newest = tmp_path / "run/checkpoints/step-4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    status, said, _ = learn(*options, "--resume")
    assert status == 0 and "step-4.safetensors is cut short" in said and "going on from step 2" in said
    equal(tmp_path / "whole", tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").iterdir():
        file.unlink()
    status, said, _ = learn(*options, "--resume")
    assert status == 0 and "starting from the first step" in said
    equal(tmp_path / "whole", tmp_path / "run")


def test_other_prompts_do_not_go_on_with_a_run(learn, data, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text((data / "prompts.jsonl").read_text())
    assert learn(file=own)[0] == 0
    own.write_text(own.read_text().replace("table", "chair"))
    status, _, complaint = learn("--resume", "--max-steps", 8, file=own)
    assert status == 2 and "the training data are not those that this run was begun with" in complaint


def test_nobody_else_trains_in_the_folder_meanwhile(learn, tmp_path, monkeypatch):
    honest, refused = on_policy.Loop.evaluate, []

    def trying(loop, *given):
        with pytest.raises(InputError, match="another process is training in"), alone(loop.folder):
            pytest.fail("both were let in")
        refused.append(given)
        return honest(loop, *given)

    monkeypatch.setattr(on_policy.Loop, "evaluate", trying)
    assert learn()[0] == 0 and len(refused) == 2


def test_a_finished_run_that_is_resumed_for_longer_goes_on(learn, tmp_path):
    assert learn("--schedule", "constant")[0] == learn("--schedule", "constant", "--resume", "--max-steps", 8)[0] == 0
    assert [line["step"] for line in steps(tmp_path / "run")] == list(range(1, 9)) and [line["step"] for line in held_out(tmp_path / "run")] == [0, 4, 8]


def test_a_run_that_went_too_far_stays_stopped_when_it_is_resumed_for_longer(learn, tmp_path):
    """Any distance is too far. Of 10 rounds every second is judged, of 20 every fourth."""
    options = ("--eval-every", 0, "--kl-limit", -99)
    status, said, _ = learn(*options, "--max-steps", 10)
    assert status == 0 and "stopped at step 2" in said and [line["step"] for line in held_out(tmp_path / "run")] == [0, 2]
    status, again, _ = learn(*options, "--max-steps", 20, "--resume")
    assert status == 0 and "stopped at step 2" in again and len(steps(tmp_path / "run")) == 2
    assert again.splitlines()[-1] == said.splitlines()[-1]                          # before -> after, and how far away


# ---- it learns


@pytest.mark.parametrize("options", [
    [], ["--algorithm", "rloo"], ["--algorithm", "reinforce"], ["--std", "none", "--aggregation", "constant"], ["--kl-in", "reward"],
    ["--aggregation", "token", "--clip-high", 0.28, "--passes", 2, "--minibatches", 2, "--lr", 1e-2], ["--kl-coef", 0, "--skip-kl"],
    ["--top-k", 50, "--temperature", 0.8], ["--entropy-coef", 0.001, "--std", "biased"], ["--optimizer", "adamw8bit"],
], ids=str)    # fmt: skip
def test_the_reward_rises_by_a_quarter_with_every_setting(learn, tmp_path, options):
    """From 0.2 at the first step, when nothing has been learned."""
    more = ("--max-steps", 24, "--eval-every", 24, "--group", 8, "--judged", 12, "--warmup", 0, "--lr", 3e-2, "--kl-coef", 0.01)
    status, said, complaint = learn(*more, *options, reward="low")
    assert status == 0 and not complaint, complaint
    rewards = [line["reward"] for line in steps(tmp_path / "run")]
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.25, rewards
    before, after = held_out(tmp_path / "run")
    assert before["step"] == 0 and after["step"] == 24 and after["eval_reward"] > before["eval_reward"], said
    assert f"held-out reward {before['eval_reward']:.3f} -> {after['eval_reward']:.3f}" in said
    for line in steps(tmp_path / "run"):
        assert {"reward", "reward_std", "length", "finished", "idle", "rollout_s", "reward_s", "learn_s"} <= line.keys()
        assert ("kl" in line) == ("--skip-kl" not in options)
    assert {"entropy", "clipped", "ratio_max", "ratio_min"} <= line.keys()


def test_trap13_every_kind_of_training_starts_at_its_reference_exactly(learn, small_tokenizer, tmp_path):
    """A model's own dropout included, which is off."""
    save(random_model(small_tokenizer, **GPT2, dropout=0.3), small_tokenizer, tmp_path / "gpt2")
    for number, (options, model) in enumerate([
        (["--method", "bitfit"], tmp_path / "gpt2"), (["--quantize", "nf4"], None), (["--method", "layernorm"], None), (["--method", "pissa"], None),
        (["--method", "full", "--lr", 3e-3], tmp_path / "gpt2"), (["--checkpointing", "--batch-tokens", 40], None),
    ]):    # fmt: skip
        status, said, complaint = learn(*options, out=f"{number}", **({"model": model} if model else {}))
        assert status == 0 and not complaint, complaint
        lines, before = steps(tmp_path / f"{number}"), held_out(tmp_path / f"{number}")[0]
        assert lines[0]["kl"] == before["eval_kl"] == 0.0 or "pissa" in options and abs(lines[0]["kl"]) < 1e-4
        assert abs(lines[-1]["kl"]) > 1e-4 and f"{tmp_path / str(number) / ('model' if 'full' in options else 'adapter')}" in said
