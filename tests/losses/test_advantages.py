"""Advantages worked by hand, and what pads may not do. float64, tolerance 1e-12, where a test does not say otherwise."""

import math

import pytest
import torch

from minift.losses.advantages import (
    RunningMean, explained_variance, gae, group_advantages, reinforce_advantages, rloo_advantages, to_flat, to_rows, token_rewards, whiten,
)  # fmt: skip
from minift.losses.policy import clipped_surrogate, token_weights, value_loss

LENGTHS = torch.tensor([5, 1, 3])


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(width=5):
    """Which places are real when the answers of LENGTHS lie in rows of `width`."""
    return torch.arange(width) < LENGTHS[:, None]


def test_rows_and_back():
    flat = torch.arange(1.0, 10.0)
    rows, mask = to_rows(flat, LENGTHS)
    assert torch.equal(rows, torch.tensor([[1.0, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 0, 0]]))
    assert torch.equal(mask, rows > 0) and torch.equal(to_flat(rows, LENGTHS), flat)
    assert to_rows(flat.double(), LENGTHS)[0].dtype == torch.float64


def test_trap12_a_five_token_episode_by_hand():
    """KL (0.1, 0.2, 0, 0.4, 0.1) at price 0.5, score 2 on the fifth token, the end; gamma 0.9, lam 0.5. A sixth and seventh place are pads.

    t   r_t      V_t    V_(t+1)   delta = r + 0.9 V_(t+1) - V     A = delta + 0.45 A_(t+1)               return = A + V
    5   1.95     0.8    0          1.15                            1.15                                   1.95
    4  -0.20     0.4    0.8        0.12                            0.12 + 0.5175     =  0.6375            1.0375
    3   0        0.6    0.4       -0.24                           -0.24 + 0.286875   =  0.046875          0.646875
    2  -0.10     0.2    0.6        0.24                            0.24 + 0.02109375 =  0.26109375        0.46109375
    1  -0.05     0.5    0.2       -0.37                           -0.37 + 0.1174921875 = -0.2525078125    0.2474921875"""
    kl = f64(0.1, 0.2, 0, 0.4, 0.1, 7, 7)[None]
    values, lengths = f64(0.5, 0.2, 0.6, 0.4, 0.8, 9, 9)[None], torch.tensor([5])
    rewards = token_rewards(f64(2), kl, lengths, kl_coef=0.5)
    close(rewards, f64(-0.05, -0.1, 0, -0.2, 1.95, 0, 0)[None])
    advantages, returns = gae(rewards, values, torch.arange(7)[None] < 5, gamma=0.9, lam=0.5)
    close(advantages, f64(-0.2525078125, 0.26109375, 0.046875, 0.6375, 1.15, 0, 0)[None])
    close(returns, f64(0.2474921875, 0.46109375, 0.646875, 1.0375, 1.95, 0, 0)[None])


def test_trap11_the_score_lands_on_the_last_real_token_by_length():
    rewards = token_rewards(f64(1, 2, 3), torch.zeros(3, 5, dtype=torch.float64), LENGTHS, kl_coef=1.0)
    assert torch.equal(rewards, f64(*[0] * 4, 1, 2, *[0] * 6, 3, 0, 0).view(3, 5))


def test_an_answer_that_was_cut_off_loses_the_penalty():
    ended = torch.tensor([True, False, True])
    scores, kl = f64(1, 2, 3), torch.zeros(3, 5, dtype=torch.float64)
    rewards = token_rewards(scores, kl, LENGTHS, kl_coef=1.0, ended=ended, missing_eos_penalty=0.5)
    close(rewards.sum(1), f64(1, 1.5, 3))
    assert torch.equal(scores, f64(1, 2, 3)) and (kl == 0).all()       # what was given is untouched


def test_half_a_penalty_and_an_empty_answer_are_refused():
    for half in (dict(ended=torch.ones(3, dtype=torch.bool)), dict(missing_eos_penalty=1.0)):
        with pytest.raises(ValueError, match="give both"):
            token_rewards(f64(1, 2, 3), draw(3, 5), LENGTHS, kl_coef=1.0, **half)
    with pytest.raises(ValueError, match="without tokens has no last token"):
        token_rewards(f64(1, 2), draw(2, 3), torch.tensor([3, 0]), kl_coef=1.0)


