"""What state_dict() holds of a quantized linear, and how it comes back.

    weight.nf4.packed, weight.nf4.absmax ...      its tensors as they are, by their fields' names (tensor.py's `tensors`)
    weight.nf4.sizes                              N, K and the block or group size, which the tensors alone do not tell
    bias                                          as in nn.Linear

The scheme is part of the names: a state of another scheme, or of full weights, is reported by load_state_dict as missing and unexpected keys,
as torch does for any layer. Another shape, dtype or block size, or a part of a weight, is an error even with strict=False. The dtype in which
the linear computes is not stored.
Folders have another form, that of layout.py. Proved in tests/quant/test_state.py."""

import torch
from torch import Tensor

from minift.quant.blocks import FourBit
from minift.quant.int4 import Int4
from minift.quant.tensor import Quantized, tensors, with_tensors


def state_of(q: Quantized) -> dict[str, Tensor]:
    """Name within the linear -> tensor."""
    sizes = [*q.shape, q.block_size if isinstance(q, FourBit) else q.group_size if isinstance(q, Int4) else q.shape[1]]
    found = {"packed": q.packed, "sizes": torch.tensor(sizes), **tensors(q)}
    return {f"weight.{q.scheme}.{name}": t for name, t in found.items()}


def with_state(q: Quantized, state: dict[str, Tensor], place: str, assign: bool) -> tuple[Quantized, list[str], list[str]]:
    """(q with the tensors of `state`, names that are missing, what does not fit). state: by the names of `state_of`; place: what comes
    before them, for the texts. assign: take the tensors themselves, on the device where they are."""
    own = state_of(q)
    missing, wrong, start = [name for name in own if name not in state], [], f"weight.{q.scheme}."
    for name in own.keys() & state.keys():
        mine, theirs = own[name], state[name]
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            wrong.append(f"{place}{name} is {theirs.dtype} {tuple(theirs.shape)}, wanted {mine.dtype} {tuple(mine.shape)}")
        elif name == start + "sizes" and not torch.equal(mine, theirs.cpu()):
            wrong.append(f"{place}{name} is {theirs.tolist()}, wanted {mine.tolist()}: N, K and the numbers that share a scale")
    if 0 < len(missing) < len(own):                                                   # with strict=False torch would not mention them
        wrong.append(f"{place}{missing[0]} is missing, though others of the same weight are there")
    if missing or wrong:
        return q, missing, sorted(wrong)
    return with_tensors(q, {name: state[start + name] if assign else state[start + name].to(t.device, copy=True) for name, t in tensors(q).items()}), [], []
