"""One optimizer step on rewarded answers: against a plain loop over all logits, and unchanged by how it is cut (traps 13, 15, 16).

float64 model: the only float32 in it is the turning of positions, so numbers agree to 1e-6."""

import pytest
import torch

from minift.data.branches import Tree
from minift.losses.kl import k1, k2, k3
from minift.losses.policy import token_weights
from minift.rl.update import Experience, Objective, gradients, take_step
from tests.models.small import model

TREES = [Tree([3, 5, 8], [[4, 6, 2], [7, 2]]), Tree([9, 4], [[11, 12, 13, 14, 2]]), Tree([5], [[6, 2], [8, 9, 10], [2]])]
LENGTHS = torch.tensor([len(answer) for tree in TREES for answer in tree.answers])
N = int(LENGTHS.sum())


def decoder():
    return model("llama").double()


def own(seed: int) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_logprobs(decoder, temperature=1.0):
    """log p and entropy of every answer token, one answer at a time, through all logits."""
    found, entropies = [], []
    for tree in TREES:
        for answer in tree.answers:
            ids = torch.tensor([tree.prompt + answer])
            log_p = (decoder(ids)[0, len(tree.prompt) - 1 : -1] / temperature).log_softmax(-1)
            found.append(log_p.gather(1, torch.tensor(answer)[:, None])[:, 0])
            entropies.append(-(log_p.exp() * log_p).sum(1))
    return torch.cat(found), torch.cat(entropies)


def experience(decoder, **more) -> Experience:
    with torch.no_grad():
        now = plain_logprobs(decoder)[0]
    fields = {"old": now + 0.3 * own(1), "reference": now + 0.2 * own(2), **more}
    return Experience(TREES, own(0), token_weights(LENGTHS, "answer").double(), **fields)


def grads(decoder):
    found = [p.grad.clone() for p in decoder.parameters() if p.grad is not None]
    decoder.zero_grad()
    return found


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradients_equal_a_plain_loop_over_all_logits(kl, temperature):
    policy = decoder()
    seen_before = experience(policy)
    objective = Objective(0.1, 0.3, kl_coef=0.2, kl=kl, entropy_coef=0.05, temperature=temperature)
    seen = gradients(policy, seen_before, objective, tokens=10**6)
    ours = grads(policy)
    logprobs, entropy = plain_logprobs(policy, temperature)
    ratio, A = (logprobs - seen_before.old).exp(), seen_before.advantages
    each = -torch.minimum(ratio * A, ratio.clamp(0.9, 1.3) * A) + 0.2 * {"k1": k1, "k2": k2, "k3": k3}[kl](logprobs, seen_before.reference) - 0.05 * entropy
    total = (seen_before.weights * each).sum()
    total.backward()
    assert seen.loss == pytest.approx(total.item(), abs=1e-6)
    torch.testing.assert_close(seen.ratio, ratio.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.entropy, entropy.detach(), rtol=0, atol=1e-5)
    for our, their in zip(ours, grads(policy), strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["answer", "token", "constant", "sum"])
def test_trap16_the_cut_into_micro_batches_changes_nothing(how):
    policy, found = decoder(), []
    weights = token_weights(LENGTHS, how, max_length=9).double()
    for tokens in (10**6, 12, 1):
        part = Experience(TREES, own(0), weights, old=own(1) - 3)
        found.append((gradients(policy, part, Objective(), tokens).loss, grads(policy)))
    for loss, own_grads in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-9)
        for a, b in zip(own_grads, found[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_trap13_without_an_older_policy_every_ratio_is_exactly_one():
    policy = decoder()
    seen = gradients(policy, experience(policy, old=None), Objective(), 12)
    assert torch.equal(seen.ratio, torch.ones(N, dtype=torch.float64)) and seen.clipped == 0
    assert seen.loss == pytest.approx(-(token_weights(LENGTHS, "answer") * own(0)).sum().item(), abs=1e-9)    # -A where r = 1


def test_trap15_a_longer_batch_mate_changes_nothing():
    """The gradient of the first tree alone is its part of the gradient beside longer ones."""
    policy = decoder()
    alone = Experience(TREES[:1], own(0)[:5], torch.ones(5, dtype=torch.float64))
    gradients(policy, alone, Objective(), 10**6)
    first = grads(policy)
    silent = torch.zeros(N, dtype=torch.float64)
    silent[:5] = own(0)[:5]
    gradients(policy, Experience(TREES, silent, torch.ones(N, dtype=torch.float64)), Objective(), 10**6)
    for a, b in zip(first, grads(policy), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_trees_are_taken_out_with_their_own_numbers():
    part = Experience(TREES, torch.arange(N).double(), torch.ones(N)).of_trees([2, 0])
    assert part.trees == [TREES[2], TREES[0]] and part.advantages.tolist() == [10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4]


def test_no_advantage_no_gradient():
    policy = decoder()
    gradients(policy, Experience(TREES, torch.zeros(N, dtype=torch.float64), torch.ones(N, dtype=torch.float64)), Objective(), 10**6)
    assert not any(g.any() for g in grads(policy))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    policy = decoder()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    before = [p.detach().clone() for p in policy.parameters()]
    for p in policy.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(FloatingPointError, match="before the weights were touched"):
        take_step([optimizer], clip=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_a_step_is_clipped_and_forgets_its_gradient():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert take_step([torch.optim.SGD([weight], lr=1.0)], clip=1.0) == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    assert weight.grad is None
