"""Losses of pairs against a reference, worked by hand.

Three pairs: the chosen answer gained (g_c = 1, g_r = 0), the rejected one did (g_c = -1, g_r = 2), nothing has moved yet. beta = 0.5, so
m = 0.5, -1.5 and 0. sigmoid(0.5) = 0.622459, sigmoid(1) = 0.731059, sigmoid(1.5) = 0.817574; the hand's numbers have six decimals."""

import math

import pytest
import torch

from minift.losses.preference import apo_down, apo_zero, cdpo, dpo, hinge, ipo, robust

POLICY_CHOSEN, POLICY_REJECTED = torch.tensor([-1.0, -6.0, -4.0]), torch.tensor([-3.0, -2.0, -7.0])
REF_CHOSEN, REF_REJECTED = torch.tensor([-2.0, -5.0, -4.0]), torch.tensor([-3.0, -4.0, -7.0])
SUMS = POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED
TOKENS = torch.tensor([2, 1, 3]), torch.tensor([5, 4, 2])

BY_HAND = [
    (dpo, {}, [0.474077, 1.701413, 0.693147]),                                   # log(1 + e^-m)
    (cdpo, dict(label_smoothing=0.1), [0.524077, 1.551413, 0.693147]),           # 0.9 log(1 + e^-m) + 0.1 log(1 + e^m)
    (robust, dict(label_smoothing=0.1), [0.411577, 1.888913, 0.693147]),         # (0.9 log(1 + e^-m) - 0.1 log(1 + e^m)) / 0.8
    (ipo, {}, [0.25, 6.25, 1.0]),                                                # (1/2 - 0 - 1)^2, (-1 - 2/4 - 1)^2, (0 - 1)^2
    (hinge, {}, [0.5, 2.5, 1.0]),                                                # 1 - m
    (apo_zero, {}, [0.877541, 1.353518, 1.0]),                                   # 0.377541 + 0.5, 0.622459 + 0.731059
    (apo_down, {}, [1.0, 1.195115, 1.0]),                                        # 0.622459 + 0.377541, 0.377541 + 0.817574
]
ALL = pytest.mark.parametrize("loss, options, _", BY_HAND, ids=lambda value: getattr(value, "__name__", ""))


def call(loss, sums, options, beta=0.5, tokens=TOKENS):
    return loss(*sums, *(tokens if loss is ipo else ()), beta=beta, **options)


def exact(*sums):
    return [values.double().requires_grad_() for values in sums]


def lead(m):
    """Sums of one pair in which m is as wanted at beta = 1."""
    return [torch.tensor([value], dtype=torch.float64, requires_grad=place == 0) for place, value in enumerate([m, 0.0, 0.0, 0.0])]


@pytest.mark.parametrize("loss, options, wanted", BY_HAND, ids=lambda value: getattr(value, "__name__", ""))
def test_worked_by_hand_as_a_sum_over_pairs_and_their_number(loss, options, wanted):
    for i, value in enumerate(wanted):
        one, count = call(loss, [s[i : i + 1] for s in SUMS], options, tokens=[t[i : i + 1] for t in TOKENS])
        assert count == 1 and one.item() == pytest.approx(value, abs=2e-6)
    total, count = call(loss, SUMS, options)
    assert count == 3 and total.item() == pytest.approx(sum(wanted), abs=4e-6)


@pytest.mark.parametrize("loss, options", [(dpo, {}), (cdpo, dict(label_smoothing=0.3)), (robust, dict(label_smoothing=0.3))])
def test_trap18_a_policy_that_is_its_reference_loses_ln_2_a_pair(loss, options):
    policy = exact(POLICY_CHOSEN, POLICY_REJECTED)
    total, pairs = loss(*policy, REF_CHOSEN * 0 + POLICY_CHOSEN, REF_REJECTED * 0 + POLICY_REJECTED, beta=0.5, **options)
    assert total.item() == pytest.approx(3 * math.log(2), abs=1e-12)
    total.backward()                                                             # and is pulled: dpo by beta / 2 each way
    pull = {dpo: 0.25, cdpo: 0.25 * 0.4, robust: 0.25 / 0.4}[loss]               # cdpo: times 1 - 2e, robust: divided by it
    torch.testing.assert_close(policy[0].grad, torch.full((3,), -pull, dtype=torch.float64))
    torch.testing.assert_close(policy[1].grad, torch.full((3,), pull, dtype=torch.float64))


@ALL
def test_trap19_gradients_by_finite_differences_and_the_reference_counts(loss, options, _):
    sums = exact(*SUMS)
    assert torch.autograd.gradcheck(lambda *s: call(loss, s, options, beta=0.3)[0], sums)
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = torch.autograd.grad(call(loss, sums, options, beta=0.3)[0], sums)
    torch.testing.assert_close(ref_chosen, -policy_chosen)                       # only log p - log p_ref counts
    torch.testing.assert_close(ref_rejected, -policy_rejected)
    assert ref_chosen.abs().max() > 1e-3 and ref_rejected.abs().max() > 1e-3


