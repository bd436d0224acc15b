"""May a kernel be launched for these tensors? If not, its torch reference answers, and that is said once.

A kernel runs on an NVIDIA or AMD GPU, or anywhere under Triton's interpreter (TRITON_INTERPRET=1, read when triton is first imported).
The interpreter computes bfloat16 wrongly and does not say so, so there bfloat16 goes to the reference.
Proved in tests/kernels/test_runtime.py."""

import os
import sys

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Does Triton's interpreter execute the kernels, on any device, a program after the other?"""

_said: set[str] = set()


def chip(device: torch.device) -> str:
    """"sm90" for an H100 or H200, "gfx942" for an MI300X: the key of the kernels' config tables. "" where no GPU is."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm{}{}".format(*torch.cuda.get_device_capability(device))


def can_launch(kernel: str, *tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = (), unless: str = "") -> bool:
    """Can Triton run on these tensors? `dtypes`: those the kernel serves for its floating-point inputs, if not all.
    `unless`: a reason of the kernel's own why not.

    Where the answer is no the caller computes its reference. The reason is printed to stderr the first time."""
    reason = _reason(tensors, dtypes) or unless
    if reason and (text := f"minift_kernels: {kernel} runs as plain torch: {reason}") not in _said:
        _said.add(text)
        print(text, file=sys.stderr)
    return not reason


def _reason(tensors: tuple[Tensor | None, ...], dtypes: tuple[torch.dtype, ...]) -> str:
    present = [t for t in tensors if t is not None]
    places = {t.device for t in present}
    if len(places) > 1:
        raise ValueError(f"the tensors are on several devices ({', '.join(sorted(map(str, places)))}): move them to one")
    place = places.pop()
    if place.type != "cuda" and not INTERPRETED:
        return f"the tensors are on {place}, and Triton needs a GPU (or TRITON_INTERPRET=1)"
    floats = {t.dtype for t in present if t.is_floating_point()}
    if INTERPRETED and torch.bfloat16 in floats:
        return "Triton's interpreter computes bfloat16 wrongly"
    odd = sorted(str(dtype) for dtype in floats - set(dtypes)) if dtypes else []
    return f"it does not serve {', '.join(odd)}" if odd else ""


def require(kernel: str, **wanted: tuple[Tensor | None, torch.dtype]) -> None:
    """Refuse a tensor that is not contiguous or of another dtype: require("dequantize", packed=(packed, torch.uint8), ...). None passes."""
    for name, (tensor, dtype) in wanted.items():
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(f"{kernel}: {name} is {tensor.dtype}, wanted {dtype}")
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{kernel}: {name} of shape {tuple(tensor.shape)} has strides {tensor.stride()}, wanted it in one piece: .contiguous()")
