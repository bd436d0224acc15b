"""Losses of log-probabilities through the head, in chunks, against the plain version with all logits.

float32 tolerance 1e-5: as in test_fused.py, whose cases these are."""

import math

import pytest
import torch
from torch.nn import functional as F

from minift.losses import logprobs as module
from minift.losses.logprobs import entropy_of, loss_from_hidden, of_tokens, pack_support, per_answer, unpack_support

N, C, V = 13, 5, 37
LENGTHS = torch.tensor([3, 1, 5, 4])                                  # of the answers; two make a pair
PAIRS = [4, 9]


def case(dtype=torch.float64, spread=1.0):
    draw = torch.Generator().manual_seed(0)
    hidden, head = (spread * torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((N, C), (V, C)))
    tokens = torch.randint(V, (N,), generator=draw)
    return hidden.requires_grad_(), head.requires_grad_(), tokens


def some_tokens(tokens):
    """A support of about half the vocabulary that holds the tokens themselves."""
    allowed = torch.rand(N, V, generator=torch.Generator().manual_seed(1)) < 0.5
    return allowed.scatter(1, tokens[:, None], True)


def pair_loss(logprobs, entropy, part):
    """A loss that mixes the tokens of a pair, and knows which pairs it was given."""
    first = {0: 0, 4: 1}[part.start]
    last = {4: 1, 13: 2}[part.stop]
    sums = per_answer(logprobs, LENGTHS[2 * first : 2 * last])
    return -F.logsigmoid(0.3 * (sums[0::2] - sums[1::2])).sum()


def plain(hidden, head, tokens, loss, groups, temperature=1.0, allowed=None):
    logits = hidden @ head.T
    logprobs, entropy = of_tokens(logits, tokens, temperature, allowed), entropy_of(logits, temperature, allowed)
    ends = torch.tensor(groups).cumsum(0).tolist()
    return sum(loss(logprobs[e - g : e], entropy[e - g : e], slice(e - g, e)) for g, e in zip(groups, ends))


def gradients(total, *inputs):
    return [total.detach(), *torch.autograd.grad(total, inputs)]


def rows(count):
    return 8 * V * count                                              # float64


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 8, 9, 12, 13, 100])    # a pair of 9 tokens is larger than some of these
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_loss_of_pairs_equals_the_plain_version_for_every_chunk(chunk, temperature):
    hidden, head, tokens = case()
    ours = loss_from_hidden(hidden, head, tokens, PAIRS, pair_loss, temperature, logit_bytes=rows(chunk))
    theirs = plain(hidden, head, tokens, pair_loss, PAIRS, temperature)
    for our, their in zip(gradients(ours.loss, hidden, head), gradients(theirs, hidden, head)):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.logprobs, of_tokens(hidden @ head.T, tokens, temperature).detach(), rtol=0, atol=1e-12)


def test_gradients_by_finite_differences():
    hidden, head, tokens = case()
    assert torch.autograd.gradcheck(lambda h, w: loss_from_hidden(h, w, tokens, PAIRS, pair_loss, 0.7, logit_bytes=rows(5)).loss, (hidden, head))


def test_float32_is_as_good_as_its_rounding():
    hidden, head, tokens = case(torch.float32)
    ours = loss_from_hidden(hidden, head, tokens, PAIRS, pair_loss)
    for our, their in zip(gradients(ours.loss, hidden, head), gradients(plain(hidden, head, tokens, pair_loss, PAIRS), hidden, head)):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 13])
@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_the_entropy_has_its_gradient_too(chunk, temperature):
    hidden, head, tokens = case()
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    loss = lambda logprobs, entropy, part: (weights[part] * (logprobs.exp() - 0.3 * entropy**2)).sum()
    allowed = some_tokens(tokens)
    for support, mask in ((None, None), (pack_support(allowed), allowed)):
        ours = loss_from_hidden(hidden, head, tokens, [1] * N, loss, temperature, support, entropy=True, logit_bytes=rows(chunk))
        theirs = plain(hidden, head, tokens, loss, [1] * N, temperature, mask)
        for our, their in zip(gradients(ours.loss, hidden, head), gradients(theirs, hidden, head)):
            torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


def test_entropy_by_hand():                                           # p = (1/2, 1/4, 1/4): H = 1.5 bits
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    torch.testing.assert_close(entropy_of(logits), torch.tensor([1.5 * math.log(2)]))
    torch.testing.assert_close(entropy_of(logits, support=torch.tensor([[False, True, True]])), torch.tensor([math.log(2)]))


def test_trap14_only_tokens_that_could_be_drawn_share_the_probability():
    """z = (log 2, 0, 0) without the first: p of the others is 1/2 each, not 1/4."""
    hidden, head = torch.tensor([[1.0]]), torch.tensor([[math.log(2.0)], [0.0], [0.0]])
    support = pack_support(torch.tensor([[False, True, True]]))
    found = loss_from_hidden(hidden, head, torch.tensor([1]), [1], lambda logprobs, entropy, part: logprobs.sum(), support=support)
    torch.testing.assert_close(found.logprobs, torch.tensor([math.log(0.5)]))


