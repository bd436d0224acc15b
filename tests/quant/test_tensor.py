"""quantize and dequantize: what they refuse and how they say it, bytes, and the tensors inside."""

import pytest
import torch

from minift import quant
from minift.errors import InputError
from minift.quant.tensor import rows, tensors, with_tensors

SCHEMES = ["nf4", "fp4", "int8", "int4"]
W = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))


def refused(text, *arguments):
    with pytest.raises(InputError, match=text):
        quant.quantize(*arguments)


def test_an_unknown_scheme():
    refused("no scheme is called 'int3': choose one of nf4, fp4, int8, int4", W, "int3")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(5,), (), (0,), (0, 3), (3, 0), (2, 3, 4)])
def test_no_matrix_or_an_empty_one(scheme, shape):
    refused(rf"takes a matrix \(N, K\) with something in it, this has shape \({', '.join(map(str, shape))}", torch.zeros(shape), scheme)


@pytest.mark.parametrize("size", [0, 16, 63, 65, 8192, 64.0, "64"])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_a_block_size_that_nobody_reads(scheme, size):
    refused(rf"block_size is {size!r}: {scheme} takes one of 32, 64, 128, 256, 512, 1024, 2048, 4096", W, scheme, size)


def test_a_block_size_for_rows_and_for_groups():
    refused("block_size is 64, but int8 has one scale per row: leave it out", W, "int8", 64)
    refused("block_size is 4: int4 needs a whole number of columns per group, at least 8", W, "int4", 4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_are_named_with_their_place(scheme, number, dtype):
    w = W.to(dtype, copy=True)
    w[3, 5] = number
    refused(rf"the weight holds {number} at \[3, 5\]: one such number would make its whole block meaningless", w, scheme)


def test_large_numbers_whose_sum_is_infinite_are_no_infinity():
    w = torch.full((4, 64), 60000.0, dtype=torch.float16)
    assert torch.equal(quant.dequantize(quant.quantize(w, "nf4")), w)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_beyond_float32_are_named_with_their_place(scheme):
    w = W.double()
    w[2, 69] = -1e300
    refused(r"the weight holds -1e\+300 at \[2, 69\]: quantizing computes in float32, which ends at 3.402823e\+38", w, scheme)
    w[4, 1] = float("inf")
    w[2, 69] = 0
    refused(r"the weight holds inf at \[4, 1\]", w, scheme)


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("large", [2e37, 3.4e38])
def test_large_finite_numbers_stay_finite(scheme, large):
    w = W.clamp(-1, 1) * large
    w[0, 0] = large
    q = quant.quantize(w, scheme, double_quant=False)
    assert torch.isfinite(quant.dequantize(q)).all() and (quant.dequantize(q) - w).abs().max() < 0.2 * large
    assert all(torch.isfinite(piece).all() for piece in rows(q))


def test_int4_refuses_groups_wider_than_its_scale_can_say():
    # 15 * 65504 = 982560: 0 to 5e5 fits, -5e5 to 5e5 does not
    w = torch.zeros(3, 40)
    w[1, 17] = 5e5
    assert quant.dequantize(quant.quantize(w, "int4", 16)).max() > 4.9e5
    w[1, 18] = -5e5
    refused("row 1, group 1 of the weight goes from -500000 to 500000: int4's scales are float16, so a group may span 982560 at most", w, "int4", 16)
    w[1, 17] = 2e37
    refused(r"row 1, group 1 of the weight goes from -500000 to 2e\+37", w, "int4", 16)


def test_what_rounding_would_make_infinite_is_refused():
    # The mean of 64 absmax of 3.4e38 is beyond float32. 65504 / 15 is 4368 in float16, and 15 * 4368 = 65520 an infinity
    refused("numbers this large become an infinity in nf4 and torch.float32: divide the weights, or leave double_quant out",
            torch.full((64, 64), 3.4e38), "nf4")  # fmt: skip
    refused("numbers this large become an infinity in int4 and torch.float16", torch.tensor([[65504.0, 0.0]]).half(), "int4", 8)
    w = torch.tensor([[60000.0, 0.0]]).half()
    assert torch.equal(quant.dequantize(quant.quantize(w, "int4", 8)), w)


def test_a_tensor_without_numbers_and_one_of_8_bits():
    refused("the weight is on the meta device, where tensors hold no numbers: load it first", W.to("meta"), "nf4")
    refused("takes floating-point numbers, these are torch.float8_e4m3fn", W.to(torch.float8_e4m3fn), "nf4")


def test_dequantize_says_what_it_takes():
    with pytest.raises(InputError, match="dequantize takes what quantize gives, this is a Tensor"):
        quant.dequantize(W)
    for dtype in (torch.int32, "float32"):
        with pytest.raises(InputError, match=f"dtype is {dtype!r}: dequantize gives floating-point numbers, such as torch.float32"):
            quant.dequantize(quant.quantize(W, "nf4"), dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantizing_twice(scheme):
    q = quant.quantize(W, scheme)
    refused(f"takes a tensor, this is a {type(q).__name__}: it is quantized already", q, scheme)
    refused("takes floating-point numbers, these are torch.u?int8: codes must not be quantized again", q.packed, scheme)
    linear = quant.QuantizedLinear.of(torch.nn.Linear(8, 8), scheme)
    with pytest.raises(InputError, match=f"this linear is in {scheme} already: rounding twice would add the errors. Start from the full weights"):
        quant.QuantizedLinear.of(linear, "nf4")
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8)})
    quant.quantize_model(model, scheme)
    with pytest.raises(InputError, match=f"up is in {scheme} already: quantizing twice would add the errors. Start from the full weights"):
        quant.quantize_model(model, "nf4")


