"""The next-token loss, by hand."""

import math

import torch

from minift.losses.sft import next_token

LOGITS = torch.tensor([[[0.0, math.log(3.0)], [math.log(3.0), 0.0], [5.0, -5.0]]])       # (1, 3, 2): p = (1/4, 3/4), (3/4, 1/4), never used
IDS = torch.tensor([[0, 1, 1]])


def test_worked_by_hand():                # token 1 after position 0: p = 3/4; token 1 after position 1: p = 1/4
    total, count = next_token(LOGITS, IDS, torch.tensor([[False, True, True]]))
    assert count == 2 and math.isclose(total.item(), -math.log(3 / 4) - math.log(1 / 4), rel_tol=1e-6)


def test_only_targets_count():
    total, count = next_token(LOGITS, IDS, torch.tensor([[False, False, True]]))
    assert count == 1 and math.isclose(total.item(), -math.log(1 / 4), rel_tol=1e-6)


def test_the_first_token_is_never_a_target_whatever_the_mask_says():
    assert next_token(LOGITS, IDS, torch.tensor([[True, True, True]]))[1] == 2


def test_trap06_no_target_gives_zero_loss_and_zero_gradients():
    logits = LOGITS.clone().requires_grad_()
    total, count = next_token(logits, IDS, torch.zeros(1, 3, dtype=torch.bool))
    total.backward()
    assert total.item() == 0 and count == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_sum_is_float32_for_bfloat16_logits():
    total, _ = next_token(LOGITS.bfloat16(), IDS, torch.tensor([[False, True, True]]))
    assert total.dtype == torch.float32
