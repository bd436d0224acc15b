"""The estimators of the distance, their expectation taken exactly over a vocabulary of five, and the price's controllers. float64."""

import math

import pytest
import torch

from minift.losses.kl import AdaptiveKL, FixedKL, exact_kl, k1, k2, k3, reweighted_k3

P, Q = torch.tensor([[0.4, 0.25, 0.2, 0.1, 0.05]], dtype=torch.float64), torch.tensor([[0.3, 0.1, 0.25, 0.15, 0.2]], dtype=torch.float64)


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, torch.as_tensor(theirs, dtype=ours.dtype), rtol=0, atol=atol)


def logits(seed=0, scale=1.0):
    return scale * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(estimate, z, z_reference):
    """E over x drawn from softmax(z) of an estimate: the sum over all five tokens, the draws held fixed for gradients."""
    log_p, log_q = z.log_softmax(-1), z_reference.log_softmax(-1)
    return (log_p.detach().exp() * estimate(log_p, log_q)).sum()


def gradient(loss, z):
    return torch.autograd.grad(loss, z)[0]


def test_estimators_by_hand():                                         # p = 1/2, q = 1/4: log p/q = log 2
    p, q = torch.tensor([[0.5], [0.25]], dtype=torch.float64).log()
    close(k1(p, q), [math.log(2)])
    close(k2(p, q), [math.log(2) ** 2 / 2])
    close(k3(p, q), [0.5 - 1 + math.log(2)])


def test_exact_kl_by_hand():                                           # p = (1/2, 1/2), q = (1/4, 3/4)
    z, z_reference = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.25, 0.75]], dtype=torch.float64).log() + 3.0
    close(exact_kl(z, z_reference), [0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    close(exact_kl(P.log(), Q.log()), (P * (P / Q).log()).sum(1))


def test_what_cannot_be_drawn_adds_nothing_and_no_nan():
    z = torch.tensor([[0.0, -math.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    kl = exact_kl(z, torch.zeros(1, 3, dtype=torch.float64))
    close(kl.detach(), [math.log(1.5)])
    assert gradient(kl.sum(), z).isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_trap13_k1_and_k3_are_the_exact_distance_on_average(seed):
    z, z_reference = logits(seed), logits(seed + 100)
    exact = exact_kl(z[None], z_reference[None])[0]
    close(expected(k1, z, z_reference), exact)
    close(expected(k3, z, z_reference), exact)


def test_trap13_k2_is_off_by_third_order():
    """Its error shrinks eightfold, the distance fourfold, when the policies come twice as near."""
    def error(scale):
        z_reference = logits(1)
        z = z_reference + logits(2, scale)
        return (expected(k2, z, z_reference) - exact_kl(z[None], z_reference[None])[0]).item(), exact_kl(z[None], z_reference[None]).item()

    (wide, far), (narrow, near) = error(0.02), error(0.01)
    assert wide / narrow == pytest.approx(8, rel=0.05) and far / near == pytest.approx(4, rel=0.05)
    assert abs(error(2.0)[0]) > 0.05 * error(2.0)[1]                   # far apart it is plainly another number


def test_trap13_k1_is_signed_and_k2_and_k3_are_not():
    log_p, log_q = P[0].log(), Q[0].log()
    assert (k1(log_p, log_q) < 0).any() and (k2(log_p, log_q) >= 0).all() and (k3(log_p, log_q) >= 0).all()
    ratio = torch.linspace(-30, 30, 601, dtype=torch.float32)
    assert (k3(ratio, torch.zeros(601)) >= 0).all()
    tiny = torch.full((1,), 1e-4)
    torch.testing.assert_close(k3(tiny, torch.zeros(1)), k2(tiny, torch.zeros(1)), rtol=0.01, atol=0)    # not lost in rounding: exp(x) - 1 would be


def test_equal_policies_are_at_distance_zero():
    z = logits()
    for estimate in (k1, k2, k3):
        assert torch.equal(estimate(z, z), torch.zeros(5, dtype=torch.float64))
    assert exact_kl(z[None], z[None]) == 0


def test_as_a_loss_k1_pulls_nowhere_k2_as_the_distance_does_and_k3_as_the_other_direction_does():
    """Which estimator to put into a loss: in expectation only k2 has the gradient of KL(p || q)."""
    z, z_reference = logits(3).requires_grad_(), logits(4)
    towards = gradient(exact_kl(z[None], z_reference[None]).sum(), z)
    other = gradient(exact_kl(z_reference[None], z[None]).sum(), z)
    close(gradient(expected(k1, z, z_reference), z), torch.zeros(5))
    close(gradient(expected(k2, z, z_reference), z), towards)
    close(gradient(expected(k3, z, z_reference), z), other)
    assert (towards - other).abs().max() > 0.05


@pytest.mark.parametrize("old", [3, 5])                              # 3: the policy itself drew
def test_reweighted_k3_is_the_distance_and_pulls_as_it_does_for_tokens_of_an_older_policy(old):
    z, z_reference, log_old = logits(3).requires_grad_(), logits(4), logits(old).log_softmax(-1)
    exact = exact_kl(z[None], z_reference[None])[0]
    found = (log_old.exp() * reweighted_k3(z.log_softmax(-1), log_old, z_reference.log_softmax(-1))).sum()
    close(found, exact)
    close(gradient(found, z), gradient(exact, z))


def test_in_the_reward_k1_pulls_as_the_distance_does():
    """The policy gradient of a cost k1 is E[k1 grad log p]: KL's own."""
    z, z_reference = logits(3).requires_grad_(), logits(4)
    towards = gradient(exact_kl(z[None], z_reference[None]).sum(), z)
    close(gradient(expected(lambda log_p, log_q: k1(log_p, log_q).detach() * log_p, z, z_reference), z), towards)


@pytest.mark.parametrize("estimate", [k1, k2, k3])
def test_estimators_gradients_by_finite_differences(estimate):
    assert torch.autograd.gradcheck(lambda p: estimate(p, logits(4)), logits(3).requires_grad_())


def test_exact_kls_gradient_by_finite_differences():
    assert torch.autograd.gradcheck(exact_kl, (logits(3)[None].requires_grad_(), logits(4)[None].requires_grad_()))


@pytest.mark.parametrize("kl, value", [(6.0, 0.1), (12.0, 0.1 * 1.02), (6.6, 0.1 * 1.01), (3.0, 0.1 * 0.98), (5.7, 0.1 * 0.995), (-1.0, 0.1 * 0.98)])
def test_the_price_follows_the_distance_within_a_fifth(kl, value):     # target 6, n / horizon = 0.1: the paper's numbers
    price = AdaptiveKL(0.1, target=6.0, horizon=1000)
    price.update(kl, 100)
    assert price.value == pytest.approx(value, abs=1e-12)


def test_a_fixed_price_stays():
    price = FixedKL(0.05)
    price.update(100.0, 64)
    assert price.value == 0.05


def test_a_controller_that_was_saved_goes_on():
    prices = [AdaptiveKL(0.1, 6.0, 1000) for _ in range(2)]
    prices[0].update(9.0, 64)
    prices[1].value = prices[0].value
    for price in prices:
        price.update(5.0, 64)
    assert prices[0].value == prices[1].value == pytest.approx(0.1 * (1 + 0.2 * 0.064) * (1 - 0.064 / 6))


def test_a_target_of_nothing_is_refused():
    with pytest.raises(ValueError, match="target 0.0 and horizon 1000: wanted both above 0; to keep the price as it is, use FixedKL"):
        AdaptiveKL(0.1, 0.0, 1000)
