"""The surrogate, the value loss and the averaging of tokens, by hand and by finite differences.

float64 tolerance 1e-12 where numbers are compared; weights are float32, so losses made of them agree to 1e-7 of their size."""

import math

import pytest
import torch

from minift.losses.kl import k3
from minift.losses.logprobs import per_answer
from minift.losses.policy import clip_share, clipped_surrogate, token_weights, value_loss

LENGTHS = torch.tensor([3, 1, 5, 2, 7])
N = 18
HOWS = ["answer", "token", "constant", "sum"]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def draws(seed=0):
    """(log p, log p_old, advantages, log p_ref), (N,) each; ratios from about 0.5 to 2, so the clip is met on both sides."""
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(N, generator=draw, dtype=torch.float64) - 0.1
    logprobs = old + 0.4 * torch.randn(N, generator=draw, dtype=torch.float64)
    advantages = torch.randn(len(LENGTHS), generator=draw, dtype=torch.float64).repeat_interleave(LENGTHS)
    return logprobs, old, advantages, old + 0.3 * torch.randn(N, generator=draw, dtype=torch.float64)


def test_surrogate_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.1 with clips at 0.8 and 1.2: only the first and the fourth are cut."""
    ratio, advantages = f64(1.5, 0.5, 1.5, 0.5, 1.1), f64(2, 2, -2, -2, 2)
    close(clipped_surrogate(ratio.log(), torch.zeros(5), advantages), f64(-2.4, -1.0, 3.0, 1.6, -2.2))


@pytest.mark.parametrize("ratio, advantage, slope", [(1.5, 2, 0), (0.5, 2, -1.0), (1.5, -2, 3.0), (0.5, -2, 0), (1.1, 2, -2.2), (0.9, -2, 1.8)])
def test_the_clip_cuts_a_gradient_only_where_the_token_has_gone_too_far(ratio, advantage, slope):
    logprob = f64(math.log(ratio)).requires_grad_()
    clipped_surrogate(logprob, f64(0.0), f64(advantage)).sum().backward()
    close(logprob.grad, f64(slope))                                    # d(-r A) / dlog p = -r A


def test_clip_higher_lets_likelier_tokens_grow_more():
    ratio, up = f64(1.25, 1.5, 0.7), f64(1, 1, -1)
    close(clipped_surrogate(ratio.log(), torch.zeros(3), up, clip_low=0.2, clip_high=0.28), f64(-1.25, -1.28, 0.8))


def test_clip_share_counts_the_tokens_whose_gradient_is_cut():
    logprobs, old, advantages, _ = draws()
    logprobs.requires_grad_()
    clipped_surrogate(logprobs, old, advantages, clip_low=0.1, clip_high=0.3).sum().backward()
    cut = (logprobs.grad == 0).double().mean()
    assert 0.1 < cut < 0.9
    close(clip_share(logprobs, old, advantages, clip_low=0.1, clip_high=0.3).double(), cut, atol=1e-7)


def test_clip_share_by_hand():                                         # outside with A = 0 is not cut: there was no gradient
    share = clip_share(f64(1.5, 0.5, 1.5, 0.5, 1.0, 1.5, 1.25, 0.75).log(), torch.zeros(8), f64(1, 1, -1, -1, 1, 0, 1, -1), clip_low=0.3, clip_high=0.2)
    close(share, torch.tensor(3 / 8))                                  # the first, the fourth, and 1.25


def test_surrogate_gradients_by_finite_differences():
    logprobs, old, advantages, _ = draws()
    assert torch.autograd.gradcheck(lambda p: clipped_surrogate(p, old, advantages, clip_high=0.28), logprobs.requires_grad_())


def test_trap14_equal_policies_have_ratio_one_and_the_plain_policy_gradient():
    logprobs, _, advantages, _ = draws()
    logprobs.requires_grad_()
    each = clipped_surrogate(logprobs, logprobs.detach(), advantages)
    assert torch.equal(each.detach(), -advantages)
    assert torch.equal(torch.autograd.grad(each.sum(), logprobs)[0], -advantages)
    assert clip_share(logprobs, logprobs.detach(), advantages) == 0


def test_value_loss_by_hand():
    """V_old 1, R 2, clip 0.2. V 1.5 is past 1.2 towards R: 0.5 (0.8)^2, no gradient. V 0.5 has gone away: 0.5 (1.5)^2, gradient V - R. V 1.1 is near."""
    values = f64(1.5, 0.5, 1.1).requires_grad_()
    each = value_loss(values, f64(1, 1, 1), f64(2, 2, 2))
    close(each.detach(), f64(0.32, 1.125, 0.405))
    close(torch.autograd.grad(each.sum(), values)[0], f64(0, -1.5, -0.9))


def test_value_loss_gradients_by_finite_differences():
    values, old, returns, _ = draws(1)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, clip=0.3), values.requires_grad_())


def test_value_loss_without_a_clip_is_half_the_square():
    values, old, returns, _ = draws(2)
    close(value_loss(values, old, returns, clip=math.inf), 0.5 * (values - returns) ** 2)


def test_weights_by_hand():
    """Answers of 1 and 3 tokens; the longest allowed is 5."""
    lengths, of = torch.tensor([1, 3]), lambda *values: torch.tensor(values)
    close(token_weights(lengths, "answer"), of(1 / 2, 1 / 6, 1 / 6, 1 / 6), atol=1e-7)
    close(token_weights(lengths, "token"), of(*[1 / 4] * 4), atol=1e-7)
    close(token_weights(lengths, "constant", max_length=5), of(*[1 / 10] * 4), atol=1e-7)
    close(token_weights(lengths, "sum"), of(*[1 / 2] * 4), atol=1e-7)


def test_weights_of_a_mean_sum_to_one():
    for how in ("answer", "token"):
        close(token_weights(LENGTHS, how).sum(), torch.tensor(1.0), atol=1e-6)
    assert token_weights(LENGTHS, "answer").dtype == torch.float32 and token_weights(torch.tensor([], dtype=torch.int64), "token").shape == (0,)


def test_an_average_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="'mean' is not known: wanted 'answer', 'token', 'constant' or 'sum'"):
        token_weights(LENGTHS, "mean")
    with pytest.raises(ValueError, match="give max_length"):
        token_weights(LENGTHS, "constant")


def token_losses(logprobs, old, advantages, reference, beta=0.04):
    return clipped_surrogate(logprobs, old, advantages) + beta * k3(logprobs, reference)


def literal(each, how):
    """The formulas as the papers write them, on one answer after another."""
    answers = each.split(LENGTHS.tolist())
    if how == "answer":
        return sum(answer.mean() for answer in answers) / len(answers)
    if how == "token":
        return sum(answer.sum() for answer in answers) / sum(len(answer) for answer in answers)
    return sum(answer.sum() for answer in answers) / (len(answers) * (9 if how == "constant" else 1))


@pytest.mark.parametrize("how", HOWS)
def test_weights_give_the_papers_averages(how):
    each = token_losses(*draws())
    close((token_weights(LENGTHS, how, max_length=9) * each).sum(), literal(each, how), atol=1e-6)


@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 1, 3], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("how", HOWS)
def test_trap16_micro_batches_change_no_gradient(how, cuts):
    """Answers of one step cut in any way: the weights are made before the cut, so the gradients add up to the same."""
    logprobs, old, advantages, reference = draws()
    logprobs.requires_grad_()
    (whole,) = torch.autograd.grad(literal(token_losses(logprobs, old, advantages, reference), how), logprobs)
    weights, found, start = token_weights(LENGTHS, how, max_length=9), torch.zeros(N, dtype=torch.float64), 0
    for part in LENGTHS.split(cuts):
        some = slice(start, start := start + int(part.sum()))
        loss = (weights[some] * token_losses(logprobs[some], old[some], advantages[some], reference[some])).sum()
        found += torch.autograd.grad(loss, logprobs)[0]
    close(found, whole, atol=1e-7)


def test_trap01_a_mean_per_micro_batch_would_be_another_gradient():
    """Why: answers of 1 and 3 tokens, each its own micro-batch. The mean of the means gives the short answer's token 1/2, not 1/4."""
    alone = torch.cat([token_weights(torch.tensor([n]), "token") for n in (1, 3)]) / 2
    close(alone, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]), atol=1e-7)
    close(alone, token_weights(torch.tensor([1, 3]), "answer"), atol=1e-7)                 # it is GRPO's average


