"""torch.compile takes a quantized linear as one graph, forward and backward, and has nothing to complain of."""

import warnings

import pytest
import torch

from minift.quant import QuantizedLinear
from minift_kernels import codes


@pytest.mark.parametrize("maps_exist", [False, True])
@pytest.mark.parametrize("scheme, double_quant", [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False), ("int8", True), ("int4", True)])
def test_one_graph_and_the_values_and_gradients_of_the_plain_call(monkeypatch, scheme, double_quant, maps_exist):
    torch.manual_seed(0)
    layer = QuantizedLinear.of(torch.nn.Linear(70, 33), scheme, double_quant=double_quant)
    x, dy = torch.randn(3, 70, requires_grad=True), torch.randn(3, 33)
    expected = layer(x)
    (dx,) = torch.autograd.grad(expected, x, dy)
    if not maps_exist:
        monkeypatch.setattr(codes, "_tensors", {})
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)                                   # what Dynamo says of functions it cannot see through
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        (dx_compiled,) = torch.autograd.grad(y, x, dy)
    # Sums of 70 and of 33 products in another order; W is at most 1 / sqrt(70) in size, up to half a step
    torch.testing.assert_close(y, expected, rtol=0, atol=70 * 2**-24 * (x.abs().sum(1).max().item() * 0.2 + 1))
    torch.testing.assert_close(dx_compiled, dx, rtol=0, atol=33 * 2**-24 * dy.abs().sum(1).max().item() * 0.2)


def test_maps_made_in_inference_mode_serve_training_too(monkeypatch):
    monkeypatch.setattr(codes, "_tensors", {})
    with torch.inference_mode():
        values = codes.dynamic_map()
    assert not values.is_inference() and codes.dynamic_map() is values
