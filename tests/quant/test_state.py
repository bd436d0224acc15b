"""state_dict of quantized linears: all of it comes back through a file, and nothing that does not fit goes in unseen."""

import copy

import pytest
import torch
from torch import nn

from minift.quant import QuantizedLinear, quantize_model
from minift.quant.tensor import tensors
from minift.train.checkpoint import running_buffers, trained_parameters

KINDS = [("nf4", None, True), ("nf4", 32, False), ("fp4", None, True), ("int8", None, True), ("int4", 16, True)]


def made(scheme="nf4", size=None, double_quant=True, seed=0, N=5, K=70, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(9, K), nn.Linear(K, N))
    quantize_model(model, scheme, size, double_quant)
    return model


def refused(model, state, *texts, **options):
    before = model[1].weight
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state, **options)
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    assert torch.equal(model[1].weight, before)


@pytest.mark.parametrize("scheme, size, double_quant", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_round_trip_through_a_file(scheme, size, double_quant, assign, tmp_path):
    one, other = made(scheme, size, double_quant), made(scheme, size, double_quant, seed=1)
    assert not torch.equal(one[1].weight, other[1].weight)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    report = other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=assign)
    assert not report.missing_keys and not report.unexpected_keys
    mine, theirs = tensors(one[1].q), tensors(other[1].q)
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].data_ptr() != theirs[name].data_ptr() for name in mine)
    ids = torch.tensor([0, 3, 8])
    assert torch.equal(one(ids), other(ids))


def test_the_names_say_the_scheme():
    assert list(made("nf4").state_dict()) == [
        "0.weight", "1.bias", "1.weight.nf4.packed", "1.weight.nf4.sizes",
        "1.weight.nf4.absmax.codes", "1.weight.nf4.absmax.absmax", "1.weight.nf4.absmax.offset",
    ]  # fmt: skip
    state = made("int4", 16).state_dict()
    assert [name for name in state if "int4" in name] == [f"1.weight.int4.{name}" for name in ("packed", "sizes", "scale", "zero")]
    assert state["1.weight.int4.sizes"].tolist() == [5, 70, 16]


def test_loading_changes_no_copy_and_a_dtype_stays():
    one, other = made(), made(seed=1).to(torch.bfloat16)
    twin = copy.copy(other[1])                                                        # shares its tensors
    before = twin.weight.clone()
    other.load_state_dict(one.state_dict())
    assert torch.equal(twin.weight, before) and other[1].weight.dtype == torch.bfloat16 and torch.equal(other[1].weight, one[1].weight.bfloat16())


def test_another_scheme_and_full_weights_are_missing_and_unexpected():
    refused(made("nf4"), made("fp4").state_dict(), 'Missing key(s) in state_dict: "1.weight.nf4.packed"', 'Unexpected key(s) in state_dict: "1.weight.fp4')
    refused(made("nf4"), made("nf4", None, False).state_dict(), 'Missing key(s) in state_dict: "1.weight.nf4.absmax.codes"', '"1.weight.nf4.absmax"')
    full = nn.Sequential(nn.Embedding(9, 70), nn.Linear(70, 5))
    refused(made("nf4"), full.state_dict(), "Missing key(s)", 'Unexpected key(s) in state_dict: "1.weight"')
    with pytest.raises(RuntimeError, match='Missing key.*"1.weight".*\n.*Unexpected key.*"1.weight.nf4.packed"'):
        full.load_state_dict(made("nf4").state_dict())


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_dtypes_sizes_and_parts_that_do_not_fit(strict):
    state = made().state_dict()
    short = state["1.weight.nf4.packed"][:-1]
    refused(made(), {**state, "1.weight.nf4.packed": short}, "1.weight.nf4.packed is torch.uint8 (174,), wanted torch.uint8 (175,)", strict=strict)
    wide = state["1.weight.nf4.absmax.absmax"].double()
    refused(made(), {**state, "1.weight.nf4.absmax.absmax": wide}, "absmax.absmax is torch.float64 (1,), wanted torch.float32 (1,)", strict=strict)
    # 5 x 70 and 7 x 50 are as many bytes and blocks; groups of 40 and of 50 cut 70 columns into two
    refused(made(N=7, K=50), {**made(N=7, K=50).state_dict(), **{n: t for n, t in state.items() if "nf4" in n}},
            "1.weight.nf4.sizes is [5, 70, 64], wanted [7, 50, 64]: N, K and the numbers that share a scale", strict=strict)  # fmt: skip
    refused(made("int4", 40), made("int4", 50).state_dict(), "1.weight.int4.sizes is [5, 70, 50], wanted [5, 70, 40]", strict=strict)
    part = {name: t for name, t in state.items() if not name.endswith("offset")}
    refused(made(), part, "1.weight.nf4.absmax.offset is missing, though others of the same weight are there", strict=strict)


def test_the_loops_checkpoints_hold_none_of_it():
    model = made()
    assert set(trained_parameters(model)) == {"0.weight"} and not running_buffers(model)
    assert not dict(model.named_buffers()) and set(dict(model.named_parameters())) == {"0.weight", "1.bias"}


def test_an_empty_linear_in_a_larger_state_is_left_alone():
    layer = QuantizedLinear.of(nn.Linear(8, 8), "int8")
    before = layer.weight
    report = layer.load_state_dict({}, strict=False)
    assert torch.equal(layer.weight, before) and not report.unexpected_keys
