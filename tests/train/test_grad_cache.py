"""GradCache against the plain gradient of the whole batch: the same mini-batches embedded with a graph and put together."""

import pytest
import torch
from torch import nn

from minift.losses.contrastive import LearnedTemperature, info_nce, info_nce_symmetric
from minift.losses.matryoshka import matryoshka
from minift.losses.mining import batch_hard
from minift.train.grad_cache import grad_cache

ROWS, SIZE = 7, 3                                                                # mini-batches of 3, 3 and 1
LOSSES = [
    lambda a, p, *n: info_nce(a, p, torch.cat(n), temperature=0.1),
    lambda a, p, *n: info_nce_symmetric(a, p, torch.cat(n), temperature=0.1),
    lambda *columns: matryoshka(lambda a, p, *n: info_nce(a, p, torch.cat(n), temperature=0.1), columns, dims=(2, 5)),
]


def close(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=atol)


class Encoder(nn.Module):
    """Ids -> embeddings, with dropout in two places. Mean over a mini-batch's own width, as with padded texts."""

    def __init__(self, dropout=0.3, dtype=torch.float64):
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(50, 8), nn.Linear(8, 16), nn.Linear(16, 5)
        self.drop = nn.Dropout(dropout)
        self.calls = []
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) / 2

    def forward(self, rows):
        """rows: a list of lists of ids -> (n, 5)"""
        self.calls.append((len(rows), torch.is_grad_enabled()))
        x = torch.stack([self.drop(self.table(torch.tensor(row))).mean(0) for row in rows])
        return self.second(self.drop(torch.tanh(self.first(x))))


def columns(count=4, rows=ROWS):
    """Anchors, positives and 2 hard negatives: texts of unequal length."""
    generator = torch.Generator().manual_seed(9)
    return [[torch.randint(50, (1 + (3 * i + column) % 5,), generator=generator).tolist() for i in range(rows)] for column in range(count)]


def whole_batch(embed, texts, loss, size=SIZE):
    """The same with one graph over everything, and the same dropout, since the mini-batches are the same."""
    return loss(*(torch.cat([embed(rows[i : i + size]) for i in range(0, len(rows), size)]) for rows in texts))


def gradients(run, model, others=(), divide=1.0):
    """(sum, count, gradients, the random number that comes next) from one seed."""
    model.zero_grad()
    torch.manual_seed(5)
    total, count = run()
    next_number = torch.rand(())
    (total / divide).backward()
    return total.detach(), count, [p.grad for p in (*model.parameters(), *others)], next_number


@pytest.mark.parametrize("loss", LOSSES)
def test_trap40_the_gradient_is_that_of_the_whole_batch_with_dropout_and_two_hard_negatives(loss):
    """The uneven last mini-batch included. Other dropout would be seen: the same loss without any is far away."""
    model, texts = Encoder(), columns()
    ours, theirs = gradients(lambda: grad_cache(texts, model, loss, size=SIZE), model), gradients(lambda: whole_batch(model, texts, loss), model)
    close(ours[0], theirs[0])
    assert ours[1] == theirs[1] == ROWS
    for mine, wanted in zip(ours[2], theirs[2], strict=True):
        close(mine, wanted)
        assert wanted.abs().max() > 1e-3
    without = gradients(lambda: grad_cache(texts, model.eval(), loss, size=SIZE), model)
    assert max((a - b).abs().max() for a, b in zip(ours[2], without[2])) > 0.01


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_trap40_any_size_of_mini_batch_without_dropout(size):
    model, texts = Encoder(dropout=0.0), columns()
    wanted = gradients(lambda: whole_batch(model, texts, LOSSES[0], size=ROWS), model)
    ours = gradients(lambda: grad_cache(texts, model, LOSSES[0], size=size), model)
    close(ours[0], wanted[0])
    for mine, theirs in zip(ours[2], wanted[2]):
        close(mine, theirs)


def test_trap40_the_two_views_of_simcse_stay_two_views():
    """One column twice: each reading has dropout of its own, and is replayed with it."""
    model, texts = Encoder(), columns(1)[0]
    loss = lambda first, second: info_nce(first, second, temperature=0.05)
    ours = gradients(lambda: grad_cache([texts, texts], model, loss, size=SIZE), model)
    theirs = gradients(lambda: whole_batch(model, [texts, texts], loss), model)
    assert ours[0] > 1e-3
    for mine, wanted in zip(ours[2], theirs[2]):
        close(mine, wanted)


def test_random_numbers_go_on_where_the_first_pass_left_them():
    model, texts = Encoder(), columns()
    torch.manual_seed(5)
    total, _ = grad_cache(texts, model, LOSSES[0], size=SIZE)
    torch.rand(3)                                                                # someone else's, before the replay
    state = torch.get_rng_state()
    total.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert gradients(lambda: grad_cache(texts, model, LOSSES[0], size=SIZE), model)[3] == gradients(lambda: whole_batch(model, texts, LOSSES[0]), model)[3]


def test_no_graph_of_more_than_a_mini_batch_is_ever_held():
    model, texts = Encoder(), columns(2)
    total, _ = grad_cache(texts, model, lambda a, p: info_nce(a, p, temperature=0.1), size=SIZE)
    assert model.calls == [(3, False), (3, False), (1, False)] * 2
    model.calls.clear()
    total.backward()
    assert model.calls == [(3, True), (3, True), (1, True)] * 2


