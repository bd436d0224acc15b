"""float32 or bfloat16: which arithmetic the forward and backward passes use.

Weights, gradients and optimizer states stay float32; autocast rounds the inputs of matrix products to bfloat16 (8 bits of
precision, float32's range, so no loss scaling). Whether that is faster depends on the processor, so "auto" measures it once.
float16 is left out: it needs loss scaling and gains nothing over bfloat16 on hardware of the last years.
Proved in tests/train/test_precision.py."""

import contextlib
import functools
import time
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
_recalled: dict[str, Literal["fp32", "bf16"]] = {}


@functools.lru_cache(maxsize=None)
def fastest(device_type: str = "cpu") -> Literal["fp32", "bf16"]:
    """Time one matrix product of a small model's size in both; bfloat16 must win by a fifth to be worth its rounding."""
    if device_type != "cpu":
        return "bf16"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = sorted(times)[len(times) // 2]
    return "bf16" if seconds[torch.float32] > 1.2 * seconds[torch.bfloat16] else "fp32"


def chosen(precision: Precision, device_type: str = "cpu") -> Literal["fp32", "bf16"]:
    """What `precision` means here: "auto" is what was recalled, else measured."""
    return (_recalled.get(device_type) or fastest(device_type)) if precision == "auto" else precision


def recall(device_type: str, found: Literal["fp32", "bf16"]) -> None:
    """From now on "auto" is `found`: what a run's first start measured holds for the whole run, or a resumed one might go on in other arithmetic."""
    _recalled[device_type] = found


def autocast(precision: Precision, device_type: str = "cpu") -> contextlib.AbstractContextManager:
    """The context in which a model's forward pass runs."""
    return torch.autocast(device_type, torch.bfloat16) if chosen(precision, device_type) == "bf16" else contextlib.nullcontext()
