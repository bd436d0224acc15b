"""The CPU rows of benchmarks/kernels.py with the real bitsandbytes: both sides of every row agree, so every row has a time."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.kernels_cpu import pairs, rows


def test_both_sides_of_every_row_are_equal_to_the_bit():
    weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(1))
    for ours, theirs in pairs(weight).values():
        assert torch.equal(ours(), theirs())


def test_every_row_has_a_time():
    title, *lines, _ = rows(2, sides=(64,))
    assert title.startswith("CPU rows, not the kernels: ") and len(lines) == 4
    assert all("minift (CPU)" in line and "bitsandbytes (CPU)" in line and "as fast" in line for line in lines)


def test_bitsandbytes_says_nothing_of_a_product_that_no_row_uses():
    """From the root of a checkout, whose folder kernels/ it would take for a package of that name."""
    code = "import torch; from benchmarks.kernels_cpu import pairs; pairs(torch.ones(2, 64))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
