"""NF4 and FP4: bytes by hand, blocks that are short, run across rows or hold nothing, and the same numbers from a GPU's kernels."""

import subprocess
import sys

import pytest
import torch

from minift import quant
from minift.quant import blocks
from minift.quant.blocks import BLOCK_SIZES, plain_dequantize, plain_quantize
from minift_kernels.codes import FP4, NF4

SHAPES = [(1, 1), (1, 2), (3, 7), (5, 13), (1, 63), (1, 64), (1, 65), (2, 64), (33, 77), (128, 300), (64, 257)]


def drawn(shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def test_bytes_worked_by_hand():
    # Largest 2, so w / 2 = 1, -1, 0, 0.08, -0.09, 0.7: codes 15, 0, 7, 8, 6 and 14 (0.7 is nearer to 0.723 than to 0.563); the rest 0, code 7
    w = torch.zeros(1, 32)
    w[0, :6] = torch.tensor([2.0, -2.0, 0.0, 0.16, -0.18, 1.4])
    q = quant.quantize(w, "nf4", 32, double_quant=False)
    assert q.packed.tolist() == [0xF0, 0x78, 0x6E] + [0x77] * 13                      # the first of a pair in the high half
    assert q.absmax.tolist() == [2.0] and q.absmax.dtype == torch.float32
    assert quant.dequantize(q)[0, :7].tolist() == [2 * NF4[code] for code in (15, 0, 7, 8, 6, 14, 7)]


def test_fp4_by_hand_and_its_two_zeros():
    # w / 12 x 12 = 12, -12, 8, -2, 0, 0.001, -0.001, 3.4: codes 3, 11, 2, 14, 0, 8, 0 and 7 (3)
    w = torch.zeros(1, 32)
    w[0, :8] = torch.tensor([12.0, -12.0, 8.0, -2.0, 0.0, 0.001, -0.001, 3.4])
    q = quant.quantize(w, "fp4", 32, double_quant=False)
    assert q.packed.tolist() == [0x3B, 0x2E, 0x08, 0x07] + [0] * 12
    assert quant.dequantize(q)[0, :8].tolist() == [torch.tensor(FP4[c]).mul(12).item() for c in (3, 11, 2, 14, 0, 8, 0, 7)]


@pytest.mark.parametrize("scheme, values", [("nf4", NF4), ("fp4", FP4)])
def test_exact_middles_go_to_the_lower_value(scheme, values):
    ascending = torch.tensor(sorted(values))
    w = torch.cat([(ascending[:-1] + ascending[1:]) / 2, torch.ones(17)])[None]
    out = quant.dequantize(quant.quantize(w, scheme, 32, double_quant=False))[0, :15]
    assert torch.equal(out, ascending[:-1])


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trap39_sizes_not_divisible_by_the_block_survive_the_round_trip(scheme, shape, dtype):
    w = drawn(shape, dtype)
    for block_size in (32, 64, 4096):
        q = blocks.quantize(w, scheme, block_size, double_quant=False)
        packed, absmax = plain_quantize(w, scheme, block_size)
        assert torch.equal(q.packed, packed) and torch.equal(q.absmax, absmax)
        assert len(q.packed) == -(-w.numel() // 2) and len(q.absmax) == -(-w.numel() // block_size)
        out = quant.dequantize(q)
        assert out.shape == w.shape and out.dtype == dtype and torch.equal(out, plain_dequantize(q, dtype))
        # Half the widest step of the map (.304 of nf4, .333 of fp4) of the block's largest, and a rounding to dtype
        a = q.absmax.repeat_interleave(block_size)[: w.numel()].view(shape)
        assert ((out - w).float().abs() <= a * ((0.304 if scheme == "nf4" else 0.334) / 2 + torch.finfo(dtype).eps)).all()


def test_trap39_the_last_short_block_has_the_scale_of_its_own_numbers():
    w = torch.cat([torch.full((64,), 8.0), torch.full((3,), 0.5)])[None]
    q = quant.quantize(w, "nf4", 64, double_quant=False)
    assert q.absmax.tolist() == [8.0, 0.5] and torch.equal(quant.dequantize(q), w)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(3, 7), (33, 77), (128, 128)])
def test_trap39_quantizing_a_dequantized_tensor_changes_nothing(scheme, shape):
    once = quant.quantize(drawn(shape), scheme, 64, double_quant=False)
    twice = quant.quantize(quant.dequantize(once), scheme, 64, double_quant=False)
    assert torch.equal(once.absmax, twice.absmax) and torch.equal(quant.dequantize(once), quant.dequantize(twice))
    if scheme == "nf4":                                                               # fp4's second zero comes back as its first
        assert torch.equal(once.packed, twice.packed)


@pytest.mark.parametrize("n", [63, 65, 129])
def test_the_empty_half_of_an_odd_last_byte_is_zero(n):
    assert quant.quantize(drawn((1, n)), "nf4").packed[-1] & 15 == 7
    assert quant.quantize(drawn((1, n)), "fp4").packed[-1] & 15 == 0


def test_a_block_of_zeros():
    q = quant.quantize(torch.zeros(2, 64), "nf4", double_quant=False)
    assert q.absmax.tolist() == [0.0, 0.0] and q.packed.tolist() == [0x77] * 64
    assert not quant.dequantize(quant.quantize(torch.zeros(2, 64), "nf4")).any()
    short = quant.quantize(torch.zeros(1, 3), "nf4", double_quant=False)              # bitsandbytes' oddity
    assert short.absmax.tolist() == [torch.tensor(1e-38).item()] and not quant.dequantize(short).any()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_size_flattened_by_rows(block_size):
    w = drawn((64, 130))
    q = quant.quantize(w, "nf4", block_size, double_quant=False)
    assert torch.equal(q.absmax, torch.stack([part.abs().max() for part in w.flatten().split(block_size)]))


def test_double_quantization_changes_scales_only():
    w = drawn((96, 300))
    plain, double = (quant.quantize(w, "nf4", 64, flag) for flag in (False, True))
    assert torch.equal(plain.packed, double.packed)
    far = (quant.dequantize(plain) - quant.dequantize(double)).norm() / w.norm()
    assert 0 < far < 0.01
    error = lambda q: ((quant.dequantize(q) - w).norm() / w.norm()).item()
    assert error(plain) == pytest.approx(0.092, abs=0.002) and error(double) == pytest.approx(error(plain), abs=3e-4)      # 0.0920 for a normal


def test_a_transposed_weight_is_read_by_its_rows():
    w = drawn((70, 90))
    assert torch.equal(quant.quantize(w.T, "nf4").packed, quant.quantize(w.T.contiguous(), "nf4").packed)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("shape", [(3, 7), (33, 77), (16, 256)])
def test_a_gpus_kernels_give_the_same(monkeypatch, scheme, double_quant, shape):      # here in Triton's interpreter
    w = drawn(shape)
    ours = quant.quantize(w, scheme, 64, double_quant)
    monkeypatch.setattr(blocks, "on_gpu", lambda t: True)
    theirs = quant.quantize(w, scheme, 64, double_quant)
    assert all(torch.equal(a, b) for a, b in zip(quant.tensor.tensors(ours).values(), quant.tensor.tensors(theirs).values()))
    assert torch.equal(quant.dequantize(theirs), plain_dequantize(ours, torch.float32))


def test_none_of_it_needs_triton():                                                   # which a Mac lacks
    code = "import sys; sys.modules['triton'] = None; import torch; from minift import quant; " \
           "print(tuple(quant.QuantizedLinear.of(torch.nn.Linear(70, 33), 'nf4')(torch.ones(300, 70)).shape))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "(300, 33)\n"
