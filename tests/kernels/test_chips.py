"""Bounds worked by hand, and data that agree with each other."""

import pytest
import torch

from minift_kernels import gate
from minift_kernels.chips import GPU, GPUS, bound, known
from minift_kernels.registry import CHIPS, Work, kernels

TOY = GPU("toy", "sm90", bandwidth=100.0, bf16=1000.0, units=2, lanes=4, clock=10.0, l2=1, shared=1)


def test_a_bound_is_the_larger_of_two_times_worked_by_hand():
    assert bound(Work(200, 1000), TOY) == (2.0, "bytes", 2.0, 1.0)
    assert bound(Work(200, 5000), TOY) == (5.0, "FLOPs", 2.0, 5.0)
    assert bound(Work(200, 0), TOY) == (2.0, "bytes", 2.0, 0.0)


def test_a_known_copy_and_product_count_before_the_data_sheet():
    known_rates = GPU("toy", "sm90", 100.0, 1000.0, 2, 4, 10.0, 1, 1, copy=50.0, matmul=500.0)
    assert bound(Work(200, 1000), known_rates) == (4.0, "bytes", 4.0, 2.0)


def test_the_h200_dequantizes_14336_by_4096_in_34_us_at_best():
    case = dict(n=14336 * 4096, block_size=64, dtype=torch.bfloat16, nested=True)
    least = bound(kernels()["dequantize"].work(**case), GPUS["h200"])              # 58.7e6 weights of 2.5159 bytes at 4.3e12 a second
    assert least.by == "bytes" and least.seconds == pytest.approx(34.36e-6, rel=1e-3)


def test_issue_is_units_times_lanes_times_clock():
    assert TOY.issue == 80.0
    assert GPUS["h200"].issue == pytest.approx(29.65e12, rel=1e-3)                 # 2.0 us per instruction for 58.7e6 weights
    assert 14336 * 4096 / GPUS["h200"].issue == pytest.approx(1.98e-6, rel=1e-2)


@pytest.mark.parametrize("key", GPUS)
def test_a_gpus_data_agree_with_each_other(key):
    gpu = GPUS[key]
    assert gpu.chip in CHIPS and gpu.shared == gate.SHARED[gpu.chip]
    assert 0.8 * gpu.bandwidth < (gpu.copy or gpu.bandwidth) <= gpu.bandwidth, "nothing copies faster than its memory"
    assert 0.7 * gpu.bf16 < (gpu.matmul or gpu.bf16) <= gpu.bf16
    per_lane = gpu.bf16 / (2 * gpu.issue)                          # products per clock: the matrix units do 8 to 16 times what the lanes do
    assert 7.5 <= per_lane <= 17, per_lane


def test_every_chip_of_the_gate_has_a_gpu():
    assert {gpu.chip for gpu in GPUS.values()} == set(CHIPS)


@pytest.mark.parametrize("name, key", [
    ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("AMD Instinct MI300X", "mi300x"),
    ("NVIDIA A10", None), ("NVIDIA GH200 480GB", None),
])  # fmt: skip
def test_a_drivers_name_finds_the_gpu(name, key):
    assert known(name) == key
