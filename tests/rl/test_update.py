"""One update on rewarded answers: its gradient against a loop over tokens, however it is cut, and what it refuses.

Models are float64, but rotary positions are turned in float32 (eps 6e-8): gradients of size ~1 agree to 1e-6."""

from dataclasses import replace

import pytest
import torch

from minift.data.branches import Tree
from minift.losses.logprobs import pack_support
from minift.losses.policy import token_weights
from minift.rl.reference import logprobs_of
from minift.rl.rollout import Rollout
from minift.rl.update import Experience, Objective, gradients, take_step
from minift.train.optim import adamw
from tests.models.small import CONFIGS, model

TREES = [Tree([3, 5, 8], [[4, 9, 2], [7], [6, 6, 1, 2]]), Tree([4], [[5, 2], [8, 8, 8]]), Tree([7, 7, 9, 11, 2], [[3], [10, 4]])]
LENGTHS = torch.tensor([len(answer) for tree in TREES for answer in tree.answers])
N, V = int(LENGTHS.sum()), CONFIGS["llama"].vocab_size


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decoder():
    return model("llama").double()


def experience(how="token", trees=TREES, **more):
    lengths = torch.tensor([len(answer) for tree in trees for answer in tree.answers])
    return Experience(trees, draw(int(lengths.sum())), token_weights(lengths, how, max_length=9).double(), **more)


def moved(policy, seed=1, size=0.4):
    """log p_old of a policy that has moved since: ratios of 0.5 to 2."""
    return gradients_of(policy, experience())[0].logprobs + size * draw(N, seed=seed)


def gradients_of(policy, some, objective=Objective(), tokens=1000, **options):
    policy.zero_grad()
    seen = gradients(policy, some, objective, tokens, **options)
    return seen, {name: p.grad.clone() for name, p in policy.named_parameters()}


def same(one, other, atol=1e-6):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


def longhand(policy, some, objective, allowed=None):
    """Each answer alone behind its prompt, all logits, a loop over its tokens with every formula written out."""
    policy.zero_grad()
    total, t = 0.0, 0
    for tree in some.trees:
        for answer in tree.answers:
            ids = [*tree.prompt, *answer]
            logits = policy(torch.tensor([ids]))[0] / objective.temperature                 # (T, V)
            for place, token in enumerate(answer, start=len(tree.prompt)):
                z = logits[place - 1]
                z = z if allowed is None else z[allowed[t]]
                here = token if allowed is None else int(allowed[t][:token].sum())          # its place among those that could be drawn
                log_p = z - z.exp().sum().log()
                p = log_p[here]
                old = p.detach() if some.old is None else some.old[t]
                ratio, A = (p - old).exp(), some.advantages[t]
                clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
                each = -min(ratio * A, clipped * A)
                if objective.kl_coef:
                    x = some.reference[t] - p                                               # log of q / p
                    each = each + objective.kl_coef * {"k1": -x, "k2": x**2 / 2, "k3": x.exp() - 1 - x}[objective.kl]
                each = each + objective.entropy_coef * (log_p.exp() * log_p).sum()
                total, t = total + some.weights[t] * each, t + 1
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("objective", [
    Objective(), Objective(0.1, 0.3), Objective(kl_coef=0.3, kl="k1"), Objective(kl_coef=0.3, kl="k2"), Objective(kl_coef=0.3, kl="k3"),
    Objective(entropy_coef=0.2), Objective(0.2, 0.28, 0.1, "k3", 0.05, temperature=0.7),
], ids=str)    # fmt: skip
@pytest.mark.parametrize("again", [False, True])
def test_value_and_gradients_are_those_of_a_loop_over_full_logits(objective, again):
    policy = decoder()
    some = experience(old=moved(policy) if again else None, reference=moved(policy, seed=2) if objective.kl_coef else None)
    loss, expected = longhand(policy, some, objective)
    seen, found = gradients_of(policy, some, objective, tokens=14)
    assert seen.loss == pytest.approx(loss, abs=1e-6)
    same(found, expected)
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.05
    assert (0.1 < seen.clipped < 0.9) == again


def test_trap14_probabilities_are_of_the_tokens_that_could_be_drawn():
    policy, allowed = decoder(), draw(N, V, seed=5) > 0
    allowed[torch.arange(N), torch.tensor([token for tree in TREES for answer in tree.answers for token in answer])] = True
    objective = Objective(entropy_coef=0.3, temperature=1.3)
    some = experience(support=pack_support(allowed))
    loss, expected = longhand(policy, some, objective, allowed)
    seen, found = gradients_of(policy, some, objective, tokens=12)
    assert seen.loss == pytest.approx(loss, abs=1e-6)
    same(found, expected)


@pytest.mark.parametrize("how", ["answer", "token", "constant", "sum"])
def test_trap16_micro_batches_change_nothing(how):
    policy = decoder()
    some = experience(how, old=moved(policy), reference=moved(policy, seed=2))
    objective = Objective(kl_coef=0.2, entropy_coef=0.1)
    whole, expected = gradients_of(policy, some, objective)
    for tokens, parts in ((1, 3), (19, 2)):
        assert len(list(some.micro_batches(tokens))) == parts
        cut, found = gradients_of(policy, some, objective, tokens)
        same(found, expected)
        assert cut.loss == pytest.approx(whole.loss, abs=1e-9) and cut.clipped == whole.clipped
        torch.testing.assert_close(cut.logprobs, whole.logprobs, rtol=0, atol=1e-6)
        torch.testing.assert_close(cut.entropy, whole.entropy, rtol=0, atol=1e-6)


