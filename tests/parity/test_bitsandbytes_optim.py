"""minift's AdamW8bit beside bitsandbytes 0.50's on the CPU: weights, codes and absmax, to the bit.

bitsandbytes' CPU build looks codes up in a grid of 65,536 cells, which is not the nearest code (the last test shows it). Its own plain-torch
rounding, the "default" back end, is: with that in place of the grid the states must be equal. One difference is left: there the last,
partial block is divided by its absmax, here multiplied by its inverse like the others, so the tensors below are whole blocks."""

import pytest
import torch

bnb = pytest.importorskip("bitsandbytes")
from bitsandbytes.backends.cpu import ops as cpu_ops

from minift.train.adamw8bit import AdamW8bit
from minift_kernels.averages import boundaries, decode, encode


@pytest.fixture
def nearest(monkeypatch):
    """bitsandbytes quantizes with its default back end."""
    plain = torch.ops.bitsandbytes.quantize_blockwise.default

    def quantize(A, code, absmax_out, out, blocksize):
        codes, absmax = plain._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, A, code, blocksize)
        out.copy_(codes)
        absmax_out.copy_(absmax)

    monkeypatch.setattr(cpu_ops, "_quant_blockwise_fp32_direct", quantize)


def run(optimizer_class, shapes, dtype, steps, scale=0.1, **options):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = optimizer_class(params, **options)
    for step in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape) * scale / (1 + step)).to(dtype)
        optimizer.step()
    return params, [optimizer.state[p] for p in params]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [dict(lr=1e-2, weight_decay=0.1), dict(lr=1e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)])
def test_states_and_weights_are_equal_to_the_bit(nearest, dtype, options):
    shapes = [(64, 64), (3, 1024, 5), (100,), (33, 7)]                                # two in 8 bits, two below 4,096 numbers
    theirs, their_states = run(bnb.optim.AdamW8bit, shapes, dtype, 20, **options)
    ours, our_states = run(AdamW8bit, shapes, dtype, 20, **options)
    for a, b, their, our in zip(theirs, ours, their_states, our_states):
        assert torch.equal(a, b)
        assert torch.equal(their["state1"], our["m"]) and torch.equal(their["state2"], our["v"])
        assert our["m"].dtype == (torch.uint8 if a.numel() >= 4096 else torch.float32) and their["step"] == our["step"] == 20
        if "m_absmax" in our:
            assert torch.equal(their["absmax1"], our["m_absmax"]) and torch.equal(their["absmax2"], our["v_absmax"])


def test_a_partial_last_block_differs_by_a_code_at_most(nearest):
    _, (their,) = run(bnb.optim.AdamW8bit, [(4999,)], torch.float32, 1)
    _, (our,) = run(AdamW8bit, [(4999,)], torch.float32, 1)
    for a, b in ((their["state1"], our["m"]), (their["state2"], our["v"])):
        assert torch.equal(a[:-135], b[:-135]) and int((a.int() - b.int()).abs().max()) <= 1     # 4999 = 19 * 256 + 135
    assert torch.equal(their["absmax1"], our["m_absmax"]) and torch.equal(their["absmax2"], our["v_absmax"])


def test_the_cpu_build_itself_is_its_grid_away():
    # the grid's cells are 2/65535 wide: a code is the nearest to some place in x's cell, at most one width from x
    theirs, (their,) = run(bnb.optim.AdamW8bit, [(64, 64)], torch.float32, 1)
    ours, (our,) = run(AdamW8bit, [(64, 64)], torch.float32, 1)
    assert torch.equal(theirs[0], ours[0])                                            # the first step has used no code yet
    for codes, absmax, own, own_absmax, signed in (("state1", "absmax1", "m", "m_absmax", True), ("state2", "absmax2", "v", "v_absmax", False)):
        assert torch.equal(their[absmax], our[own_absmax])
        a, b, cell = their[codes].flatten().int(), our[own].flatten().int(), 2 / 65535
        bounds = boundaries(signed)
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        differ = (low != high).nonzero().flatten()
        width = bounds[(high - 1).clamp(min=0)] - bounds[low.clamp(max=254)]                      # of the codes passed over, less the end ones
        assert len(differ) < 0.05 * len(a) and float(width[differ].max() if len(differ) else 0) <= cell


def test_the_cpu_build_has_no_zero():
    # what the docstring of minift_kernels/averages.py says; should this fail one day, bitsandbytes has mended it
    x = torch.zeros(256)
    x[0] = 1.0
    for signed in (True, False):
        code = bnb.functional.create_dynamic_map(signed)
        theirs, absmax = torch.ops.bitsandbytes.quantize_blockwise(x, code, 256)
        ours, _ = encode(x, signed)
        assert float(decode(ours, absmax, signed)[1]) == 0.0
        assert 1.5e-5 < float(decode(theirs, absmax, signed)[1]) < 2.2e-5