def test_a_loss_that_is_divided_first_or_added_to_another_passes_it_on():
    """What the loop does: loss / targets of the whole step, gradients of two micro-batches summed."""
    model, texts = Encoder(), columns()
    plain = gradients(lambda: grad_cache(texts, model, LOSSES[0], size=SIZE), model)[2]
    divided = gradients(lambda: grad_cache(texts, model, LOSSES[0], size=SIZE), model, divide=4.0)[2]
    torch.manual_seed(5)
    (grad_cache(texts, model, LOSSES[0], size=SIZE)[0] / 4).backward()             # on top of the last
    for a, b, p in zip(plain, divided, model.parameters()):
        close(p.grad, a / 2)
        assert b is p.grad


def test_parameters_of_the_loss_learn_too():
    model, texts, temperature = Encoder(), columns(2), LearnedTemperature(0.1).double()
    loss = lambda a, p: info_nce(a, p, temperature=temperature())
    ours = gradients(lambda: grad_cache(texts, model, loss, size=SIZE), model, temperature.parameters())[2]
    mine, temperature.log_scale.grad = ours[-1].clone(), None
    theirs = gradients(lambda: whole_batch(model, texts, loss), model, temperature.parameters())[2]
    close(mine, theirs[-1])
    assert mine.abs() > 0.1


def test_classes_of_one_column():
    model, texts, labels = Encoder(), columns(1), torch.tensor([0, 1, 0, 1, 2, 2, 0])
    loss = lambda e: batch_hard(e, labels, margin=1.0)
    ours, theirs = gradients(lambda: grad_cache(texts, model, loss, size=SIZE), model), gradients(lambda: whole_batch(model, texts, loss), model)
    for mine, wanted in zip(ours[2], theirs[2]):
        close(mine, wanted)


def test_a_column_that_the_loss_leaves_out_and_a_frozen_encoder_get_no_gradient():
    model, texts = Encoder(), columns(3)
    unused = lambda a, p, _: info_nce(a, p, temperature=0.1)
    ours = gradients(lambda: grad_cache(texts, model, unused, size=SIZE), model)[2]
    for mine, wanted in zip(ours, gradients(lambda: whole_batch(model, texts, unused), model)[2]):
        close(mine, wanted)
    model.zero_grad()
    total, _ = grad_cache(texts, model.requires_grad_(False), unused, size=SIZE)
    total.backward()
    assert all(p.grad is None for p in model.parameters())


def test_without_gradients_it_is_a_loss_to_be_measured():
    model, texts = Encoder().eval(), columns()
    with torch.no_grad():
        total, count = grad_cache(texts, model, LOSSES[0], size=SIZE)
    assert not total.requires_grad and count == ROWS
    close(total, whole_batch(model, texts, LOSSES[0])[0].detach())


def test_the_second_pass_computes_as_the_first_under_autocast():
    """Whether backward() is called outside of autocast, as the loop does, or inside."""
    model, texts = Encoder(dtype=torch.float32), columns()

    def seen(run, inside):
        types = []
        handle = model.second.register_forward_hook(lambda *arguments: types.append(arguments[-1].dtype))
        model.zero_grad()
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = run()
            if inside:
                total.backward()
        if not inside:
            total.backward()
        handle.remove()
        return set(types), [p.grad for p in model.parameters()]

    _, wanted = seen(lambda: whole_batch(model, texts, LOSSES[0]), inside=False)
    for inside in (False, True):
        types, ours = seen(lambda: grad_cache(texts, model, LOSSES[0], size=SIZE), inside)
        assert types == {torch.bfloat16}
        for mine, theirs in zip(ours, wanted):                                   # sums of rounded numbers in another order
            assert (mine - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trap40_dropout_on_a_gpu_is_replayed():
    rows, weight = torch.randn(ROWS, 8, device="cuda", dtype=torch.float64), torch.randn(5, 8, device="cuda", dtype=torch.float64, requires_grad=True)
    embed = lambda x: nn.functional.dropout(x, 0.3) @ weight.T
    loss = lambda a, p: info_nce(a, p, temperature=0.1)
    found = []
    for run in (lambda: grad_cache([rows, rows], embed, loss, size=SIZE), lambda: whole_batch(embed, [rows, rows], loss)):
        weight.grad = None
        torch.manual_seed(5)
        run()[0].backward()
        found.append(weight.grad)
    close(*found)


def test_bad_input_is_named():
    model, texts = Encoder(), columns(2)
    loss = lambda *e: info_nce(*e, temperature=0.1)
    with pytest.raises(ValueError, match="size is 0: a mini-batch needs at least 1 row"):
        grad_cache(texts, model, loss, size=0)
    for empty in ([], [texts[0], []]):
        with pytest.raises(ValueError, match="wanted at least one column, and none without rows"):
            grad_cache(empty, model, loss, size=2)
    with pytest.raises(ValueError, match=r"embed made \(5,\) of 3 rows: wanted \(3, width\)"):
        grad_cache(texts, lambda rows: model(rows)[0], loss, size=3)
