"""Products in whole numbers: by hand, exact however many rows, outlying rows apart, and where each way is taken."""

import copy
import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from minift.models.linear import Linear, without_gradients
from minift.quant import whole_numbers as module
from minift.quant.int8 import quantize
from minift.quant.linear import QuantizedLinear, rounded, token_by_token

vnni = pytest.mark.skipif(not getattr(torch.cpu, "_is_vnni_supported", lambda: False)(), reason="this CPU does not multiply whole numbers (VNNI)")
seed = lambda n: torch.Generator().manual_seed(n)


def made(N, K, n=0):
    return quantize(torch.randn(N, K, generator=seed(n)))


@vnni
def test_worked_by_hand():
    # 127 / 2 (2, -1, 0.25) = 127, -63.5 -> -64 (the even one), 15.875 -> 16; 127 / 3 (1, 1, 3) = 42.3 -> 42, 42, 127. W's row: 127, 64, 0 and scale 1 / 127.
    q = quantize(torch.tensor([[1.0, 0.5, 0.0]]))
    y = module.by_both(torch.tensor([[2.0, -1.0, 0.25], [0.0, 0.0, 0.0], [1.0, 1.0, 3.0]]), q)
    torch.testing.assert_close(y, torch.tensor([[(127 * 127 - 64 * 64) / 127 * 2 / 127], [0.0], [42 * (127 + 64) / 127 * 3 / 127]]), rtol=2**-22, atol=0)


@vnni
@pytest.mark.parametrize("N, K", [(1, 1), (7, 33), (36, 80), (100, 20000)])
def test_sums_are_exact_and_a_row_is_the_same_alone(N, K):
    q, x = made(N, K), torch.randn(9, K, generator=seed(1)).clamp(-3, 3)
    q.packed[0], x[1] = 127, x[1].sign()                                              # the largest sums there are
    together = module.by_both(x, q)
    assert all(torch.equal(module.by_both(x[m, None], q)[0], together[m]) for m in range(9))
    s = x.abs().amax(1, keepdim=True) / 127
    sums = (x / s).round().long() @ q.packed.long().T
    assert torch.equal(together, sums.float() * q.scale * s)


@vnni
def test_a_number_is_off_by_half_a_step_of_its_row_at_most():
    q, x = made(48, 160), torch.randn(5, 160, generator=seed(2)) * torch.logspace(-6, 6, 5)[:, None]
    W = q.packed.double() * q.absmax.double()[:, None] / 127
    off = (module.by_both(x, q).double() - x.double() @ W.T).abs()
    s = x.abs().amax(1, keepdim=True).double() / 127
    assert (off <= 0.50001 * s * W.abs().sum(1)).all()
    # and on average far less: steps of s, evenly spread, are off by s / sqrt 12. A mean over 48 outputs is itself off by 1 / sqrt(2 * 48) = 10 %: three and a half times that
    torch.testing.assert_close((off**2).mean(1).sqrt(), (s * (W**2).sum(1).mean().sqrt() / 12**0.5)[:, 0], rtol=0.35, atol=0)


@vnni
@pytest.mark.parametrize("K", [256, 1024, 4096])
def test_a_row_with_a_number_that_would_drown_the_others_keeps_16_bits(K):
    q, x = made(8, K), torch.randn(4, K, generator=seed(3))
    rest = torch.cat([x[:, :5], x[:, 6:]], 1).square().mean(1).sqrt()                 # of the others
    x[1, 5], x[2, 5], x[3, 5] = 33 * rest[1], -31 * rest[2], 1000 * rest[3]
    y, sixteen = module.by_both(x, q), module.by_one(x, q)
    assert [bool((y[m] == sixteen[m]).all()) for m in range(4)] == [False, True, False, True]
    W = q.packed.float() * q.scale[:, None]
    others = x[3].clone()
    others[5] = 0                                                                     # what the small ones say is still there
    assert (y[3] - x[3, 5] * W[:, 5] - W @ others).abs().max() < 2**-7 * (x[3, 5] * W[:, 5]).abs().max()
    assert torch.equal(module.by_both(x[1, None], q)[0], y[1]), "and alone"
    assert torch.equal(module.by_both(x.T.contiguous().T, q), y), "and however x lies"


