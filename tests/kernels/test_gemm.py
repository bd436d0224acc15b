"""Products with a 4-bit weight on the tensor cores, worked by hand. tests/kernels/test_registry.py compares both kernels with their reference."""

import pytest
import torch

from minift_kernels import gemm, runtime
from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.dequantize import dequantize_reference
from minift_kernels.gemm import KERNEL, gemm_4bit, sum_parts
from minift_kernels.gemm_large import gemm_large_4bit
from minift_kernels.products import make, matmul_reference, nearest
from tests.kernels.memcheck import watched

BOTH = pytest.mark.parametrize("product", [gemm_4bit, gemm_large_4bit], ids=["gemm", "gemm_large"])


@BOTH
def test_two_columns_worked_by_hand(product):                             # a byte 0xF0: 1, then -1
    x = torch.tensor([[3.0, 5.0], [1.0, 0.0], [0.0, 1.0]])
    y = product(x, torch.tensor([0xF0], dtype=torch.uint8), torch.tensor([2.0]), four_bit_map("nf4"), 1, 64)
    assert y.tolist() == [[-4.0], [2.0], [-2.0]]


@BOTH
@pytest.mark.parametrize(("K", "block"), [(96, 64), (34, 64), (130, 32), (256, 32)])
def test_the_identity_gives_the_weight_back_to_the_bit(product, K, block):
    """As dequantize rounds it, in float16 too; blocks cross the ends of rows."""
    N = 5
    made = make("cpu", 0, 1, N, K, torch.float16, block)
    made["x"] = torch.eye(K, dtype=torch.float16)
    W = dequantize_reference(made["packed"], made["absmax"], made["code_map"], N * K, block, torch.float16).view(N, K)
    assert torch.equal(product(**made), W.T)


@BOTH
def test_a_block_that_crosses_rows_lends_its_absmax_to_both(product):     # W is absmax everywhere; rows of 96, blocks of 64
    a, b, c = 1.0, 10.0, 100.0
    y = product(torch.ones(2, 96), torch.full((96,), 0xFF, dtype=torch.uint8), torch.tensor([a, b, c]), four_bit_map("nf4"), 2, 64)
    assert y.tolist() == [[64 * a + 32 * b, 32 * b + 64 * c]] * 2


@BOTH
def test_a_doubly_quantized_absmax_worked_by_hand(product):               # map[255] = 1, map[127] = 0
    absmax = torch.tensor([127, 255], dtype=torch.uint8)
    y = product(torch.ones(1, 64), torch.full((64,), 0xFF, dtype=torch.uint8), absmax, four_bit_map("nf4"), 2, 64,
                torch.tensor([2.0]), dynamic_map(True), torch.tensor(0.25))  # fmt: skip
    assert y.tolist() == [[64 * 0.25, 64 * 2.25]]


def test_few_tiles_share_k_and_the_parts_always_add_up_the_same():
    made = make("cpu", 1, 9, 70, 4000, torch.float32)
    with watched() as launches:
        once = gemm_4bit(**made)
    assert [launch.name for launch in launches] == ["gemm_kernel", "sum_parts_kernel"] and len(launches[0].programs) == 2 * 7
    assert torch.equal(once, gemm_4bit(**made))


def test_parts_are_added_in_order():                                      # in float32 2^25 + 1 is 2^25: the order shows
    parts = torch.tensor([2.0**25, 1.0, -(2.0**25)]).view(3, 1, 1).expand(3, 2, 700).contiguous()
    assert torch.equal(sum_parts(parts, torch.float16), torch.zeros(2, 700, dtype=torch.float16))
    assert torch.equal(sum_parts(parts[[0, 2, 1]], torch.float16), torch.ones(2, 700, dtype=torch.float16))


@pytest.mark.parametrize("name", ["sm80", "gfx942"])
def test_the_configurations_of_other_chips_compute_the_same(name, monkeypatch):
    monkeypatch.setattr(gemm, "chip", lambda device: name)
    for M in (9, 40, 100, 200):
        made = make("cpu", M, M, 67, 160, torch.float16)
        torch.testing.assert_close(gemm_4bit(**made), matmul_reference(**made))


def test_other_chips_take_the_configurations_of_their_nearest():
    assert [nearest(name) for name in ("sm80", "sm86", "sm89")] == ["sm80"] * 3 and [nearest(name) for name in ("sm90", "sm120", "")] == ["sm90"] * 3
    assert nearest("gfx942") == nearest("gfx90a") == "gfx942"


def test_more_rows_are_refused():
    with pytest.raises(ValueError, match="gemm serves 1 to 256 rows of x, found 257: for more, dequantize"):
        gemm_4bit(**make("cpu", 2, 257, 3, 32, torch.float32))


@BOTH
def test_no_rows_make_an_empty_y_as_with_nn_linear(product):
    made = make("cpu", 2, 1, 3, 32, torch.float16)
    with watched() as launches:
        y = product(**made | dict(x=made["x"][:0]))
    assert y.shape == (0, 3) and y.dtype == torch.float16 and not launches
    with pytest.raises(ValueError, match="packed has 47 values, wanted 48"):
        product(**made | dict(x=made["x"][:0], packed=made["packed"][1:]))


@BOTH
def test_the_backward_pass_says_that_there_is_no_gradient_and_what_has_one(product):
    made = make("cpu", 2, 8, 3, 32, torch.float32)
    y = product(**made | dict(x=made["x"].requires_grad_()))
    with pytest.raises(ValueError, match=r"gemm(_large)?_4bit has no gradient: train with minift_kernels.qlora.qlora_linear, or dequantize W"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (dict(N=6), "gemm: packed has 80 values, wanted 96 for W of 6 x 32 in blocks of 64"),
        (dict(absmax=torch.ones(4)), "gemm: absmax has 4 values, wanted 3"),
        (dict(code_map=torch.ones(15)), "gemm: code_map has 15 values, wanted 16"),
        (dict(block_size=3), "gemm: block_size 3, wanted an even number"),
        (dict(x=torch.ones(32)), r"gemm: x is torch.float32 of shape \(32,\) and N 5, wanted floating-point rows"),
        (dict(absmax=torch.ones(3, dtype=torch.uint8), nested_absmax=torch.ones(1)), "gemm: nested_map has none values, wanted 256"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(change, error):
    with pytest.raises(ValueError, match=error):
        gemm_4bit(**make("cpu", 3, 8, 5, 32, torch.float32) | change)


@BOTH
def test_strided_x_is_served_and_odd_k_is_answered_by_the_reference(product, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "_said", set())
    made = make("cpu", 4, 9, 5, 64, torch.float32)
    wanted = product(**made)
    assert torch.equal(product(**made | dict(x=made["x"].T.contiguous().T)), wanted) and not capsys.readouterr().err
    made = make("cpu", 4, 9, 5, 33, torch.float32)
    assert torch.equal(product(**made), matmul_reference(**made)) and "K is 33, odd: it serves rows of whole bytes" in capsys.readouterr().err


@pytest.mark.parametrize("peer", ["cuBLAS bf16", "dequantize + cuBLAS"])
def test_the_benchmarks_peers_compute_the_same_product(peer):
    made = make("cpu", 5, 8, 6, 96, torch.float32, nested=True)
    torch.testing.assert_close(KERNEL.peers[peer](**made)(), matmul_reference(**made))
