"""The 4-bit kernels beside bitsandbytes' CPU build: codes, absmax and values equal to the bit, in Triton's interpreter."""

import bitsandbytes.functional as bnb
import pytest
import torch

from minift.quant.nested import shrink
from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.dequantize import dequantize_4bit
from minift_kernels.quantize import KERNEL, quantize_4bit


def both(weight, scheme, block):
    packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type=scheme)
    return (packed.flatten(), state.absmax), quantize_4bit(weight, four_bit_map(scheme), block)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize(("n", "block"), [(1, 64), (3, 64), (64, 64), (65, 64), (4096, 64), (4097, 32), (8193, 4096), (33 * 77, 128)])
def test_codes_absmax_and_values_equal_those_of_bitsandbytes(n, block, scheme):
    made = KERNEL.make("cpu", seed=n, n=n, block_size=block, dtype=torch.float32, scheme=scheme)         # values on and beside the middles
    (theirs, absmax), (ours, ours_absmax) = both(made["weight"], scheme, block)
    assert torch.equal(theirs, ours) and torch.equal(absmax, ours_absmax)
    state = bnb.QuantState(absmax, shape=torch.Size([n]), code=four_bit_map(scheme), blocksize=block, quant_type=scheme, dtype=torch.float32)
    for dtype in (torch.float32, torch.float16):
        state.dtype = dtype
        values = bnb.dequantize_4bit(theirs[:, None], state).flatten()
        assert torch.equal(values, dequantize_4bit(ours, ours_absmax, four_bit_map(scheme), n, block, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_too(dtype):
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for scheme in ("nf4", "fp4"):
        (theirs, absmax), (ours, ours_absmax) = both(weight, scheme, 64)
        assert torch.equal(theirs, ours) and torch.equal(absmax, ours_absmax)


def test_whole_blocks_are_multiplied_by_a_reciprocal_and_a_short_one_is_divided():
    """Values within an ulp of a middle tell the two apart: 12 % of them fall to the other side."""
    draw, middles = torch.Generator().manual_seed(0), (four_bit_map("nf4")[1:] + four_bit_map("nf4")[:-1]) / 2
    largest = torch.rand(65, 1, generator=draw) + 0.5
    weight = torch.cat([largest, middles[torch.randint(0, 15, (65, 63), generator=draw)] * largest], dim=1).flatten()[:-1]
    (theirs, absmax), (ours, ours_absmax) = both(weight, "nf4", 64)
    assert torch.equal(theirs, ours) and torch.equal(absmax, ours_absmax)
    divided = torch.bucketize(weight[: 64 * 64].view(64, 64) / largest[:64], middles).flatten()
    assert (divided != torch.stack([ours >> 4, ours & 15], 1).flatten()[: 64 * 64]).any(), "this test could not tell"


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_zeros_and_the_smallest_numbers(scheme):
    for weight in (torch.zeros(64), torch.zeros(3), torch.tensor([1e-40, 3e-41, -1e-40, 0]), torch.tensor([0.0, -0.0, 1e-3, -1e-3] * 17) + 0.0):
        (theirs, absmax), (ours, ours_absmax) = both(weight, scheme, 64)
        assert torch.equal(theirs, ours) and torch.equal(absmax, ours_absmax)


def test_double_quantization_and_its_way_back():
    weight = torch.randn(64 * 300 + 7, generator=torch.Generator().manual_seed(1))
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    small = shrink(quantize_4bit(weight, four_bit_map("nf4"), 64)[1])
    codes, nested, offset = small.codes, small.absmax, small.offset
    assert torch.equal(state.absmax, codes) and torch.equal(state.state2.absmax, nested) and state.offset == offset
    assert torch.equal(state.state2.code, dynamic_map())
    ours = dequantize_4bit(packed.flatten(), codes, four_bit_map("nf4"), len(weight), 64, torch.float32, nested, dynamic_map(), offset)
    assert torch.equal(bnb.dequantize_4bit(packed, state).flatten(), ours)
