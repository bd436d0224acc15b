"""Do these tensors make a weight of n numbers in 4 bits? Asked before a kernel is launched, whose masks know n and no other size.

    packed: (ceil(n / 2),)      absmax: (blocks,)      blocks = ceil(n / block_size)
    with 8-bit absmax also      nested_absmax: (ceil(blocks / 256),)      nested_map: (256,)      offset: 1 number

A tensor that is too short would be read past its end; one for another block size would scale the weight wrongly, and nobody would notice.
Only sizes, dtypes and strides are looked at, never a value: asking one of a GPU would wait for it.
Proved in tests/kernels/test_weight.py."""

import torch
from torch import Tensor

from minift_kernels.fourbit import NESTED_BLOCK
from minift_kernels.runtime import require


def check_weight(kernel: str, shape: tuple[int, ...], packed, absmax, code_map, block_size: int, nested_absmax, nested_map, offset) -> None:
    """ValueError unless these are W's tensors. shape: (n,) or (N, K)."""
    nested = nested_absmax is not None
    require(kernel, packed=(packed, torch.uint8), absmax=(absmax, torch.uint8 if nested else torch.float32), code_map=(code_map, torch.float32),
            nested_absmax=(nested_absmax, torch.float32), nested_map=(nested_map, torch.float32), offset=(offset, torch.float32))  # fmt: skip
    if block_size < 2 or block_size % 2:
        raise ValueError(f"{kernel}: block_size {block_size}, wanted an even number: two codes of a byte share their absmax")
    if min(shape) < 0:
        raise ValueError(f"{kernel}: W of {' x '.join(map(str, shape))} numbers, wanted none below 0")
    n = 1
    for side in shape:
        n *= side
    blocks = -(-n // block_size)
    sizes: dict[str, tuple[Tensor | None, int]] = dict(packed=(packed, -(-n // 2)), absmax=(absmax, blocks), code_map=(code_map, 16))
    if nested:
        sizes |= dict(nested_absmax=(nested_absmax, -(-blocks // NESTED_BLOCK)), nested_map=(nested_map, 256), offset=(offset, 1))
    for name, (tensor, wanted) in sizes.items():
        if tensor is None or tensor.numel() != wanted:
            found = "none" if tensor is None else tensor.numel()
            of = f"{shape[0]} numbers" if len(shape) == 1 else " x ".join(map(str, shape))
            raise ValueError(f"{kernel}: {name} has {found} values, wanted {wanted} for W of {of} in blocks of {block_size}")
