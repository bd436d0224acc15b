"""The 8-bit AdamW kernel: the nearest code without a search, tables of many tensors, and bad input. Runs in Triton's interpreter."""

import pytest
import torch
import triton
import triton.language as tl

from minift_kernels.adamw8bit import adamw8bit, adamw8bit_reference, make, nearest, table
from minift_kernels.averages import boundaries
from minift_kernels.codes import dynamic_map


@triton.jit
def nearest_kernel(x, bounds, out, n, SIGNED: tl.constexpr):
    place = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    tl.store(out + place, nearest(tl.load(x + place, mask=place < n, other=0.0), bounds, SIGNED), mask=place < n)


@pytest.mark.parametrize("signed", [True, False])
def test_the_nearest_code_is_exact_at_every_boundary(signed):
    bounds, values = boundaries(signed), dynamic_map(signed)
    tens = torch.tensor([10.0**-i for i in range(46)])
    around = lambda t: [t, torch.nextafter(t, torch.tensor(2.0)), torch.nextafter(t, torch.tensor(-2.0))]
    x = torch.cat([*around(bounds), *around(values), *around(tens), *around(-tens), torch.linspace(-1, 1, 40001)]).clamp(-1 if signed else 0, 1)
    out = torch.full((len(x),), -1, dtype=torch.int32)
    nearest_kernel[(triton.cdiv(len(x), 4096),)](x, bounds, out, len(x), SIGNED=signed)
    assert torch.equal(out.long(), torch.bucketize(x, bounds))


def test_each_program_knows_its_tensor():                      # 4 blocks of 256 a program
    owner, first_block, sizes = table((1024, 1, 1025), torch.device("cpu"))
    assert owner.tolist() == [0, 1, 2, 2] and first_block.tolist() == [0, 0, 0, 4] and sizes.tolist() == [1024, 1, 1025]


def test_tensors_of_several_dtypes_and_none_at_all_go_together():
    given, plain = (make("cpu", 3, (300, 0, 2000, 512), torch.float32) for _ in range(2))
    for arguments in (given, plain):
        arguments["params"][2], arguments["grads"][3] = arguments["params"][2].half(), arguments["grads"][3].half()
    adamw8bit(**given), adamw8bit_reference(**plain)
    for name in ("m", "v", "m_absmax", "v_absmax", "params"):
        for ours, theirs in zip(given[name], plain[name]):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-6 if ours.dtype == torch.float32 else 1e-3, atol=1e-7)


def test_a_block_without_gradient_stays_zero():
    given = make("cpu", 0, (600,), torch.float32)
    for name in ("grads", "m_absmax", "v_absmax"):
        given[name][0].zero_()
    before, keep = given["params"][0].clone(), float(given["rates"][0, 6])
    adamw8bit(**given)
    torch.testing.assert_close(given["params"][0], before * keep)
    assert set(given["m"][0].tolist()) == {127} and set(given["v"][0].tolist()) == {0} and not given["m_absmax"][0].any()


@pytest.mark.parametrize(("name", "wrong", "text"), [
    ("m", torch.zeros(600, dtype=torch.int8), "adamw8bit: m is torch.int8, wanted torch.uint8"),
    ("v_absmax", torch.zeros(2), r"adamw8bit: beside a tensor of shape \(600,\) stand .* and 3 absmax"),
    ("grads", torch.zeros(1200)[::2], r"adamw8bit: grads of shape \(600,\) has strides \(2,\)"),
    ("params", torch.zeros(601)[1:], "adamw8bit: a tensor begins at an address that is no multiple of 16"),
])  # fmt: skip
def test_bad_input_is_named(name, wrong, text):
    given = make("cpu", 0, (600,), torch.float32)
    given[name][0] = wrong
    with pytest.raises(ValueError, match=text):
        adamw8bit(**given)
