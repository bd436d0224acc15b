"""PPO: where the reward goes, what the values learn, and that a run cut short ends where a whole one does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minift import peft
from minift.data.branches import rows_of
from minift.models.scorer import Scorer
from minift.recipes import ppo
from minift.rl.reference import logprobs_of
from minift.rl.rollout import Rollout
from minift.rl.update import Experience, Objective, gradients
from minift.train.log import read_metrics
from tests.models.small import model

RULE = """
def share_of_e(prompts, completions):
    return [text.count("e") / max(1, len(text)) for text in completions]

def nothing(prompts, completions):
    return [float("nan")] * len(completions)
"""
PROMPTS, ANSWERS = [[3, 5, 8], [9], [4, 6]], [[7, 8, 2], [5, 2], [6, 7, 8, 9]]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}: say"}) + "\n" for n in range(30)))
    return tmp_path


@pytest.fixture
def learn(minift, files, small_model):
    def run(*more, reward="share_of_e", out="run", steps=3):
        own = ["--data", files / "prompts.jsonl", "--model", small_model, "--out", files / out, "--max-steps", steps, "--prompts", 4, "--passes", 2]
        return minift("ppo", *own, "--new-tokens", 6, "--precision", "fp32", "--rewards", f"{files / 'rule.py'}:{reward}", 1.0, *more)

    return run


def actor(policy=None, **settings) -> ppo.Actor:
    policy = policy or model("llama")
    config = ppo.Config(data=("x",), out="y", rewards={"pep257": 1.0}, lr=1e-3, precision="fp32", **settings)
    torch.manual_seed(0)
    value = ppo.SharedValue(policy.config.hidden_size)
    torch.nn.init.normal_(value.head.weight, std=0.1)
    return ppo.Actor(policy, value, config)


def test_trap12_the_reward_lands_on_the_end_token_and_advantages_equal_a_longhand_table(monkeypatch):
    """Three answers of 3, 2 and 4 tokens. Backwards from each last token: delta = r + V' - V, A = delta + 0.95 A', with V' = 0 behind the end."""
    learner, seen = actor(kl_coef=0.1), []
    rollout, scores = Rollout(PROMPTS, ANSWERS, [True, True, False], None), torch.tensor([1.0, -2.0, 0.5])
    old, values = learner.look(rollout)
    reference = old - torch.linspace(-0.3, 0.5, 9)
    monkeypatch.setattr(learner, "update", lambda experience, step: seen.append(experience) or {"loss": 0.0, "grad_norm": 0.0})
    learner.learn(rollout, scores, reference, 0)
    wanted, returns, start = [], [], 0
    for length, score in zip((3, 2, 4), scores.tolist()):
        V, kl, after, own = values[start : start + length].tolist(), (old - reference)[start : start + length].tolist(), 0.0, []
        for t in reversed(range(length)):
            r = -0.1 * kl[t] + (score if t == length - 1 else 0.0)
            following = V[t + 1] if t + 1 < length else 0.0
            after = r + following - V[t] + 0.95 * after
            own.insert(0, after)
        wanted, returns, start = wanted + own, returns + [a + v for a, v in zip(own, V)], start + length
    wanted = torch.tensor(wanted)
    torch.testing.assert_close(seen[0].advantages, (wanted - wanted.mean()) / wanted.std(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0].returns, torch.tensor(returns), rtol=1e-5, atol=1e-5)


def test_values_are_read_where_their_token_is_predicted():
    """V of an answer's first token is read at the prompt's last: it may not know the token yet."""
    learner = actor()
    rollout = Rollout(PROMPTS, ANSWERS, [True, True, False], None)
    _, values = learner.look(rollout)
    stream = learner.model.hidden(torch.tensor([PROMPTS[0] + ANSWERS[0]]))[0]
    torch.testing.assert_close(values[:3], learner.value.head(stream[2:5])[:, 0].detach(), rtol=1e-5, atol=1e-5)


def test_a_model_of_values_is_read_at_the_same_places():
    scorer = Scorer.on(model("llama", seed=1))
    batch = rows_of(Rollout(PROMPTS, ANSWERS, [True, True, False], None).trees)
    values = ppo.OwnValue(scorer)(None, batch)
    torch.testing.assert_close(values[:3], scorer(torch.tensor([PROMPTS[0] + ANSWERS[0]]))[0, 2:5, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 1000])
def test_the_loss_of_values_worked_by_hand(tokens):
    """0.3 times the mean of max((V - G)^2, (V' - G)^2) / 2 over all 9 tokens, however they are cut; V' within 0.1 of the value at rollout."""
    learner = actor(value_coef=0.3, value_clip=0.1)
    rollout = Rollout(PROMPTS, ANSWERS, [True, True, False], None)
    _, V = learner.look(rollout)
    before, G, total = V - torch.linspace(-0.3, 0.3, 9), V + torch.linspace(0.5, -0.7, 9).roll(4), 0.0
    for v, v_before, g in zip(V.tolist(), before.tolist(), G.tolist()):
        near = v_before + min(0.1, max(-0.1, v - v_before))
        total += 0.3 * max((v - g) ** 2, (near - g) ** 2) / 2 / 9
    some = Experience(rollout.trees, torch.zeros(9), torch.full((9,), 1 / 9), old_values=before, returns=G)
    assert gradients(learner.model, some, Objective(), tokens, critic=learner.critic).loss == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
