"""What is made again instead of kept: the same gradients to the bit, made once for all readers, let go of behind the last, and never inside others' hooks."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from minift.models.remade import remade


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(7, 5, requires_grad=True)


def weights(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


class Made:
    """x.sin(), counted."""

    def __init__(self, x):
        self.x, self.times, self.last = x.detach(), 0, None

    def __call__(self):
        assert not torch.is_grad_enabled()
        self.times += 1
        y = self.x.sin()
        self.last = weakref.ref(y)
        return y


def test_three_readers_make_it_once_and_the_last_lets_go(x):
    V, W, U = weights((5, 3), (5, 4), (35, 2))
    plain_y = x.sin()
    plain = torch.autograd.grad((plain_y @ V).square().sum() + (plain_y @ W).square().sum() + (plain_y.view(35) @ U).square().sum(), (x, V, W, U))
    make, y = Made(x), x.sin()
    with remade(y, make):
        z = (y @ V).square().sum() + (y @ W).square().sum() + (y.view(35) @ U).square().sum()              # a view of it, too
    assert make.times == 0
    found = torch.autograd.grad(z, (x, V, W, U))
    assert make.times == 1 and make.last() is None
    assert all(torch.equal(our, their) for our, their in zip(found, plain))


def test_y_itself_is_let_go_of(x):
    (W,) = weights((5, 3))
    y = x.detach().sin()
    alive = weakref.ref(y.untyped_storage())
    with remade(y, lambda: x.detach().sin()):
        z = y @ W
    del y
    gc.collect()
    assert alive() is None and z.requires_grad


def test_a_second_backward_pass_makes_it_again(x):
    (W,) = weights((5, 3))
    make, y = Made(x), x.sin()
    with remade(y, make):
        z = (y @ W).square().sum()
    first = torch.autograd.grad(z, W, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(z, W)[0], first) and make.times == 2


def test_other_tensors_are_kept_as_ever(x):
    (W,) = weights((5, 3))
    make, y = Made(x), x.sin()
    with remade(y, make):
        z = (x @ W).square().sum()
    torch.autograd.grad(z, W)
    assert make.times == 0


def test_one_inside_another(x):
    V, W = weights((5, 6), (6, 3))
    y = x.sin()
    with remade(y, outer := Made(x)):
        h = y @ V
        u, inner = h.cos(), []
        with remade(u, lambda: inner.append(1) or h.detach().cos()):
            z = (u @ W).square().sum()
    found = torch.autograd.grad(z, (x, V, W))
    plain = torch.autograd.grad(((x.sin() @ V).cos() @ W).square().sum(), (x, V, W))
    assert all(torch.equal(our, their) for our, their in zip(found, plain)) and outer.times == 1 and inner == [1]


def test_inside_checkpointing_that_alone_decides(x):
    V, W = weights((5, 6), (6, 3))
    make = Made(x)

    def block(x):
        y = x.sin()
        with remade(y, make):
            return (y @ V).cos() @ W

    found = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).square().sum(), (x, V, W))
    plain = torch.autograd.grad(block(x).square().sum(), (x, V, W))
    assert all(torch.equal(our, their) for our, their in zip(found, plain))
    assert make.times == 1                                             # for the plain pass, not for the checkpointed one


def test_without_gradients_nothing_happens(x):
    with torch.no_grad(), remade(x, lambda: pytest.fail("nobody asked")):
        y = x @ x.T
    assert not y.requires_grad


def test_a_graph_that_nobody_uses_goes_with_its_result(x):
    """A hook that returns the tensor it was given makes a circle that no collector sees: what was kept beside y must go as well."""
    V, W = weights((5, 6), (6, 3))
    y = x.sin()
    with remade(y, Made(x)):
        u = (y @ V).tanh()                                           # whose gradient is made of its result
        alive = weakref.ref(u)
        z = (u @ W).square().sum()
    torch.autograd.grad(z, W, retain_graph=True)
    del u, z
    gc.collect()
    assert alive() is None


def test_an_input_written_to_in_place_is_an_error(x):
    (W,) = weights((5, 3))
    given = x.detach().clone()
    y = given.sin()
    with remade(y, given.sin, given):
        z = (y @ W).square().sum()
    given.add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        torch.autograd.grad(z, W)


def test_hooks_that_only_look_see_what_is_kept_after_all(x):
    V, W = weights((5, 6), (6, 3))
    seen = []

    def look(saved):
        seen.append(saved.untyped_storage().data_ptr())
        return saved.detach()

    look.only_looks = look
    with torch.autograd.graph.saved_tensors_hooks(look, lambda saved: saved):
        y = x.sin()
        with remade(y, make := Made(x)):
            h = y @ V
            with remade(h, lambda: h.detach()):
                u = h.cos()
        z = (u @ W).square().sum()
    assert y.untyped_storage().data_ptr() not in seen and h.untyped_storage().data_ptr() not in seen
    assert {t.untyped_storage().data_ptr() for t in (x, V, u, W)} <= set(seen)
    torch.autograd.grad(z, V)
    assert make.times == 1
