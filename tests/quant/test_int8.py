"""int8 by rows: by hand, rows of nothing and of next to nothing, the error's bound."""

import pytest
import torch

from minift import quant
from minift.quant import lookup


def test_worked_by_hand():
    # Row 1: 127 / 2 = 63.5 each: 127, -63.5 -> -64 (to the even one), 31.75 -> 32. Row 2 has a scale of its own.
    q = quant.quantize(torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.25, -0.5]]), "int8")
    assert q.packed.tolist() == [[127, -64, 32], [0, 64, -127]] and q.packed.dtype == torch.int8
    assert q.absmax.tolist() == [2.0, 0.5]
    torch.testing.assert_close(quant.dequantize(q), torch.tensor([[2.0, -128 / 127, 64 / 127], [0.0, 32 / 127, -0.5]]), rtol=2**-22, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (65, 33)])
def test_no_number_is_off_by_more_than_half_a_step(monkeypatch, shape, dtype):
    monkeypatch.setattr(lookup, "NUMBERS", 512)                                       # several pieces
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, shape[0])[:, None]).to(dtype)
    q = quant.quantize(w, "int8")
    out = quant.dequantize(q)
    assert out.dtype == dtype and out.shape == w.shape and q.absmax.dtype == torch.float32
    step = q.absmax[:, None] / 127
    assert ((out.float() - w.float()).abs() <= step * 0.5001 + q.absmax[:, None] * torch.finfo(dtype).eps).all()
    assert torch.equal(q.packed.float().abs().amax(1), torch.full((shape[0],), 127.0))
    assert torch.equal(out, (q.packed * q.absmax[:, None] * (1 / 127)).to(dtype))


def test_rows_of_zeros_and_of_next_to_nothing():
    w = torch.tensor([[0.0, 0.0], [1e-45, -1e-45], [1e-39, 0.0], [1.0, -1.0]])
    q = quant.quantize(w, "int8")
    assert q.packed[0].tolist() == [0, 0] and q.packed[3].tolist() == [127, -127]
    assert (quant.dequantize(q) - w).abs().max() <= 1e-39                             # lost, but not blown up


def test_quantizing_again_changes_nothing():
    once = quant.quantize(torch.randn(9, 31, generator=torch.Generator().manual_seed(1)), "int8")
    twice = quant.quantize(quant.dequantize(once), "int8")
    assert torch.equal(once.packed, twice.packed)


def test_bits_per_weight():
    q = quant.quantize(torch.randn(4, 64), "int8")
    assert quant.nbytes(q) * 8 / (4 * 64) == 8 + 32 / 64
