"""The values that 4-bit and 8-bit codes stand for.

    value = map[code] * absmax            absmax: the largest |value| of the block

NF4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E): 16 quantiles of a standard normal, scaled to [-1, 1], with an exact zero;
the map that makes each code about equally frequent for normally distributed weights. Eight values at or above zero, seven below.
FP4: a sign, two bits of exponent and one of mantissa, divided by the largest, 12. Code 8 is a second zero.
The dynamic maps (Dettmers 2015, arXiv:1511.04561) spend their bits on a decimal exponent: a code for 10^-6 keeps few digits, one near 1
keeps many. The signed one quantizes absmax once more ("double quantization") and Adam's first moment; the unsigned one its second.
Every map equals bitsandbytes' to the bit. Proved in tests/kernels/test_codes.py and tests/parity/test_bitsandbytes.py."""

import torch
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Code -> value, ascending: code 7 is zero."""

FP4 = (
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
    0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
)  # fmt: skip
"""Code -> value: bit 3 is the sign."""


def _dynamic(signed: bool) -> tuple[float, ...]:
    """Exponent i = 0..6 gets the midpoints of 2^i equal slices of [0.1, 1] (2^(i+1) unsigned), times 10^(i-6); both signs; and 0 and 1."""
    values = [0.0, 1.0]
    for i in range(7):
        slices = 2**i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, slices + 1, dtype=torch.float32, device="cpu")
        means = ((edges[:-1] + edges[1:]) / 2.0).mul(10.0 ** (i - 6)).tolist()
        values += means + [-m for m in means] if signed else means
    return tuple(sorted(values))


VALUES = {"nf4": NF4, "fp4": FP4, "signed": _dynamic(True), "unsigned": _dynamic(False)}
"""All maps as plain numbers, which torch.compile can put into its program."""

_tensors: dict[str, Tensor] = {}
"""Map and device -> tensor, made once."""


def four_bit_map(scheme: str, device: torch.device | str = "cpu") -> Tensor:
    """The 16 values of "nf4" or "fp4", (16,) float32 by code. Shared: do not write into it."""
    return _tensor({"nf4": "nf4", "fp4": "fp4"}[scheme], device)


def dynamic_map(signed: bool = True, device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of the dynamic 8-bit map, (256,) float32, ascending. Shared: do not write into it."""
    return _tensor("signed" if signed else "unsigned", device)


def _tensor(name: str, device: torch.device | str) -> Tensor:
    """The map on this device. While torch.compile looks, a made one is used, but none is kept: it could not see through functools.cache."""
    key = f"{name} {device}"
    if key in _tensors:
        return _tensors[key]
    if torch.compiler.is_compiling():
        return torch.tensor(VALUES[name], dtype=torch.float32, device=device)
    with torch.inference_mode(False):                                                 # what is made in there could not be used elsewhere
        _tensors[key] = torch.tensor(VALUES[name], dtype=torch.float32, device=device)
    return _tensors[key]
