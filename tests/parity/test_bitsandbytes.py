"""To the bit what bitsandbytes computes on a CPU: packed bytes, absmax, its 8-bit form, dequantized values, int8 rows; and its linears.

Two things of theirs are not followed. Where K is a multiple of 16 but not of the block size, their AVX-512 code (0.50.2) multiplies some blocks
by others' scales, so here it is given the same bytes as rows of one block each. And their bfloat16 of a number below 2^-126 is zero."""

import bitsandbytes as bnb
import bitsandbytes.functional as theirs
import pytest
import torch

from minift import quant
from minift.quant.blocks import BLOCK_SIZES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
torch.compiler.set_stance("force_eager")                                              # they compile a way for odd shapes: 20 s each


def their_values(packed, state, n):
    """Their dequantization, asked for whole blocks only."""
    absmax = state.absmax
    if state.nested:
        absmax = theirs.dequantize_blockwise(state.absmax, state.state2) + state.offset
    whole = torch.nn.functional.pad(packed.flatten(), (0, len(absmax) * state.blocksize // 2 - packed.numel()))
    shape = (len(absmax), state.blocksize)
    return torch.ops.bitsandbytes.dequantize_4bit(whole, absmax, state.blocksize, state.quant_type, shape, state.dtype).flatten()[:n]


def same(w, scheme, block_size, double_quant):
    packed, state = theirs.quantize_4bit(w, quant_type=scheme, blocksize=block_size, compress_statistics=double_quant)
    q = quant.quantize(w, scheme, block_size, double_quant)
    assert torch.equal(q.packed, packed.flatten())
    if double_quant:
        assert torch.equal(q.absmax.codes, state.absmax) and torch.equal(q.absmax.absmax, state.state2.absmax)
        assert torch.equal(q.absmax.offset, state.offset)
    else:
        assert torch.equal(q.absmax, state.absmax)
    ours, their = quant.dequantize(q).flatten(), their_values(packed, state, w.numel())
    their = torch.where((their == 0) & (ours.abs() < 2**-126), ours, their) if w.dtype == torch.bfloat16 else their
    assert ours.dtype == their.dtype and torch.equal(ours, their)
    if w.shape[1] % block_size == 0 and w.dtype != torch.bfloat16:
        assert torch.equal(quant.dequantize(q), theirs.dequantize_4bit(packed, state).view(w.shape))


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_matrices_of_all_sizes(scheme, dtype):
    draw = torch.Generator().manual_seed(0)
    pick = lambda low, high: int(torch.randint(low, high, (1,), generator=draw))
    for number in range(150):
        N, K, block_size = pick(1, 60), pick(1, 400), BLOCK_SIZES[pick(0, 8)] if number % 3 else 64
        w = (torch.randn(N, K, generator=draw) * 10.0 ** pick(-4, 3)).to(dtype)
        if number % 5 == 0:
            w[pick(0, N)] = 0
        same(w, scheme, block_size, number % 2 == 0)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 63), (1, 64), (1, 65), (3, 7), (33, 77), (50, 112), (64, 257), (256, 4096)])
def test_odd_sizes_single_blocks_and_many(scheme, double_quant, dtype, shape):
    same((torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype), scheme, 64, double_quant)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("name, w", {
    "zeros": torch.zeros(3, 64), "minus zeros": -torch.zeros(3, 64), "equal ones": torch.full((5, 64), -0.3), "one of 64": torch.eye(64) * 7,
    "zero last block": torch.cat([torch.ones(64), torch.zeros(5)])[None], "a denormal each": torch.full((2, 64), 1e-45),
    "denormals": torch.arange(256.0).view(4, 64) * 1e-42, "around 1e-38": torch.linspace(-1, 1, 256).view(4, 64) * 2e-38,
    "large": torch.linspace(-1, 1, 256).view(4, 64) * 1e36, "one large": torch.cat([torch.full((1, 64), 1e9), torch.randn(300, 64)]),
}.items())  # fmt: skip
def test_blocks_of_nothing_of_little_and_of_much(scheme, double_quant, name, w):
    same(w, scheme, 64, double_quant)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("absmax", [1.0, 0.0173, 3.0])
def test_exact_middles_and_the_floats_beside_them(scheme, absmax):
    values = theirs.get_4bit_type(scheme, device="cpu").sort().values
    middle = torch.cat([(values[:-1] + values[1:]) / 2 * absmax, torch.zeros(48), torch.tensor([absmax])])
    toward = lambda direction: torch.nextafter(middle, torch.tensor(direction)).clamp(max=absmax)
    same(torch.stack([middle, toward(torch.inf), toward(-torch.inf)]), scheme, 64, False)


def test_every_place_of_the_nested_map_and_both_sides_of_its_cells():
    draw = torch.Generator().manual_seed(3)
    for scale in (1.0, 1e-3, 700.0):
        w = torch.zeros(4000, 64)
        w[:, 0] = (torch.rand(4000, generator=draw) ** 3 + 0.01) * scale
        same(w, "nf4", 64, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (33, 77), (128, 512)])
def test_int8_rows(dtype, shape):
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.02).to(dtype)
    numbers, absmax, _ = theirs.int8_vectorwise_quant(w.clone())
    q = quant.quantize(w, "int8")
    assert torch.equal(q.packed, numbers) and torch.equal(q.absmax, absmax)
    assert torch.equal(quant.dequantize(q, torch.float32), theirs.int8_vectorwise_dequant(numbers, absmax))


def test_what_their_int8_linear_stores():
    base = torch.nn.Linear(77, 33, bias=False)
    layer = bnb.nn.Linear8bitLt(77, 33, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(base.weight.data.half(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer(torch.zeros(1, 77, dtype=torch.float16))                                    # quantizes at the latest now
    stored = layer.state_dict()
    q = quant.quantize(base.weight.data.half(), "int8")
    assert torch.equal(q.packed, stored["weight"]) and torch.equal(q.absmax, stored["SCB"].flatten())


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M", [1, 5, 16])
def test_their_4_bit_linear_and_its_gradient(scheme, dtype, M):
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 96, dtype=dtype)
    layer = bnb.nn.Linear4bit(256, 96, compute_dtype=dtype, quant_type=scheme, compress_statistics=True)
    layer.weight = bnb.nn.Params4bit(base.weight.data.clone(), requires_grad=False, quant_type=scheme, compress_statistics=True)
    layer.bias = torch.nn.Parameter(base.bias.data.clone())
    layer, ours = layer.to("cpu"), quant.QuantizedLinear.of(base, scheme)
    x, dy = torch.randn(M, 256, dtype=dtype), torch.randn(M, 96, dtype=dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, their = ours(a), layer(b)
    y.backward(dy)
    their.backward(dy)
    W = ours.weight.abs().double()
    # Both round W (relative error eps / 2 each) and the result to dtype, and sum K or N products in float32 in some order
    for mine, other, sizes, K in ((y, their, x.abs().double() @ W.T + base.bias.abs(), 256), (a.grad, b.grad, dy.abs().double() @ W, 96)):
        assert mine.dtype == other.dtype
        bound = (2 * torch.finfo(dtype).eps + 2 * K * 2**-24) * sizes
        assert ((mine - other).double().abs() <= bound).all()
