"""AWQ: scales found on calibration texts and folded into what comes before."""

import copy
import re

import pytest
import torch
from torch import nn

from minift.errors import InputError
from minift.quant import Linear4bit, int4, quantize_model
from minift.quant import awq as method
from minift.quant.awq import places, rescale, scales, search
from minift.quant.calibrate import Inputs, blocks_of, first_inputs, measure, run_block
from minift.quant.errors import output_error
from minift.quant.model import quantizable
from tests.quant.test_gptq import batches, lively  # noqa: F401

FORMS = {
    "llama": dict(kv_heads=3),
    "grouped queries": dict(kv_heads=1, qkv_bias=True, mlp_bias=True),
    "gpt2": dict(norm="layernorm", position="learned", gated=False, activation="gelu", qkv="joined", kv_heads=3, qkv_bias=True, mlp_bias=True,
                 attention_out_bias=True),
    "gemma": dict(norm_offset=1.0, embed_scale=24**0.5, qk_norm=True, kv_heads=3),
    "falcon": dict(norm="layernorm", norm_bias=False, parallel=True, shared_norm=True, qkv="joined", gated=False),
    "neox": dict(norm="layernorm", parallel=True, qkv="grouped", kv_heads=3, gated=False),
}  # fmt: skip
FOLDED = {
    "llama": {"attention.q attention.k attention.v", "mlp.gate mlp.up", "attention.out", "mlp.down"},
    "grouped queries": {"attention.q attention.k attention.v", "mlp.gate mlp.up", "mlp.down"},
    "gpt2": {"attention.qkv", "mlp.up", "attention.out"},
    "gemma": {"attention.q attention.k attention.v", "mlp.gate mlp.up", "attention.out", "mlp.down"},
    "falcon": {"attention.qkv mlp.up"},
    "neox": {"attention.qkv", "mlp.up"},
}


@pytest.fixture(params=FORMS)
def form(request):
    """A model of that form whose norms and biases are not at their start, and some columns of the stream large."""
    model = lively(**FORMS[request.param])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
        model.embed.weight[:, ::7] *= 12
    return request.param, model


def seen(model, batches, number=0):
    block = model.blocks[number]
    streams, others = first_inputs(model, list(blocks_of(model).values()), batches)
    names = {path.removeprefix(f"blocks.{number}."): m for path, m in quantizable(model).items() if path.startswith(f"blocks.{number}.")}
    return measure(f"blocks.{number}", names, lambda: (run_block(block, x, *rest[number]) for x, rest in zip(streams, others)))


def test_scales_worked_by_hand():
    mean = torch.tensor([1.0, 4.0, 16.0])
    torch.testing.assert_close(scales(mean, 0.5), torch.tensor([0.5, 1.0, 2.0]))          # 1, 2, 4 over sqrt(4 * 1)
    assert scales(mean, 0.0).tolist() == [1, 1, 1]
    torch.testing.assert_close(scales(torch.tensor([0.0, 1.0]), 0.5), torch.tensor([0.1, 10.0]))             # 0 counts as 1e-4


def test_the_scales_go_where_a_factor_can(form):
    name, model = form
    assert {" ".join(place.readers) for place in places(model.blocks[0])} == FOLDED[name]


