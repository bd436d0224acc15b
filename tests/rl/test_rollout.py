"""Rollouts are drawn from the distribution that they are scored under."""

import pytest
import torch

from minift import peft
from minift.data.branches import rows_of
from minift.errors import InputError
from minift.losses.logprobs import unpack_support
from minift.rl.rollout import roll_out
from minift.sampling import Sampling
from minift.train.answers import logprobs_of_answers
from tests.models.small import CONFIGS, model

PROMPTS = [[3, 5, 8], [4], [7, 7, 9, 11, 2]]
V = CONFIGS["llama"].vocab_size
SAMPLINGS = [Sampling(1.0), Sampling(0.6), Sampling(1.3, top_k=4), Sampling(1.0, top_p=0.7), Sampling(0.8, top_k=9, top_p=0.8), Sampling(1.0, min_p=0.2)]


def rollout(sampling=Sampling(1.0), decoder=None, **options):
    options = {"group": 3, "max_new_tokens": 6, "seed": 1, "eos_ids": (2,), **options}
    return roll_out(decoder or model("llama"), PROMPTS, sampling=sampling, **options)


def test_answers_come_prompt_by_prompt_and_end_at_the_end_token_or_the_limit():
    found = rollout(group=4, max_new_tokens=9)
    assert found.group == 4 and len(found.trees) == 3 and [tree.prompt for tree in found.trees] == PROMPTS
    assert [answer for tree in found.trees for answer in tree.answers] == found.answers
    for answer, ended, length in zip(found.answers, found.ended, found.lengths.tolist()):
        assert length == len(answer) <= 9 and ended == (answer[-1] == 2) and (ended or length == 9) and 2 not in answer[:-1]
    assert any(found.ended) and not all(found.ended)


def test_an_answer_may_end_at_the_limit():
    ends = tuple(range(2, V, 3))
    found = rollout(group=8, max_new_tokens=2, eos_ids=ends)
    assert found.ended == [answer[-1] in ends for answer in found.answers]
    assert {ended for answer, ended in zip(found.answers, found.ended) if len(answer) == 2} == {True, False}


def test_a_seed_gives_the_same_answers_and_another_others():
    assert rollout().answers == rollout().answers != rollout(seed=2).answers


def test_answers_of_one_prompt_differ():
    assert all(len({str(answer) for answer in tree.answers}) > 1 for tree in rollout(group=4).trees)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_trap14_equal_policies_have_ratio_one_for_every_sampling(sampling):
    decoder = model("llama")
    found = rollout(sampling, decoder)
    batch = rows_of(found.trees)
    one, two = (logprobs_of_answers(decoder, batch, sampling.temperature, found.support) for _ in range(2))
    assert torch.equal((one - two).exp(), torch.ones_like(one)) and torch.isfinite(one).all()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_trap13_at_step_zero_the_log_ratio_to_the_base_is_exactly_zero(sampling):
    decoder = model("llama")
    peft.attach(decoder, peft.LoRA(rank=2, alpha=4, dropout=0.5))
    decoder.eval()
    found = rollout(sampling, decoder)
    batch = rows_of(found.trees)
    policy = logprobs_of_answers(decoder, batch, sampling.temperature, found.support)
    with peft.disabled(decoder):
        assert torch.equal(policy, logprobs_of_answers(decoder, batch, sampling.temperature, found.support))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_trap13_tokens_are_drawn_as_often_as_they_are_scored(sampling):
    """6,000 first tokens after one prompt: each token's count lies within 4.5 standard deviations of n p, none is drawn where p = 0."""
    decoder = model("llama")
    found = roll_out(decoder, [[3, 5, 8]], 6000, sampling, 1, seed=3, eos_ids=(2,), batch_size=6000)
    drawn = torch.bincount(torch.tensor(found.answers)[:, 0], minlength=V).double()
    support = None if found.support is None else found.support[:1].expand(V, -1)
    every = rows_of([found.trees[0]._replace(answers=[[token] for token in range(V)])])             # all tokens, as answers
    p = logprobs_of_answers(decoder, every, sampling.temperature, support).double().exp()
    assert abs(p.sum().item() - 1) < 1e-5
    assert ((drawn - 6000 * p).abs() <= 4.5 * (6000 * p * (1 - p)).sqrt() + 1e-3).all()


def test_the_support_holds_what_could_be_drawn():
    found = rollout(Sampling(1.0, top_k=4))
    allowed = unpack_support(found.support, V)
    assert (allowed.sum(1) == 4).all()
    assert allowed.gather(1, torch.tensor([token for answer in found.answers for token in answer])[:, None]).all()


def test_without_a_filter_nothing_is_kept():
    assert rollout().support is None


@pytest.mark.parametrize("sampling, message", [(Sampling(0.0), "temperature 0"), (Sampling(1.0, repetition_penalty=1.2), "repetition penalty")])
def test_what_could_not_be_learned_from_is_refused(sampling, message):
    with pytest.raises(InputError, match=message):
        rollout(sampling)