@vnni
def test_what_is_not_finite_stays_so_and_keeps_to_its_row():
    q, x = made(16, 32), torch.randn(4, 32, generator=seed(4))
    expected = module.by_both(x, q)
    x[0, 3], x[2, 5] = float("nan"), float("inf")
    y = module.by_both(x, q)
    assert not y[[0, 2]].isfinite().any() and torch.equal(y[[1, 3]], expected[[1, 3]])


def test_which_way(monkeypatch):
    large, small, odd = (quantize(torch.ones(N, K)) for N, K in ((2**10, 2**10), (2**10, 2**9), (2**10, 2**10 + 8)))
    for vnni, fast in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(module, "exact_sums", lambda: vnni)
        monkeypatch.setattr(module, "FAST", fast)
        one = module.by_one if fast else None
        assert module.way(odd, False) is module.way(odd, True) is None and module.way(small, False) is one and module.way(small, True) is None
        assert module.way(large, False) is (module.by_both if vnni else one) and module.way(large, True) is (module.by_both if vnni else None)


def test_a_library_that_cuts_sums_off_is_noticed():
    """oneDNN told to do without VNNI adds two products in 16 bits."""
    ask = "from minift.quant.whole_numbers import exact_sums; print(exact_sums())"
    run = lambda **more: subprocess.run([sys.executable, "-c", ask], env=os.environ | more, capture_output=True, text=True, check=True).stdout.strip()
    assert run(ONEDNN_MAX_CPU_ISA="AVX2") == "False" and run() == str(module.exact_sums())


@vnni
def test_a_prompt_is_read_in_whole_numbers_where_that_is_faster_with_many_rows_and_nowhere_else(monkeypatch):
    layer, x = QuantizedLinear.of(torch.nn.Linear(80, 36), "int8"), torch.randn(2, 3, 80, generator=seed(5))
    with without_gradients():
        exact = layer(x)
        with token_by_token(prompt=True):
            assert torch.equal(layer(x), exact)
            monkeypatch.setattr(module, "LARGE", 0)
            read = layer(x)
        with token_by_token():
            assert torch.equal(read, layer(x)) and not torch.equal(read, exact)
        with token_by_token(exact=True, prompt=True):
            assert torch.equal(layer(x), exact)


def test_a_linear_of_other_bits_with_hooks_or_of_a_size_no_kernel_takes_is_not_rounded(monkeypatch):
    for name, value in (("FAST", True), ("LARGE", 512), ("exact_sums", lambda: True)):
        monkeypatch.setattr(module, name, value)
    fits = Linear(32, 16)
    assert rounded(fits).q.shape == (16, 32) and torch.equal(rounded(fits).bias, fits.bias)
    assert rounded(Linear(33, 16)) is rounded(Linear(32, 12)) is rounded(torch.nn.Linear(32, 16)) is rounded(Linear(32, 16).bfloat16()) is rounded(torch.nn.Identity()) is None
    with torch.inference_mode():
        assert rounded(Linear(32, 16)) is None
    fits.register_forward_hook(lambda *_: None)
    assert rounded(fits) is None
    monkeypatch.setattr(module, "exact_sums", lambda: False)
    assert rounded(Linear(32, 16)) is None


def test_a_linear_is_rounded_once_and_again_when_it_has_changed(monkeypatch):
    for name, value in (("FAST", True), ("LARGE", 512), ("exact_sums", lambda: True)):
        monkeypatch.setattr(module, name, value)
    layer = Linear(32, 16)
    first = rounded(layer)
    assert rounded(layer) is first is not rounded(Linear(32, 16))
    for part in (layer.weight, layer.bias):
        with torch.no_grad():
            part.mul_(-1)
        second = rounded(layer)
        assert second is not first and torch.equal(second.bias, layer.bias) and (second.weight - layer.weight).abs().max() < 0.002
        first = second


@vnni
def test_what_has_been_ordered_can_be_copied_moved_and_loaded_anew():
    layer, x = QuantizedLinear.of(torch.nn.Linear(64, 32), "int8"), torch.randn(3, 64, generator=seed(6))
    expected = module.by_both(x, layer.q)
    copied = copy.deepcopy(layer)
    assert torch.equal(module.by_both(x, copied.q), expected)
    other = QuantizedLinear.of(torch.nn.Linear(64, 32), "int8")
    copied.load_state_dict(other.state_dict())
    assert torch.equal(module.by_both(x, copied.q), module.by_both(x, other.q)), "not the order of what was there before"
    assert torch.equal(module.by_both(x, dataclasses.replace(layer.q, packed=-layer.q.packed)), -expected)
