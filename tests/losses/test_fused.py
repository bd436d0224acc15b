"""The head and the loss in chunks against the plain version: the same numbers, without the logits.

float32 tolerances: a logit is a sum of C = 12 products of numbers near 1, so values differ by about C eps = 1.4e-6, and gradients, sums
of V = 37 (dh) or n = 15 (dW) products with p at most 1, likewise; 1e-5 leaves a factor of 5. float64 is 2^29 times finer."""

import pytest
import torch
from torch import nn

from minift.losses.fused import next_token_from_hidden
from minift.losses.sft import next_token

B, T, C, V = 3, 7, 12, 37
MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)        # 11 targets: the first column never counts


def case(dtype=torch.float32, frozen=False):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, C, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(V, C, generator=draw, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    return hidden, head, torch.randint(V, (B, T), generator=draw)


def chunks_of(rows: int) -> int:
    return rows * V * 4


def plain(hidden, head, ids, mask):
    return next_token(nn.functional.linear(hidden, head).to(torch.promote_types(hidden.dtype, torch.float32)), ids, mask)


def gradients(function, hidden, head, ids, mask=MASK, times=1.0):
    hidden, head = hidden.detach().requires_grad_(), head.detach().requires_grad_()
    total, count = function(hidden, head, ids, mask)
    (total * times).backward()
    return total.detach(), count, hidden.grad, head.grad


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 10, 11, 12, 100])                # around the 11 targets, where chunks go wrong
def test_equals_the_plain_version_in_value_and_gradients_for_every_chunk(rows):
    ours = gradients(lambda *a: next_token_from_hidden(*a, logit_bytes=chunks_of(rows)), *case(), times=0.3)
    for our, their in zip(ours, gradients(plain, *case(), times=0.3)):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_equals_a_float64_reference():
    hidden, head, ids = case(torch.float64)
    logits = hidden @ head.T
    places = MASK[:, 1:].nonzero()
    reference = sum(logits[b, t].logsumexp(0) - logits[b, t, ids[b, t + 1]] for b, t in places.tolist())
    wanted = torch.autograd.grad(reference, (hidden, head))
    total, count = next_token_from_hidden(hidden, head, ids, MASK, logit_bytes=chunks_of(4))
    assert count == 11 and total.dtype == torch.float64
    for our, their in zip((total, *torch.autograd.grad(total, (hidden, head))), (reference, *wanted)):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


def test_gradients_by_finite_differences():
    hidden, head, ids = case(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: next_token_from_hidden(h, w, ids, MASK, logit_bytes=chunks_of(4))[0], (hidden, head))


def test_positions_that_are_no_target_get_a_gradient_of_zero():
    _, _, grad, _ = gradients(next_token_from_hidden, *case())
    predicts = torch.zeros(B, T, dtype=torch.bool)
    predicts[:, :-1] = MASK[:, 1:]
    assert torch.equal(grad.abs().sum(-1) > 0, predicts)


def test_trap06_no_target_gives_zero_loss_and_zero_gradients():
    total, count, dhidden, dhead = gradients(next_token_from_hidden, *case(), mask=torch.zeros(B, T, dtype=torch.bool))
    assert total == 0 and count == 0 and not dhidden.any() and not dhead.any()


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    hidden, head, ids = case(frozen=True)
    total, _ = next_token_from_hidden(hidden, head, ids, MASK)
    assert total.grad_fn.saved_tensors[1] is None
    total.backward()
    assert head.grad is None and hidden.grad is not None


def test_a_frozen_stream_trains_the_head_alone():
    hidden, head, ids = case()
    total, _ = next_token_from_hidden(hidden.detach(), head, ids, MASK)
    total.backward()
    torch.testing.assert_close(head.grad, gradients(plain, *case())[3], rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_kept_or_multiplied_back(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "zeros_like", lambda *a, **k: made.append(a))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: made.append(a))
    hidden, head, ids = case()
    with torch.no_grad():
        total, _ = next_token_from_hidden(hidden, head, ids, MASK)
    assert not made and not total.requires_grad
    torch.testing.assert_close(total, plain(hidden, head, ids, MASK)[0].detach(), rtol=1e-5, atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_target():
    """z = (200, -200): p of the second is e^-400, zero in float32, and its loss is 400 all the same."""
    hidden, head = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[200.0], [-200.0]])
    total, _ = next_token_from_hidden(hidden, head, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert total == 400


def test_autocast_rounds_the_products_to_bfloat16_and_nothing_else():
    """As the plain version under autocast: logits of size up to 10 rounded to 8 bits, 2^-9 * 10 = 0.02 each, and 11 of them."""
    hidden, head, ids = case()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(next_token_from_hidden, hidden, head, ids), gradients(plain, hidden, head, ids)
    assert ours[0].dtype == torch.float32 and ours[2].dtype == ours[3].dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=11 * 0.02)
    for our, their in zip(ours[2:], theirs[2:]):                                # p - onehot rounded to 2^-9, times |W| up to 3, over a few terms
        torch.testing.assert_close(our, their, rtol=2**-6, atol=0.05)
    exact = gradients(next_token_from_hidden, hidden, head, ids)
    assert not torch.equal(ours[0], exact[0])                                   # it did round


def test_a_bfloat16_model_sums_in_float32():
    hidden, head, ids = case(torch.bfloat16)
    total, _, dhidden, dhead = gradients(next_token_from_hidden, hidden, head, ids)
    assert total.dtype == torch.float32 and dhidden.dtype == dhead.dtype == torch.bfloat16
    torch.testing.assert_close(total, plain(hidden, head, ids, MASK)[0].detach(), rtol=0, atol=11 * 0.02)


def test_no_tensor_of_all_positions_times_the_vocabulary_is_made():
    """The largest thing a step keeps or makes is a chunk of 2 rows, the head or the stream; B T V would be 777 numbers."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(r.numel() for r in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(r, torch.Tensor))
            return result

    hidden, head, ids = case()
    with Watch():
        total, _ = next_token_from_hidden(hidden, head, ids, MASK, logit_bytes=chunks_of(2))
        total.backward()
    assert max(sizes) == V * C < B * T * V


def test_twice_backward_through_one_graph_gives_the_same_gradient_twice():
    hidden, head, ids = case()
    total, _ = next_token_from_hidden(hidden, head, ids, MASK)
    first = torch.autograd.grad(total, (hidden, head), retain_graph=True)
    second = torch.autograd.grad(2 * total, (hidden, head))
    for a, b in zip(first, second):
        assert torch.equal(2 * a, b)
