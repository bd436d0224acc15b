"""The QLoRA product: the same function and gradients as its two terms, and taken only where a kernel gains."""

import pytest
import torch
from torch import nn

from minift import peft, quant
from minift.quant import low_rank

N, K, T = 24, 16, 300


def layer(monkeypatch, scheme="nf4", bias=True, dtype=torch.float32):
    """A quantized linear with a trained-like LoRA, on what passes for a GPU (kernels run in Triton's interpreter)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, N, bias=bias, dtype=dtype))
    quant.quantize_model(model, scheme)
    peft.attach(model, peft.LoRA(rank=3, alpha=6))
    model[0].adapters["default"].B.data.normal_()
    monkeypatch.setattr(low_rank, "on_gpu", lambda t: True)
    return model


def apart(model, x):
    """The same, its two terms computed one after the other."""
    small = model[0].adapters["default"]
    return model[0].base(x) + small.scale * (x @ small.A.T) @ small.B.T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_one_product_is_the_two_terms_in_value_and_gradient(monkeypatch, scheme, bias):
    model, x = layer(monkeypatch, scheme, bias), torch.randn(2, T // 2, K, requires_grad=True)
    called = []
    monkeypatch.setattr("minift_kernels.qlora.qlora_linear", spy(called))
    dy = torch.randn(2, T // 2, N)
    small = model[0].adapters["default"]
    y = model(x)
    got = torch.autograd.grad(y, (x, small.A, small.B), dy)
    wanted_y = apart(model, x)
    wanted = torch.autograd.grad(wanted_y, (x, small.A, small.B), dy)
    assert called == [(2, T // 2, K)]
    torch.testing.assert_close(y, wanted_y, rtol=1e-5, atol=1e-5)
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_few_rows_other_schemes_dropout_and_wider_inputs_are_computed_apart(monkeypatch):
    monkeypatch.setattr("minift_kernels.qlora.qlora_linear", None)                    # calling it would fail
    few, many = torch.randn(256, K), torch.randn(T, K)
    model = layer(monkeypatch)
    torch.testing.assert_close(model(few), apart(model, few), rtol=1e-5, atol=1e-5)
    whole = layer(monkeypatch, "int8")
    torch.testing.assert_close(whole(many), apart(whole, many), rtol=1e-5, atol=1e-5)
    narrow = layer(monkeypatch, dtype=torch.float16)
    small = narrow[0].adapters["default"]
    assert low_rank.fused(narrow[0].base, many, small.A, small.B, small.scale) is None
    thinned = nn.Sequential(nn.Linear(K, N))
    quant.quantize_model(thinned, "nf4")
    peft.attach(thinned, peft.LoRA(rank=3, dropout=0.5))
    assert thinned.train()(many).shape == (T, N)


def test_without_a_gpu_nothing_is_fused():
    model = nn.Sequential(nn.Linear(K, N))
    quant.quantize_model(model, "nf4")
    assert low_rank.fused(model[0], torch.randn(T, K), torch.randn(3, K), torch.randn(N, 3), 1.0) is None


def spy(called):
    from minift_kernels.qlora import qlora_linear

    return lambda x, *rest: called.append(tuple(x.shape)) or qlora_linear(x, *rest)