def test_trap20_ipo_is_a_mean_over_the_answers_tokens():
    """Every token twice: sums double, means stay. DPO, which takes sums, does see it."""
    twice = [2 * s for s in SUMS], [2 * t for t in TOKENS]
    torch.testing.assert_close(ipo(*twice[0], *twice[1], beta=0.5)[0], ipo(*SUMS, *TOKENS, beta=0.5)[0])
    assert abs(dpo(*twice[0], beta=0.5)[0] - dpo(*SUMS, beta=0.5)[0]) > 0.1
    longer = TOKENS[0], TOKENS[1] + 1                                            # each answer has its own length
    assert abs(ipo(*SUMS, *longer, beta=0.5)[0] - ipo(*SUMS, *TOKENS, beta=0.5)[0]) > 0.1


def test_ipo_wants_a_lead_of_one_over_two_beta_and_no_more():
    def pull(gap):
        sums = lead(gap)
        return torch.autograd.grad(ipo(*sums, torch.tensor([1]), torch.tensor([1]), beta=0.25)[0], sums[0])[0].item()

    assert pull(1.9) < 0 and pull(2.0) == 0 and pull(2.1) > 0


@pytest.mark.parametrize("loss", [cdpo, robust])
def test_trap22_label_smoothing_is_used_or_refused(loss):
    torch.testing.assert_close(loss(*SUMS, label_smoothing=0.0), dpo(*SUMS))
    assert abs(loss(*SUMS, label_smoothing=0.1)[0] - dpo(*SUMS)[0]) > 1e-3
    for share in (-0.1, 0.5, 0.7, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing is .* at least 0 and below 0.5"):
            loss(*SUMS, label_smoothing=share)
    with pytest.raises(TypeError):
        dpo(*SUMS, label_smoothing=0.1)


def test_cdpo_stops_where_the_policy_is_as_sure_as_the_labels_and_dpo_never_does():
    optimum = math.log(0.8 / 0.2)
    for m, sign in ((optimum - 0.1, -1), (optimum, 0), (optimum + 0.1, 1)):
        sums = lead(m)
        pull = torch.autograd.grad(cdpo(*sums, beta=1.0, label_smoothing=0.2)[0], sums[0])[0].item()
        assert round(pull / 0.01) * sign > 0 or abs(pull) < 1e-12 and sign == 0
        assert torch.autograd.grad(dpo(*sums, beta=1.0)[0], sums[0])[0].item() < -0.1


def test_robust_is_on_average_over_flipped_labels_dpos_loss_on_true_ones():
    flipped = SUMS[1], SUMS[0], SUMS[3], SUMS[2]
    average = 0.7 * robust(*SUMS, beta=0.5, label_smoothing=0.3)[0] + 0.3 * robust(*flipped, beta=0.5, label_smoothing=0.3)[0]
    torch.testing.assert_close(average, dpo(*SUMS, beta=0.5)[0])


def test_where_both_answers_fall_dpo_sees_nothing_and_apo_zero_does():
    both = POLICY_CHOSEN - 4, POLICY_REJECTED - 4, REF_CHOSEN, REF_REJECTED
    torch.testing.assert_close(dpo(*both)[0], dpo(*SUMS)[0])
    assert abs(apo_zero(*both, beta=0.5)[0] - apo_zero(*SUMS, beta=0.5)[0]) > 0.1


def test_apo_zero_pulls_the_chosen_answer_up_and_apo_down_pulls_both_down():
    for loss, chosen_rises in ((apo_zero, True), (apo_down, False)):
        sums = exact(*([torch.tensor([3.0]), torch.tensor([-3.0])] if loss is apo_down else [torch.zeros(1)] * 2), torch.zeros(1), torch.zeros(1))
        chosen, rejected = torch.autograd.grad(loss(*sums, beta=0.5)[0], sums[:2])
        assert (chosen < 0) == chosen_rises and rejected > 0                     # apo_down at m = 3: what is left pushes the chosen answer down


def test_hinge_has_nothing_to_learn_from_pairs_that_are_apart():
    sums = exact(*(s[None] for s in torch.tensor([1.0, -2.0, 0.0, 0.0])))
    total, _ = hinge(*sums, beta=0.5)                                            # m = 1.5
    assert total == 0 and torch.autograd.grad(total, sums[0])[0] == 0


@pytest.mark.parametrize("gain", [-1e4, 1e4])
def test_leads_of_thousands_of_nats_stay_finite(gain):
    for loss, options, _ in BY_HAND:
        sums = [torch.tensor([value], requires_grad=True) for value in (gain, 0.0, 0.0, 0.0)]
        total, _ = call(loss, sums, options, beta=0.1, tokens=[torch.tensor([7])] * 2)
        total.backward()
        assert total.isfinite() and sums[0].grad.isfinite()
    assert dpo(*[torch.tensor([value]) for value in (-1e4, 0.0, 0.0, 0.0)], beta=0.1)[0] == 1000
