"""The sweep over learning rates: its curve by hand, its rules on made-up curves, and a model that is left alone."""

import pytest
import torch
from torch import nn

from minift.data.batches import pad
from minift.errors import InputError
from minift.train.loop import LoopConfig
from minift.train.lr_finder import BURST, Sweep, rates_between, smoothed, sweep
from tests.train.test_loop import EIGHT, Bigram, exact_loss

BATCHES = [pad([example]) for example in EIGHT]
PLAIN = dict(precision="fp32", clip=0, optimizer="sgd", betas=(0.0, 0.99), weight_decay=0.0)


def test_the_rates_by_hand():
    assert rates_between(1e-4, 1.0, 13)[::3] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


@pytest.mark.parametrize("lowest, highest, steps, text", [
    (0.0, 1.0, 50, "--lowest is 0, --highest 1: wanted two rates above 0"), (1.0, 1.0, 50, "the second the larger one"), (1.0, 0.1, 50, "the second the larger one"),
    (-1e-3, 1.0, 50, "above 0"), (1e-3, float("inf"), 50, "above 0"), (1e-3, 1.0, 9, "--steps is 9: too few"), (float("nan"), 1.0, 50, "above 0"),
])    # fmt: skip
def test_ranges_that_are_none_are_refused(lowest, highest, steps, text):
    with pytest.raises(InputError, match=text):
        rates_between(lowest, highest, steps)


def test_the_smooth_loss_by_hand():                          # beta 0.5: 4; (0.5 * 4 * 0.5 + 0.5 * 1) / 0.75 = 2; (0.75 * 2 * 0.5 + 0.5 * 2) / 0.875 = 2
    assert smoothed([4.0, 1.0, 2.0], beta=0.5) == pytest.approx([4.0, 2.0, 2.0])


def made_up(smooth):
    return Sweep([10.0 ** (i - 8) for i in range(len(smooth))], smooth, smooth)


def test_the_two_rules_on_a_made_up_curve():
    seen = made_up([5.0, 4.9, 4.7, 3.7, 3.5, 3.4, 3.6, 9.0])
    assert seen.lowest == 5 and seen.steepest == 3 and seen.suggestion == pytest.approx(1e-4) and not seen.open_end


def test_a_fall_behind_the_lowest_place_or_at_the_very_start_is_not_the_steepest():
    seen = made_up([9.0, 5.0, 4.9, 4.8, 4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4, 3.3, 3.2, 3.1, 3.0, 2.9, 2.8, 2.7, 9.0, 8.9, 4.0])
    assert seen.lowest == 17 and seen.steepest == 4


def test_a_loss_that_never_falls_suggests_nothing_and_one_that_always_falls_says_so():
    assert made_up([1.0, 2.0, 3.0, 4.0]).suggestion is None
    falling = made_up([4.0, 3.0, 2.0, 1.0])
    assert falling.open_end and falling.suggestion == pytest.approx(1e-6)


def test_each_step_takes_its_own_rate():
    # plain SGD: replayed by hand, batch after batch, epoch after epoch
    rates, model = rates_between(1e-2, 1.0, 12), Bigram()
    seen = sweep(model, lambda epoch: BATCHES[:5][:: 1 if epoch % 2 == 0 else -1], exact_loss, LoopConfig(accumulate=2, **PLAIN), rates)
    orders = [BATCHES[0:2], BATCHES[2:4], BATCHES[4:5], [BATCHES[4], BATCHES[3]], [BATCHES[2], BATCHES[1]], [BATCHES[0]]] * 2
    other = Bigram()
    for rate, window, loss in zip(rates, orders, seen.losses, strict=True):
        total = sum(exact_loss(other, batch)[0] for batch in window) / sum(batch.targets for batch in window)
        assert total.item() == pytest.approx(loss, rel=1e-9)
        (gradient,) = torch.autograd.grad(total, other.table)
        other.table.data -= rate * gradient


def test_the_model_is_left_as_it_was():
    class WithBuffer(Bigram):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, ids):
            self.calls += 1
            return super().forward(ids) * nn.functional.dropout(torch.ones(()), 0.1, self.training)

    model = WithBuffer().eval()
    torch.manual_seed(5)
    before, random_state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    for _ in range(2):
        first = sweep(model, lambda epoch: BATCHES, exact_loss, LoopConfig(lr=0.5, **PLAIN), rates_between(1e-3, 10.0, 20))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert not model.training and model.table.grad is None and torch.equal(torch.get_rng_state(), random_state)
    again = sweep(model, lambda epoch: BATCHES, exact_loss, LoopConfig(lr=0.5, **PLAIN), rates_between(1e-3, 10.0, 20))
    assert first == again


def test_an_exception_leaves_it_as_it_was_too():
    model, calls = Bigram(), []

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return exact_loss(model, batch)

    before = model.table.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        sweep(model, lambda epoch: BATCHES, failing, LoopConfig(**PLAIN), rates_between(1e-2, 1.0, 12))
    assert torch.equal(model.table, before)


def scripted(losses):
    """A loss that follows a script, whatever the model."""
    said = iter(losses)
    return lambda model, batch: (model.table.sum() * 0 + next(said) * batch.targets, batch.loss_mask.sum())


def test_it_stops_when_the_smooth_loss_has_burst_or_is_no_number():
    rates, config = rates_between(1e-2, 1.0, 30), LoopConfig(**PLAIN)
    seen = sweep(Bigram(), lambda epoch: BATCHES, scripted([2.0] * 5 + [30.0] * 25), config, rates)
    assert 5 < len(seen.losses) < 12 and seen.smooth[-1] > BURST * min(seen.smooth) >= seen.smooth[-2] and len(seen.rates) == len(seen.losses) == len(seen.smooth)
    seen = sweep(Bigram(), lambda epoch: BATCHES, scripted([2.0] * 7 + [float("nan")] * 23), config, rates)
    assert len(seen.losses) == 7
    with pytest.raises(InputError, match="the loss of the first batch is no number"):
        sweep(Bigram(), lambda epoch: BATCHES, scripted([float("nan")]), config, rates)


def test_what_it_suggests_trains_and_a_hundred_times_of_it_does_not():
    rates = rates_between(1e-3, 1e3, 120)
    seen = sweep(Bigram(), lambda epoch: [pad(EIGHT)], exact_loss, LoopConfig(**PLAIN), rates)

    def after(rate, steps=30):
        model = Bigram()
        for _ in range(steps):
            total, count = exact_loss(model, pad(EIGHT))
            (gradient,) = torch.autograd.grad(total / count, model.table)
            model.table.data -= rate * gradient
        total, count = exact_loss(model, pad(EIGHT))
        return (total / count).item()

    assert after(seen.suggestion) < 0.9 * seen.losses[0] and after(100 * seen.suggestion) > after(seen.suggestion)