def test_trap14_ratios_are_to_the_policy_that_drew_on_every_pass(monkeypatch, parts):
    learner, seen, honest = actor(passes=2, minibatches=parts, temperature=0.8), [], ppo.gradients
    rollout = Rollout(PROMPTS, ANSWERS, [True, True, False], None)
    drew = logprobs_of(learner.model, rollout, 0.8, 1000, "fp32")
    torch.testing.assert_close(learner.look(rollout)[0], drew, rtol=0, atol=1e-5)
    monkeypatch.setattr(ppo, "gradients", lambda *given, **more: seen.append((given[1], honest(*given, **more))) or seen[-1][1])
    learner.learn(rollout, torch.tensor([1.0, -2.0, 0.5]), drew - 0.1, 0)
    own = {tuple(tree.prompt): part for tree, part in zip(rollout.trees, drew.split([3, 2, 4]))}
    for number, (part, after) in enumerate(seen):
        torch.testing.assert_close(part.old if number else after.logprobs, torch.cat([own[tuple(tree.prompt)] for tree in part.trees]), rtol=0, atol=1e-5)
    assert len(seen) == 2 * parts and (seen[0][1].ratio == 1).all() and (seen[-1][1].ratio - 1).abs().max() > 1e-3


def test_trap13_dropout_is_off_while_it_learns():
    policy = model("llama")
    peft.attach(policy, peft.LoRA(rank=2, alpha=4, dropout=0.5))
    for name, parameter in policy.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    learner, rollout = actor(policy), Rollout(PROMPTS, ANSWERS, [True, True, False], None)
    drew = logprobs_of(policy, rollout, 1.0, 1000, "fp32")
    learner.modules.train()
    assert learner.learn(rollout, torch.tensor([1.0, -2.0, 0.5]), drew, 0)["kl"] == pytest.approx(0.0, abs=1e-5)


def test_minibatches_of_every_step_are_others(learn, monkeypatch):
    found, honest = [], ppo.minibatches
    monkeypatch.setattr(ppo, "minibatches", lambda *given: found.append(honest(*given)) or found[-1])
    assert learn("--minibatches", 2)[0] == 0 and len({str(one) for one in found}) == len(found) == 3


def test_values_learn_what_to_expect():
    """The same reward for every answer: V moves towards it, and what it explains of the returns is no longer nothing."""
    learner = actor(kl_coef=0.0, passes=8, value_coef=1.0, value_clip=10.0)
    rollout, scores = Rollout(PROMPTS, ANSWERS, [True, True, False], None), torch.full((3,), 2.0)
    first = learner.look(rollout)[1]
    for step in range(12):
        learner.learn(rollout, scores, learner.look(rollout)[0], step)
    assert (learner.look(rollout)[1] - 2).abs().mean() < 0.5 * (first - 2).abs().mean()


@pytest.mark.parametrize("more", [[], ["--value", "own"], ["--kl-target", 5.0, "--kl-horizon", 10], ["--minibatches", 2]])
def test_an_interrupted_run_ends_where_a_whole_one_ends(learn, files, monkeypatch, more):
    assert learn(*more, out="whole")[0] == 0
    honest, calls = ppo.Actor.learn, []

    def cut(self, *given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(self, *given)

    monkeypatch.setattr(ppo.Actor, "learn", cut)
    assert learn(*more, out="cut")[0] == 1
    monkeypatch.undo()
    assert learn(*more, "--resume", out="cut")[0] == 0
    whole, pieced = (load_file(files / out / "adapter" / "adapter_model.safetensors") for out in ("whole", "cut"))
    assert whole.keys() == pieced.keys() and all(torch.equal(whole[name], pieced[name]) for name in whole)
    coefs = lambda out: [line["kl_coef"] for line in read_metrics(files / out) if "kl_coef" in line]
    assert coefs("whole") == coefs("cut") and len(coefs("cut")) == 3


def test_beta_follows_its_target(learn, files):
    learn("--kl-target", 5.0, "--kl-horizon", 10)
    coefs = [line["kl_coef"] for line in read_metrics(files / "run") if "kl_coef" in line]
    assert coefs == sorted(coefs, reverse=True) and coefs[-1] < 0.05                  # the distance is far below 5: beta falls
    assert coefs[0] == pytest.approx(0.05 * (1 - 0.2 * 4 / 10))                       # by a fifth at most for every 10 answers, of which there are 4


@pytest.mark.parametrize("more", [["--method", "full", "--lr", 1e-4], ["--quantize", "nf4"], ["--method", "full", "--value", "own", "--lr", 1e-4]])
def test_full_weights_and_a_base_in_4_bits(learn, files, more):
    status, _, complaints = learn(*more, steps=2)
    assert status == 0, complaints
    for name in ("rewards.png", "ratios.png", "samples.md"):
        assert (files / "run" / name).exists()


def test_trap13_the_first_pass_has_ratio_one(learn, files):
    learn("--passes", 1)
    lines = [line for line in read_metrics(files / "run") if "ratio_max" in line]
    assert all(line["ratio_max"] == line["ratio_min"] == 1 for line in lines) and lines[0]["value"] == 0 != lines[-1]["value"]


@pytest.mark.parametrize("more, message", [
    (["--value-model", "somewhere"], "--value own"), (["--kl-coef", -1], "0 or more"), (["--kl-target", 0], "more than 0"), (["--minibatches", 9], "9"),
])  # fmt: skip
def test_what_could_not_be_or_would_do_nothing_is_refused(learn, more, message):
    status, _, complaints = learn(*more)
    assert status == 2 and message in complaints


def test_a_reward_that_fails_stops_the_run_with_exit_status_1(learn):
    status, _, complaints = learn(reward="nothing")
    assert status == 1 and "nan" in complaints
