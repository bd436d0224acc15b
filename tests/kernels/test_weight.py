"""Tensors that do not make a weight are named before a kernel reads past them. On a CPU, where the same sizes are asked for."""

import pytest
import torch

from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.dequantize import dequantize_4bit, make


def weight(nested=False, **changed):
    """129 numbers: 65 bytes, 3 blocks of 64; with double quantization 1 nested absmax."""
    return make("cpu", 0, 129, 64, torch.float32, nested) | changed


@pytest.mark.parametrize(("changed", "said"), [
    (dict(n=258), "dequantize: packed has 65 values, wanted 129 for W of 258 numbers in blocks of 64"),      # would be read past its end
    (dict(n=128), "packed has 65 values, wanted 64"),
    (dict(block_size=128), "dequantize: absmax has 3 values, wanted 2 for W of 129 numbers in blocks of 128"),
    (dict(block_size=32), "absmax has 3 values, wanted 5"),
    (dict(block_size=63), "block_size 63, wanted an even number"),
    (dict(block_size=0), "block_size 0, wanted an even number"),
    (dict(n=-1), "W of -1 numbers, wanted none below 0"),
    (dict(packed=torch.zeros(64, dtype=torch.uint8)), "packed has 64 values, wanted 65"),
    (dict(code_map=torch.ones(8)), "code_map has 8 values, wanted 16"),
    (dict(absmax=torch.ones(3, dtype=torch.uint8)), "absmax is torch.uint8, wanted torch.float32"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        dequantize_4bit(**weight(**changed))


@pytest.mark.parametrize(("changed", "said"), [
    (dict(nested_absmax=torch.ones(2)), "dequantize: nested_absmax has 2 values, wanted 1 for W of 129 numbers in blocks of 64"),
    (dict(nested_absmax=torch.ones(0)), "nested_absmax has 0 values, wanted 1"),
    (dict(nested_map=four_bit_map("nf4")), "nested_map has 16 values, wanted 256"),
    (dict(nested_map=None), "nested_map has none values, wanted 256"),
    (dict(offset=None), "offset has none values, wanted 1"),
    (dict(offset=torch.ones(2)), "offset has 2 values, wanted 1"),
    (dict(absmax=torch.ones(4, dtype=torch.uint8)), "absmax has 4 values, wanted 3"),
    (dict(absmax=torch.ones(3)), "absmax is torch.float32, wanted torch.uint8"),
])  # fmt: skip
def test_sizes_of_double_quantization_that_do_not_fit_are_named(changed, said):
    with pytest.raises(ValueError, match=said):
        dequantize_4bit(**weight(nested=True, **changed))


def test_256_blocks_share_a_nested_absmax_and_the_257th_has_the_next():
    def with_nested(n, count):
        blocks = -(-n // 64)
        return dequantize_4bit(torch.zeros(n // 2, dtype=torch.uint8), torch.zeros(blocks, dtype=torch.uint8), four_bit_map("nf4"), n, 64,
                               torch.float32, torch.ones(count), dynamic_map(True), torch.tensor(0.0))  # fmt: skip

    assert len(with_nested(64 * 256, 1)) == 64 * 256 and len(with_nested(64 * 256 + 2, 2)) == 64 * 256 + 2
    with pytest.raises(ValueError, match="nested_absmax has 1 values, wanted 2"):
        with_nested(64 * 256 + 2, 1)


def test_a_column_of_bytes_as_bitsandbytes_packs_them_is_the_same_weight():
    made = weight()
    assert torch.equal(dequantize_4bit(**made | dict(packed=made["packed"].view(-1, 1))), dequantize_4bit(**made))
