"""KTO worked by hand: gains 1, -1 and 0 against z = 0.5, beta = 0.5.

    desirable    sigmoid(0.5 (1 - 0.5))  = sigmoid(0.25)  = 0.562177, loss 0.437823
    undesirable  sigmoid(0.5 (0.5 + 1))  = sigmoid(0.75)  = 0.679179, loss 0.320821
    desirable    sigmoid(0.5 (0 - 0.5))  = sigmoid(-0.25) = 0.437823, loss 0.562177"""

import pytest
import torch

from minift.losses.kto import kto, kto_kl, mismatched

POLICY, REF = torch.tensor([-1.0, -6.0, -3.0]), torch.tensor([-2.0, -5.0, -3.0])
DESIRABLE, KL = torch.tensor([True, False, True]), torch.tensor(0.5)


def test_worked_by_hand():
    total, answers = kto(POLICY, REF, DESIRABLE, KL, beta=0.5)
    assert answers == 3 and total.item() == pytest.approx(0.437823 + 0.320821 + 0.562177, abs=2e-6)


def test_trap22_each_kind_of_answer_has_its_weight():
    total, answers = kto(POLICY, REF, DESIRABLE, KL, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    assert answers == 3 and total.item() == pytest.approx(2 * (0.437823 + 0.562177) + 3 * 0.320821, abs=6e-6)


def test_weights_are_as_exact_as_the_log_probabilities():
    exact = kto(POLICY.double(), REF.double(), DESIRABLE, KL.double(), desirable_weight=4 / 3, undesirable_weight=0.0)[0]
    torch.testing.assert_close(exact, 4 / 3 * kto(POLICY.double(), REF.double(), DESIRABLE, KL.double(), undesirable_weight=0.0)[0], rtol=1e-14, atol=0)


def test_trap18_a_policy_that_is_its_reference_loses_one_half_an_answer():
    assert kto(REF, REF, DESIRABLE, kto_kl(REF, REF))[0] == 1.5


def test_trap19_gradients_by_finite_differences_and_the_reference_counts():
    policy, ref = POLICY.double().requires_grad_(), REF.double().requires_grad_()
    loss = lambda p, r: kto(p, r, DESIRABLE, KL.double(), beta=0.3, desirable_weight=0.7, undesirable_weight=1.3)[0]
    assert torch.autograd.gradcheck(loss, (policy, ref))
    of_policy, of_ref = torch.autograd.grad(loss(policy, ref), (policy, ref))
    torch.testing.assert_close(of_ref, -of_policy)
    assert (of_policy < 0).tolist() == [True, False, True]                       # up, down, up


@pytest.mark.parametrize("kind", [True, False])
def test_answers_of_one_kind_alone_are_no_trouble(kind):
    total, answers = kto(POLICY, REF, torch.full((3,), kind), KL)
    assert answers == 3 and 0 < total < 3


@pytest.mark.parametrize("n", range(2, 10))
def test_trap21_no_prompt_gets_its_own_answer_and_every_answer_is_used_once(n):
    other = mismatched(n)
    assert sorted(other) == list(range(n)) and all(i != j for i, j in enumerate(other))


@pytest.mark.parametrize("n", [1, 0])
def test_trap21_one_row_is_refused(n):
    with pytest.raises(ValueError, match=f"there is {n} row: give at least 2"):
        mismatched(n)


def test_trap21_the_kl_is_a_mean_at_least_zero_and_nothing_learns_from_it():
    policy = torch.tensor([-1.0, -6.0, -3.0], requires_grad=True)
    kl = kto_kl(policy, torch.tensor([-2.0, -9.0, -2.0]))
    assert kl == 1.0 and not kl.requires_grad                                    # (1 + 3 - 1) / 3
    assert kto_kl(policy, torch.tensor([0.0, 0.0, -2.0])) == 0                   # (-1 - 6 - 1) / 3 would say: nearer than the same


def test_an_answer_counts_as_better_only_if_it_gained_more_than_answers_in_general():
    def pull(kl):
        policy = torch.zeros(1, requires_grad=True)
        return torch.autograd.grad(kto(policy, torch.zeros(1), torch.tensor([True]), torch.tensor(kl), beta=1.0)[0], policy)[0].item()

    assert pull(0.0) == pytest.approx(-0.25) and pull(3.0) == pytest.approx(-0.045177, abs=1e-6)     # sigmoid' at 0 and at -3
