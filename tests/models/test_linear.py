"""The faster linear: float32 all through, the same numbers as nn.Linear, and no trace of the setting behind it.

Tolerance: sums of K = 264 products of numbers of size 1, in another order: at most K eps |sum of magnitudes| = 264 * 6e-8 * 264, in
practice about sqrt(K) eps sqrt(K) = 3e-5 for values of size 16; 2e-4 for gradients of W, sums over 1,005 tokens."""

import threading

import pytest
import torch
from torch import nn

from minift.models.linear import LARGE, Linear, PlusProduct, Product, exact_here, fast_products, is_product, packed, plus_product, without_gradients

K, N, R, TOKENS = 264, 272, 3, (5, 201)                                        # 5 * 201 * 264 > LARGE


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def results(layer: nn.Linear, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
    return y.detach(), x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_a_float64_linear(bias):
    ours, x = Linear(K, N, bias=bias), torch.randn(*TOKENS, K)
    reference = nn.Linear(K, N, bias=bias).double()
    reference.load_state_dict(ours.state_dict())
    assert "Product" in type(ours(x).grad_fn).__name__ or not exact_here()
    for our, their in zip(results(ours, x), results(reference, x.double())):
        if their is not None:
            torch.testing.assert_close(our.double(), their, rtol=0, atol=2e-4)


def test_a_frozen_weight_keeps_no_input_and_gets_no_gradient():
    W, x = torch.randn(N, K), torch.randn(*TOKENS, K, requires_grad=True)
    y = Product.apply(x, W, None)
    assert y.grad_fn.saved_tensors[0] is None
    y.sum().backward()
    torch.testing.assert_close(x.grad, W.sum(0).expand_as(x), rtol=0, atol=2e-4)


def test_an_input_without_gradient_keeps_no_weight():
    y = Product.apply(torch.randn(*TOKENS, K), torch.randn(N, K, requires_grad=True), None)
    assert y.grad_fn.saved_tensors[1] is None


def test_the_setting_is_as_before_even_after_an_error():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with fast_products():
        assert (torch.backends.mkldnn.matmul.fp32_precision == "bf16") == exact_here()
    with pytest.raises(RuntimeError), fast_products():
        torch.ones(2, 3) @ torch.ones(2, 3)
    results(Linear(K, N), torch.randn(*TOKENS, K))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_cpu_that_rounds_is_noticed_and_left_to_the_usual_library(monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    exact_here.cache_clear()
    try:
        assert not exact_here()
        with fast_products():
            assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
        assert "Product" not in type(Linear(K, N)(torch.randn(*TOKENS, K)).grad_fn).__name__
    finally:
        exact_here.cache_clear()


def test_the_trial_would_notice_rounding_to_bfloat16_and_to_tf32():
    one = torch.tensor(1 + 2**-20)
    assert one != 1 and one.bfloat16() == 1 and (one.view(torch.int32) & ~0x1FFF).view(torch.float32) == 1      # tf32 drops 13 bits


@pytest.mark.parametrize("x", [torch.randn(3, K), torch.randn(*TOKENS, K).double(), torch.randn(*TOKENS, K).bfloat16()], ids=["small", "double", "bf16"])
def test_other_products_are_nn_linears_to_the_bit(x):
    layer = Linear(K, N).to(x.dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert x.numel() < LARGE or x.dtype != torch.float32


def test_autocast_chooses_by_itself():
    layer, x = Linear(K, N), torch.randn(*TOKENS, K)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_checkpointing_gives_the_same_gradients():
    layer, x = Linear(K, K), torch.randn(*TOKENS, K)
    plain = results(layer, x)
    checkpointed = lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    checkpointed.zero_grad, checkpointed.weight, checkpointed.bias = layer.zero_grad, layer.weight, layer.bias
    for a, b in zip(plain, results(checkpointed, x)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tokens, fast", [(TOKENS, True), ((2, 3), False)], ids=["large", "small"])
def test_a_low_rank_product_is_added_with_the_gradients_of_the_formula(tokens, fast):
    y, low, B = torch.randn(*tokens, N), torch.randn(*tokens, R), torch.randn(N, R)
    dy = torch.randn(*tokens, N)
    ours, theirs = ([t.detach().to(dtype).requires_grad_() for t in (y, low, B)] for dtype in (torch.float32, torch.float64))
    sums = plus_product(*ours, 1.5), theirs[0] + 1.5 * theirs[1] @ theirs[2].T
    assert ("PlusProduct" in type(sums[0].grad_fn).__name__) == (fast and exact_here())
    for total in sums:
        total.backward(dy.to(total.dtype))
    for our, their in zip((sums[0], *(t.grad for t in ours)), (sums[1], *(t.grad for t in theirs))):
        torch.testing.assert_close(our.double(), their, rtol=0, atol=2e-4)


def test_a_low_rank_product_of_zero_changes_no_bit_and_not_its_input():
    y = torch.randn(*TOKENS, N)
    before = y.clone()
    assert torch.equal(plus_product(y, torch.randn(*TOKENS, R), torch.zeros(N, R), 2.0), before)
    plus_product(y, torch.randn(*TOKENS, R), torch.ones(N, R), 2.0)
    assert torch.equal(y, before)


def test_a_low_rank_product_keeps_only_what_its_gradients_need():
    y, low, B = torch.randn(*TOKENS, N), torch.randn(*TOKENS, R, requires_grad=True), torch.randn(N, R)
    assert PlusProduct.apply(y, low, B, 1.0).grad_fn.saved_tensors[0] is None
    assert PlusProduct.apply(y, low.detach(), B.requires_grad_(), 1.0).grad_fn.saved_tensors[1] is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [(1,), (1, 1), (8, 1), (2, 37), TOKENS], ids=str)
def test_without_gradients_the_numbers_are_those_of_a_float64_linear(tokens, bias):
    layer, x = Linear(K, N, bias=bias), torch.randn(*tokens, K)
    expected = nn.functional.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    with without_gradients():
        for y in (layer(x), packed(layer)(x)):
            assert not y.requires_grad
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-4)


def test_without_gradients_nothing_is_rounded_on_the_way():
    x = torch.full((3, 512), 1 + 2**-20)
    layer = Linear(512, 512, bias=False)
    layer.weight.data = torch.eye(512)
    with without_gradients():
        assert torch.equal(layer(x), x) and torch.equal(packed(layer)(x), x)


def test_a_packed_linear_is_read_at_any_number_of_rows_and_keeps_its_own_weight():
    layer = Linear(K, N)
    with without_gradients():
        product = packed(layer)
        outputs = {rows: product(torch.ones(rows, K)) for rows in (1, 2, 8, 33)}
        for rows, y in outputs.items():
            torch.testing.assert_close(y, layer(torch.ones(rows, K)), rtol=0, atol=2e-4)
    assert layer.weight.layout == torch.strided


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.ReLU(), Linear(4, 3).double(), Linear(4, 3).bfloat16()], ids=["not ours", "no linear", "double", "bf16"])
def test_what_cannot_be_packed_is_itself(layer):
    assert packed(layer) is layer


