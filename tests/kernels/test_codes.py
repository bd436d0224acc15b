"""The maps, worked out again from their definitions."""

from statistics import NormalDist

import torch

from minift_kernels.codes import FP4, NF4, dynamic_map, four_bit_map


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    """QLoRA, appendix E: 8 quantiles from 1/2 to 0.9677 for zero and above, 8 for zero and below, the shared zero once, divided by the largest."""
    offset = 0.9677083                                                   # (1 - 1/30 + 1 - 1/32) / 2
    quantile = NormalDist().inv_cdf
    evenly = lambda count: [offset + (0.5 - offset) * i / (count - 1) for i in range(count - 1)]                 # without the 1/2 itself
    values = sorted([quantile(p) for p in evenly(9)] + [0.0] + [-quantile(p) for p in evenly(8)])
    worked = torch.tensor([value / values[-1] for value in values])
    assert len(worked) == 16
    torch.testing.assert_close(torch.tensor(NF4), worked, rtol=0, atol=2e-6)                                     # the paper's offset has 7 digits


def test_nf4_has_an_exact_zero_at_seven_and_ends_at_one():
    assert NF4[7] == 0.0 and NF4[0] == -1.0 and NF4[15] == 1.0 and list(NF4) == sorted(NF4)
    steps = [b - a for a, b in zip(NF4, NF4[1:])]
    assert steps[7] == min(steps) and NF4[8] < -NF4[6], "above zero there is one value more, so they lie closer"


def test_fp4_is_a_sign_two_bits_of_exponent_and_one_of_mantissa():
    """Value times 12: 0, 1/16 (the subnormal), then 2^e (1 + m/2) in an order of its own."""
    assert [round(12 * value, 4) for value in FP4[:8]] == [0, 0.0625, 8, 12, 4, 6, 2, 3]
    assert all(minus == -plus for plus, minus in zip(FP4[:8], FP4[8:]))
    assert FP4[8] == 0, "a second zero"


def test_the_signed_dynamic_map_by_its_structure():
    values = dynamic_map(signed=True)
    assert values.shape == (256,) and values[127] == 0 and values[255] == 1 and torch.equal(values, values.sort().values)
    assert torch.equal(values[:127], -values[128:255].flip(0)), "127 below zero mirror those above, the 1 has no mirror"
    above = values[128:255]
    for i in range(7):                                                   # 2^i values within [10^(i-7), 10^(i-6)]
        assert ((above > 10.0 ** (i - 7)) & (above < 10.0 ** (i - 6))).sum() == 2**i
    torch.testing.assert_close(above[:3], torch.tensor([0.55e-6, 0.325e-5, 0.775e-5]), rtol=1e-6, atol=0)
    assert abs(float(values[254]) - (1 - 0.9 / 128)) < 1e-6              # the last of 64 slices of [0.1, 1], its middle


def test_the_unsigned_dynamic_map_has_twice_as_many_values_at_each_exponent():
    values = dynamic_map(signed=False)
    assert values.shape == (256,) and values[0] == 0 and values[255] == 1 and len(values.unique()) == 256
    for i in range(7):
        assert ((values > 10.0 ** (i - 7)) & (values < 10.0 ** (i - 6))).sum() == 2 ** (i + 1)
    torch.testing.assert_close(values[1:3], torch.tensor([0.325e-6, 0.775e-6]), rtol=1e-6, atol=0)


def test_maps_are_float32_and_by_code():
    assert four_bit_map("nf4").tolist() == list(NF4) and four_bit_map("fp4").tolist() == list(FP4)
    assert {four_bit_map("nf4").dtype, four_bit_map("fp4").dtype, dynamic_map().dtype} == {torch.float32}