def test_aggregations_differ():
    policy = decoder()
    found = [gradients_of(policy, experience(how))[1]["embed.weight"] for how in ("answer", "token", "constant", "sum")]
    assert all((one - other).abs().max() > 1e-4 for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize("tokens", [1, 19, 1000])
def test_trap13_the_first_pass_has_ratio_one_exactly(tokens):
    """As it is, and against the log-probabilities that were measured before, by the same code in the same micro-batches."""
    policy = model("llama")
    some = replace(experience(), advantages=draw(N).float(), weights=token_weights(LENGTHS, "token"))
    seen, free = gradients_of(policy, some, tokens=tokens)
    assert torch.equal(seen.ratio, torch.ones(N)) and seen.clipped == 0
    assert seen.loss == pytest.approx(-(some.weights * some.advantages).sum().item(), abs=1e-6)
    rollout = Ragged([tree.prompt for tree in TREES], [answer for tree in TREES for answer in tree.answers], [True] * len(LENGTHS), None)
    before = logprobs_of(policy, rollout, 1.0, tokens, "fp32")
    again, held = gradients_of(policy, replace(some, old=before), tokens=tokens)
    assert torch.equal(again.ratio, torch.ones(N))
    same(held, free, atol=0)


class Ragged(Rollout):
    """A rollout whose prompts have 3, 2 and 2 answers."""

    trees = TREES


def test_trap15_a_longer_batch_mate_changes_nothing():
    """Rows grow from 9 to 24 places and fill with unused ones, whose probabilities, values and weights are nowhere."""
    policy, objective = decoder(), Objective(kl_coef=0.2, entropy_coef=0.1)
    some = experience("sum", old=moved(policy), reference=moved(policy, seed=2))
    seen, expected = gradients_of(policy, some, objective)
    mate = Tree([9] * 4, [[5] * 13, [6] * 7])
    longer = lambda x, value: torch.cat([x, torch.full((20,), value, dtype=x.dtype)])
    more = Experience([*TREES, mate], longer(some.advantages, 7.0), longer(some.weights, 0.0), longer(some.old, -1.0), longer(some.reference, -2.0))
    beside, found = gradients_of(policy, more, objective)
    same(found, expected)
    assert beside.loss == pytest.approx(seen.loss, abs=1e-6)
    torch.testing.assert_close(beside.logprobs[:N], seen.logprobs, rtol=0, atol=1e-6)


def test_clipped_tokens_have_no_gradient_and_the_others_keep_theirs():
    """Ratios of 1.5 everywhere: cut where the advantage is positive, kept whole where it is negative."""
    policy = decoder()
    old = gradients_of(policy, experience())[0].logprobs - torch.tensor(1.5, dtype=torch.float64).log()
    up, down = (replace(experience(old=old), advantages=torch.full((N,), value, dtype=torch.float64)) for value in (1.0, -1.0))
    seen, found = gradients_of(policy, up)
    assert seen.clipped == 1 and not any(gradient.any() for gradient in found.values())
    torch.testing.assert_close(seen.ratio, torch.full((N,), 1.5, dtype=torch.float64))
    seen, found = gradients_of(policy, down)
    assert seen.clipped == 0
    free = gradients_of(policy, replace(down, old=None))[1]
    same(found, {name: 1.5 * gradient for name, gradient in free.items()})
    assert gradients_of(policy, up, Objective(clip_high=0.6))[0].clipped == 0


def test_parts_keep_the_numbers_of_their_trees():
    some = replace(experience(), advantages=torch.arange(float(N)))                         # trees of 8, 5 and 3 tokens
    part = some.of_trees([2, 0])
    assert part.trees == [TREES[2], TREES[0]] and part.advantages.tolist() == [13, 14, 15, *range(8)]
    assert part.lengths.tolist() == [1, 2, 3, 1, 4] and part.old is None


def test_entropy_is_watched_only_if_it_is_asked_for():
    policy = decoder()
    watched, one = gradients_of(policy, experience())
    blind, other = gradients_of(policy, experience(), entropy=False)
    same(one, other, atol=1e-9)
    assert len(watched.entropy) == N and len(blind.entropy) == 0


def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_are_touched():
    policy = model("llama")
    optimizers = adamw(policy, 0.1, 0.1, (0.9, 0.99))
    gradients(policy, replace(experience(), advantages=torch.full((N,), float("nan")), weights=torch.ones(N)), Objective(), 1000)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with pytest.raises(FloatingPointError, match="the weights were touched"):
        take_step(optimizers, 1.0)
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters()) and not optimizers[0].state


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_a_step_clips_the_gradient_says_how_long_it_was_and_forgets_it(clip):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert take_step([torch.optim.SGD([weight], lr=1.0)], clip) == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), -torch.tensor([3.0, 4.0]) * (0.1 if clip == 0.5 else 1.0), rtol=1e-5, atol=0)
    assert weight.grad is None
