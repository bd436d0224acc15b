"""The CPU rows of benchmarks/kernels.py with the real bitsandbytes: both sides of every row agree, so every row has a time."""

import torch

from benchmarks.kernels_cpu import pairs, rows


def test_both_sides_of_every_row_are_equal_to_the_bit():
    weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(1))
    for ours, theirs in pairs(weight).values():
        assert torch.equal(ours(), theirs())


def test_every_row_has_a_time():
    title, *lines = rows(2, side=64)
    assert title.startswith("CPU rows, not the kernels: ") and len(lines) == 4
    assert all("minift (CPU)" in line and "bitsandbytes (CPU)" in line and "as fast" in line for line in lines)