def gae_of_one(rewards, values, gamma, lam):
    """A_t as the sum of later deltas, each with its power: arXiv:1506.02438, eq. 16."""
    n = len(rewards)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (later - t) * delta[later] for later in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
@pytest.mark.parametrize("width", [5, 8])
def test_gae_of_ragged_answers_equals_each_alone(gamma, lam, width):
    rewards, values = draw(3, width), draw(3, width, seed=1)
    advantages, returns = gae(rewards, values, rows_of(width), gamma=gamma, lam=lam)
    for row, n in enumerate(LENGTHS.tolist()):
        alone = f64(*gae_of_one(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam))
        close(advantages[row, :n], alone)
        close(returns[row, :n], alone + values[row, :n])
        assert (advantages[row, n:] == 0).all() and (returns[row, n:] == 0).all()


def test_gae_between_its_ends():
    """lam 1 and gamma 1: the return is all that is still to come. lam 0: one step ahead."""
    rewards, values, mask = draw(3, 5), draw(3, 5, seed=1), rows_of()
    to_come = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1).masked_fill(~mask, 0)
    close(gae(rewards, values, mask, gamma=1.0, lam=1.0)[1], to_come)
    ahead = torch.cat([values.masked_fill(~mask, 0)[:, 1:], f64(0, 0, 0)[:, None]], 1)
    close(gae(rewards, values, mask, gamma=1.0, lam=0.0)[0], (rewards + ahead - values).masked_fill(~mask, 0))


def ppo(logprobs, values, scores, kl, width, filler):
    """Loss and gradients of PPO on the answers of LENGTHS in rows of `width`, pads holding `filler`."""
    wide = lambda x: torch.where(rows_of(width), torch.nn.functional.pad(x, (0, width - 5)), filler)
    mask, old, old_values = rows_of(width), wide(draw(3, 5, seed=7)), wide(draw(3, 5, seed=8))
    advantages, returns = gae(token_rewards(scores, wide(kl), LENGTHS, kl_coef=0.1), old_values, mask)
    flat = lambda x: to_flat(x, LENGTHS)
    white = flat(whiten(advantages, mask))
    each = clipped_surrogate(flat(wide(logprobs)), flat(old), white) + 0.1 * value_loss(flat(wide(values)), flat(old_values), flat(returns))
    loss = (token_weights(LENGTHS, "token") * each).sum()
    return [loss.detach(), *torch.autograd.grad(loss, (logprobs, values)), white, explained_variance(old_values, returns, mask)]


@pytest.mark.parametrize("filler", [0.0, 3.0, math.nan, math.inf])
@pytest.mark.parametrize("more", [1, 4])
def test_trap15_more_pad_columns_change_neither_loss_nor_gradient(more, filler):
    inputs = draw(3, 5, seed=2).requires_grad_(), draw(3, 5, seed=3).requires_grad_(), draw(3, seed=4), draw(3, 5, seed=5)
    for ours, theirs in zip(ppo(*inputs, 5 + more, filler), ppo(*inputs, 5, 0.0)):
        assert torch.equal(ours, theirs)


def test_whitening_by_hand():                                          # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7
    x, mask = f64(1, 2, 100, 6, 50).view(1, 5), torch.tensor([[True, True, False, True, False]])
    white = f64(-2, -1, 0, 3, 0)[None] / math.sqrt(7)
    close(whiten(x, mask), white, atol=1e-8)                           # 1e-8 is added to the variance
    close(whiten(x, mask, shift_mean=False), (white + 3).masked_fill(~mask, 0), atol=1e-8)


def test_whitening_one_token_leaves_no_nan():
    mask = torch.tensor([[True, False]])
    assert torch.equal(whiten(f64(5, 7)[None], mask), f64(0, 0)[None])
    assert torch.equal(whiten(f64(5, 7)[None], mask, shift_mean=False), f64(5, 0)[None])