def test_folding_leaves_the_function_of_the_model_as_it_was(form, batches):  # noqa: F811
    _, model = form
    before, weights = [model(batch).detach() for batch in batches], {name: p.clone() for name, p in model.named_parameters()}
    for number, block in enumerate(model.blocks):
        for place in places(block):                                                      # far from 1, and different in each place
            s = torch.exp(torch.randn(block.get_submodule(place.readers[0]).in_features))
            place.divide(s)
            for name in place.readers:
                block.get_submodule(name).weight.data *= s
    assert sum(not torch.equal(weights[name], p) for name, p in model.named_parameters()) >= 3 * len(model.blocks)
    for batch, wanted in zip(batches, before):
        torch.testing.assert_close(model(batch), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_rescaling_keeps_the_function_and_tells_the_inputs_true(form, batches):  # noqa: F811
    _, model = form
    before, inputs = [model(batch).detach() for batch in batches], seen(model, batches)
    first = dict(inputs)
    rescale(model.blocks[0], inputs, 16)
    for batch, wanted in zip(batches, before):
        torch.testing.assert_close(model(batch), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    for name, sums in seen(model, batches).items():
        size = sums.hessian.abs().max().item()
        torch.testing.assert_close(inputs[name].hessian, sums.hessian, rtol=0, atol=1e-5 * size)
        torch.testing.assert_close(inputs[name].magnitude, sums.magnitude, rtol=1e-4, atol=1e-4)
    assert any(inputs[name] is not first[name] for name in inputs)


def test_the_search_finds_the_alpha_that_loses_least_among_all():
    torch.manual_seed(0)
    X = torch.randn(200, 32) * torch.where(torch.arange(32) % 8 == 0, 20.0, 1.0)         # four inputs are 20 times as large
    W, V = torch.randn(6, 32), torch.randn(9, 32)
    sums = Inputs.none(32, torch.device("cpu"))
    sums.add(X)

    def lost(s):
        return sum((X @ (M - int4.dequantize(int4.quantize(M * s, 16)) / s).T).square().sum() for M in (W, V)).item()

    found = search([W, V], sums, 16)
    tried = {alpha: lost(scales(X.abs().mean(0), alpha / 20)) for alpha in range(20)}
    best = min(tried, key=tried.get)
    assert 0 < best and lost(found) == pytest.approx(tried[best], rel=1e-4)
    torch.testing.assert_close(found, scales(X.abs().mean(0), best / 20))
    assert tried[best] < 0.8 * tried[0]                                                   # 0.65 where this was written


def test_inputs_of_one_size_have_no_scales_and_codes_are_those_of_rounding_to_nearest():
    sums = Inputs.none(16, torch.device("cpu"))
    sums.add(torch.ones(5, 16).mul_(torch.randn(5, 1).sign()))
    assert search([torch.randn(4, 16)], sums, 8).tolist() == [1] * 16


def test_with_alpha_0_alone_it_is_rounding_to_nearest(monkeypatch, form, batches):  # noqa: F811
    _, model = form
    nearest = copy.deepcopy(model)
    quantize_model(nearest, "int4", 16)
    monkeypatch.setattr(method, "STEPS", 1)
    errors = method.quantize_model(model, batches, 16)
    for path, error in errors.items():
        assert torch.equal(model.get_submodule(path).q.packed, nearest.get_submodule(path).q.packed)
        assert error.output == error.nearest
    assert all(torch.equal(model(batch), nearest(batch)) for batch in batches)


def test_no_layer_of_the_first_block_loses_more_than_by_rounding_to_nearest_and_large_inputs_lose_less(form, batches):  # noqa: F811
    name, model = form
    errors = method.quantize_model(model, batches, 16)
    assert all(isinstance(model.get_submodule(path), Linear4bit) for path in errors)
    for place in places(model.blocks[0]):
        if len(place.readers) == 1:                                                       # of several, the sum is what grows less
            error = errors[f"blocks.0.{place.readers[0]}"]
            assert error.output <= error.nearest * (1 + 1e-3)                             # scaled anew, float32 differs in its last digits
    assert sum(e.output for e in errors.values()) < sum(e.nearest for e in errors.values())


def test_what_no_place_takes_is_rounded_to_nearest(batches):  # noqa: F811
    model = lively()                                                                      # one key head for three query heads
    before = model.blocks[0].attention.out.weight.clone()
    method.quantize_model(model, batches, 16)
    assert torch.equal(model.blocks[0].attention.out.q.packed, int4.quantize(before, 16).packed)


def test_the_error_reported_is_that_of_the_layers_own_inputs(batches):  # noqa: F811
    model = lively(kv_heads=3)
    untouched, inputs = copy.deepcopy(model), seen(model, batches)
    rescale(untouched.blocks[0], inputs, 16)
    error = method.quantize_model(model, batches, 16)["blocks.0.mlp.up"]
    W = untouched.blocks[0].mlp.up.weight
    assert error.output == pytest.approx(output_error(W, int4.dequantize(int4.quantize(W, 16)), inputs["mlp.up"].hessian), rel=1e-5)


def test_blocks_of_others_are_refused():
    other = nn.Sequential(nn.Embedding(61, 8), nn.ModuleList([nn.Sequential(nn.Linear(8, 8))]))
    with pytest.raises(InputError, match=re.escape("1.0 is a Sequential: AWQ has to know what makes a linear's inputs")):
        method.quantize_model(other, [torch.zeros(1, 2, dtype=torch.long)])
