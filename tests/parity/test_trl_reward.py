"""Losses of reward models against trl's RewardTrainer.compute_loss, value and gradient, in float64 to 1e-12: the same few operations.

The trainer is an object that has what compute_loss reads; in the model's place stands a function that returns scores made by hand."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import RewardTrainer

from minift.losses.reward import bradley_terry

MARGIN = torch.tensor([0.0, 0.5, 2.0, 1.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("center", [None, 0.01, 0.3])
@pytest.mark.parametrize("margin", [None, MARGIN])
def test_value_and_gradient_with_and_without_margin_and_centring(margin, center):
    scores = (2 * torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()       # chosen, then rejected
    trainer, same = object.__new__(RewardTrainer), lambda value: value
    trainer.__dict__ |= dict(
        model=SimpleNamespace(training=True), accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        args=SimpleNamespace(center_rewards_coefficient=center), _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = dict(attention_mask=torch.ones(10, 3)) | ({} if margin is None else dict(margin=margin))
    theirs = trainer.compute_loss(lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    total, pairs = bradley_terry(*scores.chunk(2), margin=margin, center=center or 0.0)
    for ours, their in ((total / pairs, theirs), tuple(torch.autograd.grad(value, scores)[0] for value in (total / pairs, theirs))):
        torch.testing.assert_close(ours, their, rtol=0, atol=1e-12)