def test_trap16_one_pass_without_a_reference_has_loss_zero_by_answer_but_not_by_token():
    """A group's advantages sum to 0, and at ratio 1 an answer's mean loss is -A. By token, longer answers weigh more, so the value is not 0."""
    advantages = f64(1.5, -0.5, -1.0, 0.25, -0.25)
    each = -clipped_surrogate(torch.zeros(N), torch.zeros(N), advantages.repeat_interleave(LENGTHS))
    close((token_weights(LENGTHS, "answer") * each).sum(), f64(0)[0], atol=1e-7)
    for how in HOWS[1:3]:
        assert (token_weights(LENGTHS, how, max_length=9) * each).sum().abs() > 0.01


def test_equal_lengths_make_all_means_the_same():
    lengths = torch.tensor([4, 4, 4])
    for how in HOWS[:3]:
        close(token_weights(lengths, how, max_length=4), torch.full((12,), 1 / 12), atol=1e-7)


def test_ratios_of_whole_answers_are_the_same_surrogate():
    """RLOO as trl has it: r = prod of the tokens' ratios. GSPO: their geometric mean. Answers with ratios (1.1, 1.2) and (0.5)."""
    logprobs, lengths, A = f64(1.1, 1.2, 0.5).log(), torch.tensor([2, 1]), f64(1, 1)
    whole = clipped_surrogate(per_answer(logprobs, lengths), torch.zeros(2), A, clip_high=0.5)
    close(whole, f64(-1.32, -0.5))
    close(clipped_surrogate(per_answer(logprobs, lengths) / lengths, torch.zeros(2), A, clip_high=0.5), f64(-math.sqrt(1.32), -0.5))


def test_summed_tokens_and_whole_answers_have_one_gradient_at_ratio_one():
    """So RLOO by token ("sum") is trl's RLOO on the first pass; their clips differ afterwards."""
    logprobs, _, advantages, _ = draws()
    logprobs.requires_grad_()
    ends = LENGTHS.cumsum(0) - 1
    by_token = (token_weights(LENGTHS, "sum") * clipped_surrogate(logprobs, logprobs.detach(), advantages)).sum()
    whole = per_answer(logprobs, LENGTHS)
    by_answer = clipped_surrogate(whole, whole.detach(), advantages[ends]).mean()
    close(torch.autograd.grad(by_token, logprobs)[0], torch.autograd.grad(by_answer, logprobs)[0], atol=1e-7)
