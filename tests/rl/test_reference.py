"""What the policy is held to says the same of a text before, during and after training, and in the policy's own arithmetic."""

import copy

import pytest
import torch

from minift import peft
from minift.recipes.grpo import Config
from minift.recipes.tuning import choose_parameters
from minift.rl.reference import Reference, logprobs_of
from minift.rl.rollout import roll_out
from minift.rl.update import Experience, Objective, gradients, take_step
from minift.sampling import Sampling
from minift.train.optim import adamw
from tests.models.small import model

PROMPTS = [[3, 5, 8], [4], [7, 7, 9, 11, 2]]
HOW = (0.8, 1000, "fp32")
"""Temperature, tokens of a micro-batch, precision."""


def drawn(policy, sampling=Sampling(0.8), **more):
    return roll_out(policy, PROMPTS, 3, sampling, 6, seed=1, eos_ids=(2,), **more)


def with_lora(moved=True, dropout=0.0):
    policy = model("llama")
    peft.attach(policy, peft.LoRA(rank=2, alpha=4, dropout=dropout))
    if moved:
        for name, parameter in policy.named_parameters():
            if name.endswith(".B"):
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return policy.eval()


def steps(policy, rollout, count=3):
    """Some updates of whatever trains."""
    n = int(rollout.lengths.sum())
    some = Experience(rollout.trees, torch.linspace(-1, 1, n), torch.full((n,), 1 / n))
    optimizers = adamw(policy, 0.05, 0.01, (0.9, 0.99))
    for _ in range(count):
        gradients(policy, some, Objective(temperature=0.8), 1000)
        take_step(optimizers, 1.0)


@pytest.mark.parametrize("sampling", [Sampling(0.8), Sampling(0.8, top_k=5)], ids=str)
def test_log_probabilities_are_those_of_all_logits_of_each_answer_alone(sampling):
    policy, expected = model("llama"), []
    rollout = drawn(policy, sampling)
    for tree in rollout.trees:
        for answer in tree.answers:
            logits = policy(torch.tensor([[*tree.prompt, *answer]]))[0] / 0.8
            for place, token in enumerate(answer, start=len(tree.prompt)):
                z = logits[place - 1]
                z = z if sampling.top_k is None else z.masked_fill(z < z.topk(5).values[-1], float("-inf"))
                expected.append(z.log_softmax(-1)[token])
    for tokens in (1, 25, 1000):                                            # float32 sums in another order: eps 1.2e-7 times sums of size ~10
        torch.testing.assert_close(logprobs_of(policy, rollout, 0.8, tokens, "fp32"), torch.stack(expected).detach(), rtol=0, atol=2e-5)


def test_an_adapter_switched_off_is_the_model_it_was_attached_to():
    policy = with_lora()
    rollout = drawn(policy)
    found = Reference(off=peft.disabled).logprobs(policy, rollout, *HOW)
    assert torch.equal(found, logprobs_of(model("llama"), rollout, *HOW))
    assert (found - logprobs_of(policy, rollout, *HOW)).abs().max() > 0.1   # and on again afterwards


def test_another_model_says_what_it_says_alone():
    policy, other = model("llama"), model("llama", seed=1)
    rollout = drawn(policy)
    found = Reference(other).logprobs(policy, rollout, *HOW)
    assert torch.equal(found, logprobs_of(other, rollout, *HOW)) and not found.requires_grad
    assert Reference().logprobs(policy, rollout, *HOW) is None


def test_trap13_dropout_is_off_while_it_is_asked_and_the_mode_comes_back():
    policy = with_lora(dropout=0.5)
    rollout = drawn(policy)
    still = logprobs_of(policy, rollout, *HOW)
    policy.train()
    assert torch.equal(logprobs_of(policy, rollout, *HOW), still) and policy.training
    policy.eval()
    logprobs_of(policy, rollout, *HOW)
    assert not policy.training


@pytest.mark.parametrize("method", ["lora", "bitfit", "layernorm", "pissa", "full"])
def test_training_the_policy_leaves_its_reference_alone_bit_for_bit(method):
    policy = model("gpt2" if method == "bitfit" else "llama")
    start = copy.deepcopy(policy)
    choose_parameters(policy, Config(data=(), out="", rewards={}, method=method))
    reference = Reference(start.requires_grad_(False)) if method == "full" else Reference(off=peft.disabled)
    rollout = drawn(policy)
    before, own = reference.logprobs(policy, rollout, *HOW), logprobs_of(policy, rollout, *HOW)
    steps(policy, rollout)
    assert torch.equal(reference.logprobs(policy, rollout, *HOW), before)
    assert (logprobs_of(policy, rollout, *HOW) - own).abs().max() > 0.01
    assert all(p.grad is None for p in start.parameters()) and len(before) == int(rollout.lengths.sum())