def test_a_models_layer_is_named():
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8), "down": torch.nn.Linear(8, 8)})
    with torch.no_grad():
        model["down"].weight[1, 2] = float("nan")
    with pytest.raises(InputError, match=r"down: the weight holds nan at \[1, 2\]"):
        quant.quantize_model(model, "nf4")


@pytest.mark.parametrize("scheme, options, bits", [
    ("nf4", dict(double_quant=False), 4.5), ("nf4", {}, 4 + 8 / 64 + 32 / 64 / 256), ("fp4", {}, 4 + 8 / 64 + 32 / 64 / 256),
    ("nf4", dict(block_size=128, double_quant=False), 4.25), ("int8", {}, 8 + 32 / 1024), ("int4", {}, 4 + 24 / 128),
])  # fmt: skip
def test_bits_per_weight(scheme, options, bits):
    w = torch.randn(256, 1024)
    extra = 4 if scheme in ("nf4", "fp4") and options.get("double_quant", True) else 0                        # the offset
    assert quant.nbytes(quant.quantize(w, scheme, **options)) == w.numel() * bits / 8 + extra
    if bits < 4.2 and scheme == "nf4":
        assert round(bits, 3) == 4.127


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("double_quant", [False, True])
def test_the_tensors_inside_can_be_taken_out_and_put_back(scheme, double_quant):
    q = quant.quantize(W, scheme, double_quant=double_quant)
    found = tensors(q)
    nested = {"absmax.codes", "absmax.absmax", "absmax.offset"} if double_quant else {"absmax"}
    assert set(found) == {"packed"} | {"int8": {"absmax"}, "int4": {"scale", "zero"}}.get(scheme, nested)
    again = with_tensors(q, {name: t.clone() for name, t in found.items()})
    assert type(again) is type(q) and torch.equal(quant.dequantize(again), quant.dequantize(q))
    assert (quant.dequantize(with_tensors(q, {"packed": q.packed.flip(0)})) != quant.dequantize(q)).any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_round_trip_keeps_shape_and_dtype_and_may_ask_for_another(scheme, dtype):
    q = quant.quantize(W.to(dtype), scheme)
    assert q.shape == W.shape and q.dtype == dtype
    out = quant.dequantize(q)
    assert out.shape == W.shape and out.dtype == dtype and (out.float() - W).norm() / W.norm() < 0.15
    wide = quant.dequantize(q, torch.float32)
    assert wide.dtype == torch.float32 and torch.equal(wide.to(dtype), out)           # rounded once, at the end
    assert torch.equal(torch.cat([piece.clone() for piece in rows(q)]), wide)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_parameter_and_inference_mode_do_not_matter(scheme):
    expected = quant.dequantize(quant.quantize(W, scheme))
    q = quant.quantize(torch.nn.Parameter(W), scheme)
    assert not any(t.requires_grad for t in tensors(q).values())
    with torch.inference_mode():
        assert torch.equal(quant.dequantize(quant.quantize(W, scheme)), expected)
    assert torch.equal(quant.dequantize(q), expected)
