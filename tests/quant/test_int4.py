"""int4 by groups: a grid that is exact by hand, zero points, short groups, the error's bound."""

import pytest
import torch

from minift import quant
from minift.quant import int4, lookup


def test_whole_numbers_from_0_to_15_are_exact():
    w = torch.arange(16.0)[None]
    q = quant.quantize(w, "int4", 16)
    assert q.scale.tolist() == [[1.0]] and q.zero.tolist() == [[0]]
    assert q.packed.tolist() == [[0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]]    # the even column in the high half
    assert torch.equal(quant.dequantize(q), w)


def test_the_zero_point_by_hand():
    # -0.5 ... 1.0 in steps of 0.1: scale 0.1 (in float16), zero point round(0.5 / 0.1) = 5, so codes are w / 0.1 + 5
    w = torch.tensor([[-0.5, 0.0, 0.1, 1.0, 0.26, -0.33, 0.5, 0.9]])
    q = quant.quantize(w, "int4", 8)
    assert q.zero.tolist() == [[5]] and q.scale.item() == torch.tensor(0.1).half().item()
    assert q.packed.tolist() == [[0x05, 0x6F, 0x82, 0xAE]]
    scale = q.scale.float().item()
    torch.testing.assert_close(quant.dequantize(q), torch.tensor([[-5.0, 0, 1, 10, 3, -3, 5, 9]]) * scale, rtol=2**-22, atol=0)


@pytest.mark.parametrize("low, high, zero", [(0.5, 1.0, 0), (-1.0, -0.5, 15)])
def test_a_group_of_one_sign_still_has_zero_on_its_grid(low, high, zero):
    q = quant.quantize(torch.linspace(low, high, 16)[None], "int4", 16)
    assert q.zero.item() == zero and q.scale.item() == torch.tensor(1 / 15).half().item()                     # from 0 to 1, or from -1 to 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("N, K, size", [(3, 7, 8), (5, 33, 16), (65, 130, 128), (4, 256, 128), (2, 129, 64), (1, 1, 8)])
def test_no_number_is_off_by_more_than_half_a_step(monkeypatch, N, K, size, dtype):
    monkeypatch.setattr(lookup, "NUMBERS", 512)
    w = torch.randn(N, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = quant.quantize(w, "int4", size)
    groups = -(-K // size)
    assert q.scale.shape == q.zero.shape == (N, groups) and q.packed.shape == (N, -(-K // 2))
    out = quant.dequantize(q)
    assert out.shape == w.shape and out.dtype == dtype and torch.equal(out, int4.plain_dequantize(q).to(dtype))
    step = q.scale.float().repeat_interleave(size, 1)[:, :K]
    # Half a step; at an end of the grid half a step more for the zero point's rounding, and 15 roundings of the scale to float16
    assert ((out.float() - w.float()).abs() <= step * (1 + 16 * 2**-11) + w.abs().float() * torch.finfo(dtype).eps).all()


def test_zero_is_exact_and_groups_do_not_touch():
    w = torch.randn(4, 48, generator=torch.Generator().manual_seed(2))
    w[:, ::3] = 0
    out = quant.dequantize(quant.quantize(w, "int4", 16))
    assert (out[:, ::3] == 0).all()
    w[:, 16:32] *= 1000
    assert torch.equal(quant.dequantize(quant.quantize(w, "int4", 16))[:, :16], out[:, :16])


def test_zeros():
    assert not quant.dequantize(quant.quantize(torch.zeros(3, 20), "int4", 16)).any()


def test_bits_per_weight():
    q = quant.quantize(torch.randn(4, 256), "int4")
    assert quant.nbytes(q) * 8 / (4 * 256) == 4 + 24 / 128 == 4.1875