def test_a_linear_that_somebody_listens_to_is_called():
    layer, heard = Linear(K, N), []
    layer.register_forward_hook(lambda *given: heard.append(1))
    with without_gradients():
        packed(layer)(torch.randn(2, K))
    assert heard == [1]


def test_another_thread_has_gradients_while_this_one_does_without():
    layer, x, found = Linear(K, N), torch.randn(3, K), []
    with without_gradients():
        thread = threading.Thread(target=lambda: found.append(layer(x.clone()).requires_grad))
        thread.start()
        thread.join()
    assert found == [True]


def test_gradients_are_there_again_behind_the_block_even_after_an_error():
    layer, x = Linear(K, N), torch.randn(3, K)
    with pytest.raises(RuntimeError), without_gradients():
        with without_gradients():
            assert not layer(x).requires_grad
        assert torch.is_inference_mode_enabled()
        layer(torch.ones(2, K + 1))
    assert not torch.is_inference_mode_enabled()
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((N,), 3.0))


def test_without_gradients_other_dtypes_and_autocast_choose_by_themselves():
    layer, x = Linear(K, N), torch.randn(2, K)
    with without_gradients(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with without_gradients():
        assert layer.double()(x.double()).dtype == torch.float64


def test_a_product_is_a_linear_without_a_bias_and_nothing_around_it():
    assert is_product(Linear(2, 3, bias=False)) and is_product(nn.Linear(2, 3, bias=False))
    assert not is_product(Linear(2, 3)) and not is_product(nn.Sequential()) and not is_product(nn.Bilinear(2, 2, 2))