def test_explained_variance_by_hand():
    returns, mask = f64(1, 2, 3, 99)[None], torch.tensor([[True, True, True, False]])
    of = lambda *values: explained_variance(f64(*values)[None], returns, mask)
    close(of(1, 2, 3, 0), f64(1)[0])
    close(of(5, 5, 5, 0), f64(0)[0])                                   # a constant, whatever its level
    close(of(3, 2, 1, 0), f64(-3)[0])                                  # errors -2, 0, 2: four times the variance
    assert explained_variance(f64(1, 2)[None], f64(3, 3)[None], torch.ones(1, 2, dtype=torch.bool)) == 0


def test_group_advantages_by_hand():
    """1, 2, 6: mean 3; variance 7 over G - 1, 14/3 over G. The second prompt's rewards are ten times as far apart."""
    rewards, centred = f64(1, 2, 6, 10, 20, 60).view(2, 3), f64(-2, -1, 3)
    close(group_advantages(rewards, eps=0.0), (centred / math.sqrt(7)).repeat(2, 1))
    close(group_advantages(rewards, std="biased", eps=0.0), (centred / math.sqrt(14 / 3)).repeat(2, 1))
    close(group_advantages(rewards, std=None), torch.stack([centred, 10 * centred]))
    close(group_advantages(rewards)[0], centred / (math.sqrt(7) + 1e-4))


def test_rloo_by_hand():                                               # 1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2
    close(rloo_advantages(f64(1, 2, 6)[None]), f64(-3, -1.5, 4.5)[None])
    rewards = draw(4, 5)
    close(rloo_advantages(rewards), 5 / 4 * group_advantages(rewards, std=None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("G", [2, 3, 7, 8])
@pytest.mark.parametrize("reward", [0.1, 0.7, -1 / 3, 0.0, 1e4])
def test_trap16_equal_rewards_give_no_advantage_and_no_gradient(reward, G, dtype):
    rewards = torch.full((2, G), reward, dtype=dtype)
    for advantages in (*(group_advantages(rewards, std=std) for std in ("unbiased", "biased", None)), rloo_advantages(rewards)):
        assert not advantages.any()                                    # exactly: a mean rounded the wrong way, divided by eps, would be a push
        lengths = torch.arange(1, 2 * G + 1)
        logprobs = torch.zeros(int(lengths.sum()), dtype=dtype, requires_grad=True)
        each = clipped_surrogate(logprobs, logprobs.detach(), advantages.flatten().repeat_interleave(lengths))
        (token_weights(lengths, "answer") * each).sum().backward()
        assert not logprobs.grad.any()


def test_groups_do_not_see_each_other():
    rewards = draw(3, 4)
    other = rewards.clone()
    other[0] += 5 * draw(4, seed=1)
    for advantages in (group_advantages, rloo_advantages):
        assert torch.equal(advantages(rewards)[1:], advantages(other)[1:])


@pytest.mark.parametrize("advantages, method", [(group_advantages, "GRPO"), (rloo_advantages, "RLOO")])
def test_a_group_of_one_is_refused(advantages, method):
    with pytest.raises(ValueError, match=f"{method} compares answers to the same prompt and was given 1 of each: draw a group of 2 or more"):
        advantages(torch.ones(4, 1))


def test_a_running_mean_is_a_baseline_from_before():
    mean = RunningMean()
    close(reinforce_advantages(f64(1, 3), mean.value), f64(1, 3))      # nothing seen yet
    mean.update(f64(1, 3))
    close(reinforce_advantages(f64(5, 1, 2), mean.value), f64(3, -1, 0))
    mean.update(f64(5, 1, 2))
    assert mean.value == pytest.approx(12 / 5)                         # of five rewards, not the mean of two means


def test_a_baseline_leaves_the_policy_gradient_unbiased():
    """Two answers with p = (1/4, 3/4): E[(R - b) grad log p] is the same for every b."""
    z, R = f64(0.0, math.log(3)).requires_grad_(), f64(2, 5)
    expected = lambda b: torch.autograd.grad((z.softmax(0).detach() * reinforce_advantages(R, b) * z.log_softmax(0)).sum(), z)[0]
    close(expected(0.0), expected(17.0))
