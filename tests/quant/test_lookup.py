"""The fast way on a CPU gives the bits of the plain way, wherever pieces, blocks and cells end."""

import pytest
import torch

from minift import quant
from minift.quant import blocks, lookup
from minift.quant.blocks import SMALLEST, plain_quantize
from minift_kernels.codes import four_bit_map


def both_equal(w, scheme, block_size):
    fast, plain = lookup.quantize(w, scheme, block_size, SMALLEST), plain_quantize(w, scheme, block_size)
    assert torch.equal(fast[0], plain[0]) and torch.equal(fast[1], plain[1])


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("absmax", [1.0, 3.0, 0.0173])
def test_numbers_at_and_around_every_middle(scheme, absmax):
    values = four_bit_map(scheme).sort().values
    near = torch.cat([(values[:-1] + values[1:]) / 2 * absmax, torch.zeros(1)])
    w = [near]
    for direction in (-torch.inf, torch.inf):
        step = near
        for _ in range(5):                                                            # five floats to either side
            step = torch.nextafter(step, torch.tensor(direction))
            w.append(step)
    w = torch.nn.functional.pad(torch.cat(w), (0, -16 * len(w) % 31)).view(-1, 31)
    both_equal(torch.cat([w, torch.full((len(w), 1), absmax)], 1), scheme, 32)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_numbers_in_every_cell(scheme):
    u = (torch.arange(-65534, 65535, dtype=torch.float64) / 65534).float()
    w = torch.cat([torch.nn.functional.pad(u, (0, -len(u) % 63)).view(-1, 63), torch.ones(-(-len(u) // 63), 1)], 1)
    both_equal(w, scheme, 64)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("name, w", {
    "zeros": torch.zeros(4, 64), "minus zeros": -torch.zeros(2, 64), "one number": torch.eye(64), "equal ones": torch.full((2, 64), -0.3),
    "denormals": torch.arange(128.0).view(2, 64) * 1e-45, "below what is divided by": torch.linspace(-1, 1, 128).view(2, 64) * 5e-39,
    "large": torch.linspace(-1, 1, 128).view(2, 64) * 3e38,
}.items())  # fmt: skip
def test_odd_blocks(scheme, name, w):
    both_equal(w, scheme, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("block_size", [32, 128])
def test_pieces_join(monkeypatch, dtype, block_size):
    monkeypatch.setattr(lookup, "NUMBERS", 256)
    w = torch.randn(11, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    both_equal(w, "nf4", block_size)
    q = blocks.quantize(w, "nf4", block_size)
    assert torch.equal(blocks.dequantize(q), blocks.plain_dequantize(q, dtype))


@pytest.mark.parametrize("N, K, block_size", [(7, 33, 64), (130, 96, 64), (1, 1, 32), (9, 200, 4096), (300, 64, 64), (65, 130, 256)])
def test_rows_come_in_order_and_complete(monkeypatch, N, K, block_size):
    monkeypatch.setattr(lookup, "NUMBERS", 2048)
    q = blocks.quantize(torch.randn(N, K, generator=torch.Generator().manual_seed(0)), "fp4", block_size)
    assert torch.equal(torch.cat([W.clone() for W in blocks.rows(q)]), blocks.plain_dequantize(q, torch.float32))


def test_pieces_share_one_buffer():
    q = blocks.quantize(torch.randn(1024, 1024), "nf4")
    first, second = (W.data_ptr() for W in blocks.rows(q))
    assert first == second


@pytest.mark.parametrize("n", [1, 1000, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_fresh_memory_is_writable_and_of_the_right_kind(n, dtype):
    memory = lookup.fresh(n, dtype)
    assert memory.shape == (n,) and memory.dtype == dtype and memory.fill_(3)[-1] == 3


def test_a_piece_is_whole_rows_and_whole_blocks():
    assert lookup.rows_at_a_time(4096, 4096, 64) == 128                               # 2^19 numbers
    assert lookup.rows_at_a_time(10, 33, 64) == 64                                    # one step, though there are but 10 rows
    assert lookup.rows_at_a_time(10**6, 33, 64) * 33 % 64 == 0


def test_the_number_of_threads_is_what_it_was():
    before, w, x = torch.get_num_threads(), torch.randn(48, 64), torch.randn(3, 64)
    torch.set_num_threads(2)
    try:
        layer = quant.QuantizedLinear.of(torch.nn.Linear(64, 48), "nf4")
        layer(x), layer(x[:1]), quant.dequantize(quant.quantize(w, "int4")), quant.dequantize(quant.quantize(w, "int8"))
        assert torch.get_num_threads() == 2
        with lookup.one_thread():
            assert torch.get_num_threads() == 1
        with pytest.raises(RuntimeError), lookup.one_thread():
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