def test_support_and_temperature_have_the_right_gradient():
    hidden, head, tokens = case()
    allowed = some_tokens(tokens)
    ours = loss_from_hidden(hidden, head, tokens, PAIRS, pair_loss, 0.7, pack_support(allowed), logit_bytes=rows(5))
    for our, their in zip(gradients(ours.loss, hidden, head), gradients(plain(hidden, head, tokens, pair_loss, PAIRS, 0.7, allowed), hidden, head)):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 37])
def test_support_survives_packing(vocab):
    allowed = torch.rand(5, vocab, generator=torch.Generator().manual_seed(vocab)) < 0.5
    packed = pack_support(allowed)
    assert packed.shape == (5, -(-vocab // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_support(packed, vocab), allowed)


def test_sums_per_answer_by_hand():
    torch.testing.assert_close(per_answer(torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([2, 1, 3])), torch.tensor([3.0, 3.0, 15.0]))


def test_without_gradients_the_log_probabilities_are_the_same_to_the_bit():
    hidden, head, tokens = case(torch.float32)
    learned = loss_from_hidden(hidden, head, tokens, PAIRS, pair_loss).logprobs
    with torch.no_grad():
        looked = loss_from_hidden(hidden, head, tokens, PAIRS, pair_loss)
    assert torch.equal(learned, looked.logprobs) and not looked.loss.requires_grad


def test_a_group_is_never_torn_apart():
    hidden, head, tokens = case()
    seen = []
    loss = lambda logprobs, entropy, part: seen.append((part.start, part.stop)) or logprobs.sum()
    loss_from_hidden(hidden, head, tokens, [3, 1, 5, 4], loss, logit_bytes=rows(4))
    assert seen == [(0, 4), (4, 9), (9, 13)]


def test_a_loss_that_ignores_the_log_probabilities_has_no_gradient():
    hidden, head, tokens = case()
    loss_from_hidden(hidden, head, tokens, PAIRS, lambda logprobs, entropy, part: torch.ones(())).loss.backward()
    assert not hidden.grad.any() and not head.grad.any()


def test_groups_must_hold_every_token():
    hidden, head, tokens = case()
    with pytest.raises(ValueError, match="groups hold 4 tokens, 13 were given"):
        loss_from_hidden(hidden, head, tokens, [4], pair_loss)


@pytest.mark.parametrize("rows_of_a_tile", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_in_the_cache_at_once_change_nothing(monkeypatch, dtype, rows_of_a_tile):
    """Chunks of up to 9 tokens in tiles of 1, 2 and 5, the last ones shorter; with a temperature, a support and an entropy."""

    def found():
        hidden, head, tokens = case(dtype, spread=2.0)
        allowed = some_tokens(tokens)
        loss = lambda logprobs, entropy, part: (logprobs * (1 + torch.arange(part.start, part.stop))).sum() + 0.3 * entropy.sum()
        own = loss_from_hidden(hidden, head, tokens, PAIRS, loss, 0.7, pack_support(allowed), entropy=True, logit_bytes=dtype.itemsize * V * 9)
        return [own.logprobs, own.entropy, *gradients(own.loss, hidden, head)], [*plain(hidden, head, tokens, loss, PAIRS, 0.7, allowed)[None].detach()]

    whole, (expected,) = found()
    monkeypatch.setattr(module, "TILE_BYTES", rows_of_a_tile * V * max(4, dtype.itemsize))
    tiled, _ = found()
    assert all(torch.equal(one, other) for one, other in zip(whole, tiled))
    assert whole[2].item() == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-2)


def test_gradients_in_bfloat16_round_z_and_dz_and_nothing_else():
    """The same two roundings by hand, all else in float64. What is left is the rounding of the results, and of dW that of its two chunks before
    they are added: half a step of 2^-7 each, of the largest number."""
    hidden, head, tokens = case(torch.bfloat16, spread=2.0)
    loss = lambda logprobs, entropy, part: -logprobs.sum()
    _, dhidden, dhead = gradients(loss_from_hidden(hidden, head, tokens, PAIRS, loss, logit_bytes=2 * V * 9).loss, hidden, head)
    h, W = hidden.detach().double(), head.detach().double()
    z = (h @ W.T).bfloat16().double()
    dz = (z.softmax(1) - F.one_hot(tokens, V)).bfloat16().double()
    for our, exact in ((dhidden, dz @ W), (dhead, dz.T @ h)):
        torch.testing.assert_close(our.double(), exact, atol=2**-7 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_could_not_be_drawn_spoils_no_gradient_of_others(dtype):
    hidden, head, tokens = case(dtype)
    allowed = some_tokens(tokens).scatter(1, tokens[:1, None], False)                 # the first row's token alone
    own = loss_from_hidden(hidden, head, tokens, [1] * N, lambda logprobs, *_: logprobs[logprobs > float("-inf")].sum(), support=pack_support(allowed))
    _, dhidden, dhead = gradients(own.loss, hidden, head)
    assert own.logprobs[0] == float("-inf") and not dhidden[0].any()
    assert dhidden.isfinite().all() and dhidden[1:].any() and dhead.isfinite().all()
