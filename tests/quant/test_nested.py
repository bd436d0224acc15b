"""The 8-bit form of absmax: by hand, its error, and the edges of its blocks of 256."""

import pytest
import torch

from minift.quant.nested import BLOCK, CELLS, Nested, code_of_cell, grow, shrink
from minift_kernels.codes import dynamic_map

MAP = dynamic_map(True)                                                               # (256,): MAP[127] = 0, MAP[255] = 1


def test_worked_by_hand():
    # mean 2, so -1 and 1 are left; -1 is nearest to the lowest of the map, which has no -1 itself
    small = shrink(torch.tensor([1.0, 3.0]))
    assert small.codes.tolist() == [0, 255] and small.codes.dtype == torch.uint8
    assert small.absmax.tolist() == [1.0] and small.offset.item() == 2.0
    assert torch.equal(grow(small), torch.stack([2 + MAP[0], torch.tensor(3.0)]))


@pytest.mark.parametrize("n", [1, 2, 256, 300])
def test_equal_ones_come_back_exactly(n):                                             # nothing is left of them but the mean; 0 / 0 must not spread
    small = shrink(torch.full((n,), 0.25))
    assert small.codes.tolist() == [0] * n and (small.absmax == 0).all() and small.offset.item() == 0.25
    assert torch.equal(grow(small), torch.full((n,), 0.25))


@pytest.mark.parametrize("n", [255, 256, 257, 512, 1000])
def test_each_256_have_a_scale_of_their_own(n):
    absmax = torch.rand(n, generator=torch.Generator().manual_seed(n)) + 1
    absmax[:256] *= 100
    small = shrink(absmax)
    assert len(small.codes) == n and len(small.absmax) == -(-n // BLOCK)
    away = absmax - small.offset
    assert torch.equal(small.absmax, torch.stack([part.abs().max() for part in away.split(BLOCK)]))
    # Half the widest step of the map, half a cell, and a few roundings of the mean
    bound = ((MAP.diff().max() + 2 / CELLS) / 2 * small.absmax).repeat_interleave(BLOCK)[:n] + 4 * absmax.max() * 2**-24
    assert ((grow(small) - absmax).abs() <= bound.clamp(min=((1 + MAP[0]) * small.absmax).max())).all()


def test_growing_is_map_times_scale_plus_offset():
    codes = torch.arange(300) % 256
    nested = Nested(codes.to(torch.uint8), torch.tensor([2.0, 0.5]), torch.tensor(7.0))
    assert grow(nested).tolist() == [(MAP[c] * (2.0 if b < 256 else 0.5) + 7.0).item() for b, c in enumerate(codes.tolist())]


def test_every_cell_has_the_code_of_its_middle():
    middles = torch.arange(CELLS + 1, dtype=torch.float64) / CELLS * 2 - 1
    table = code_of_cell(torch.device("cpu"))
    for some in torch.randperm(CELLS + 1, generator=torch.Generator().manual_seed(0))[:2000].split(500):
        distance = (middles[some, None] - MAP.double()).abs()
        assert torch.equal(distance.gather(1, table[some].long()[:, None])[:, 0], distance.amin(1))


def test_small_ones_keep_their_sign_and_order():
    absmax = torch.cat([torch.linspace(0.5, 0.7, 200), torch.tensor([90.0])])
    assert (grow(shrink(absmax))[:200].diff() >= 0).all()
