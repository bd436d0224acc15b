"""One to seven rows times a 4-bit weight, worked by hand. tests/kernels/test_registry.py compares the kernel with its reference on odd shapes."""

import pytest
import torch

from minift_kernels import gemv, runtime
from minift_kernels.codes import dynamic_map, four_bit_map
from minift_kernels.dequantize import dequantize_reference
from minift_kernels.gemv import KERNEL, config, gemv_4bit
from minift_kernels.products import make, matmul_reference
from tests.kernels.memcheck import watched


def packed_of(codes: list[int]) -> torch.Tensor:
    """Two codes in a byte, the first in the high nibble."""
    return torch.tensor([16 * high + low for high, low in zip(codes[::2], codes[1::2])], dtype=torch.uint8)


def test_two_columns_worked_by_hand():                                    # map[15] = 1, map[0] = -1: 2 (3 * 1 + 5 * -1) = -4
    y = gemv_4bit(torch.tensor([[3.0, 5.0]]), packed_of([15, 0]), torch.tensor([2.0]), four_bit_map("nf4"), 1, 64)
    assert y.tolist() == [[-4.0]]


def test_a_word_of_eight_codes_worked_by_hand():                          # codes 0, 7, 15 stand for -1, 0, 1
    codes = [15, 7, 0, 15, 7, 7, 15, 0] + [7] * 24
    x = torch.tensor([[1.0, 2, 4, 8, 16, 32, 64, 128] + [1e6] * 24])
    with watched() as launches:
        y = gemv_4bit(x, packed_of(codes), torch.tensor([0.5]), four_bit_map("nf4"), 1, 32)
    assert y.tolist() == [[0.5 * (1 - 4 + 8 + 64 - 128)]] and [launch.name for launch in launches] == ["gemv_kernel"]


@pytest.mark.parametrize("M", [1, 2])
def test_each_column_of_x_meets_its_own_weight(M):
    """A row of x that is zero but for a one picks a column of W, to the bit: W is not rounded."""
    N, K = 3, 160
    made = make("cpu", 0, M, N, K, torch.float32)
    W = dequantize_reference(made["packed"], made["absmax"], made["code_map"], N * K, 64, torch.float32).view(N, K)
    for k in (*range(0, 40, M), 62, 64, 94, 126, 128, 158):
        made["x"] = torch.eye(K)[k : k + M]
        assert torch.equal(gemv_4bit(**made), W[:, k : k + M].T)


def test_a_block_that_crosses_rows_lends_its_absmax_to_both():            # W is absmax everywhere; rows of 96, blocks of 64
    a, b, c = 1.0, 10.0, 100.0
    y = gemv_4bit(torch.ones(1, 96), packed_of([15] * 192), torch.tensor([a, b, c]), four_bit_map("nf4"), 2, 64)
    assert y.tolist() == [[64 * a + 32 * b, 32 * b + 64 * c]]


def test_a_doubly_quantized_absmax_worked_by_hand():                      # 8 blocks in a row of W; from block 256, row 32, the second nested absmax
    absmax = torch.full((264,), 255, dtype=torch.uint8)                   # map[255] = 1, map[127] = 0
    absmax[0] = 127
    y = gemv_4bit(torch.ones(1, 256), packed_of([15] * 256 * 33), absmax, four_bit_map("nf4"), 33, 32,
                  torch.tensor([2.0, 5.0]), dynamic_map(True), torch.tensor(0.25))  # fmt: skip
    assert y[0, [0, 1, 31, 32]].tolist() == [32 * 0.25 + 224 * 2.25, 256 * 2.25, 256 * 2.25, 256 * 5.25]


def test_little_work_is_divided_along_k_and_always_adds_up_the_same():
    made = make("cpu", 1, 2, 3, 4192, torch.float32, nested=True)
    with watched() as launches:
        once = gemv_4bit(**made)
    assert [launch.name for launch in launches] == ["gemv_kernel", "sum_parts_kernel"] and len(launches[0].programs) == 5
    assert torch.equal(once, gemv_4bit(**made))
    double = {name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for name, value in made.items()}
    exact = matmul_reference(**double)
    assert (once.double() - exact).abs().max() <= 4192**0.5 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("M", "K", "block", "why"), [(3, 96, 32, "three rows"), (1, 34, 2, "rows of W that begin within a word"), (1, 64, 16, "small blocks")]
)
def test_what_the_warp_does_not_serve_the_tensor_cores_do(M, K, block, why):
    made = make("cpu", 2, M, 5, K, torch.float32, block)
    with watched() as launches:
        y = gemv_4bit(**made)
    assert [launch.name for launch in launches] == ["gemm_kernel"], why
    torch.testing.assert_close(y, matmul_reference(**made))


def test_packed_codes_that_do_not_begin_at_a_word_and_strided_x_are_served():
    made = make("cpu", 3, 2, 5, 96, torch.float32)
    wanted = gemv_4bit(**made)
    made["x"] = torch.stack([made["x"].T, torch.full((96, 2), 9.0)], -1)[..., 0].T
    assert not made["x"].is_contiguous() and torch.equal(gemv_4bit(**made), wanted)
    room = torch.zeros(len(made["packed"]) + 1, dtype=torch.uint8)
    room[1:] = made["packed"]
    torch.testing.assert_close(gemv_4bit(**made | dict(packed=room[1:])), wanted)


def test_parts_that_do_not_divide_the_steps_evenly_cover_all_of_k(monkeypatch):
    """5 steps of 1024 weights in 4 parts, on a chip of one processor: 2, 2, 1 and none."""
    monkeypatch.setattr(gemv, "processors", lambda device: 1)
    y = gemv_4bit(torch.ones(1, 4192), packed_of([15] * 4192), torch.ones(131), four_bit_map("nf4"), 1, 32)
    assert y.tolist() == [[4192.0]]


def test_odd_k_and_float64_are_answered_by_the_reference_which_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "_said", set())
    for K, dtype in ((33, torch.float32), (33, torch.float32), (32, torch.float64)):
        made = make("cpu", 4, 1, 3, K, dtype)
        assert torch.equal(gemv_4bit(**made), matmul_reference(**made))
    said = capsys.readouterr().err
    assert said.count("gemv runs as plain torch: K is 33, odd") == 1 and said.count("it does not serve torch.float64") == 1


def test_more_rows_are_refused():
    with pytest.raises(ValueError, match="gemv serves 1 to 7 rows of x, found 8: for more, dequantize and let torch multiply"):
        gemv_4bit(**make("cpu", 5, 8, 3, 32, torch.float32))


def test_no_rows_make_an_empty_y_as_with_nn_linear():
    made = make("cpu", 5, 1, 3, 32, torch.float16)
    with watched() as launches:
        y = gemv_4bit(**made | dict(x=made["x"][:0]))
    assert y.shape == (0, 3) and y.dtype == torch.float16 and not launches


def test_the_backward_pass_says_that_there_is_no_gradient_and_what_has_one():
    made = make("cpu", 5, 2, 3, 64, torch.float32)
    y = gemv_4bit(**made | dict(x=made["x"].requires_grad_()))
    with pytest.raises(ValueError, match="gemv_4bit has no gradient: train with minift_kernels.qlora.qlora_linear, or dequantize W"):
        y.sum().backward()


def test_every_chip_has_a_configuration_for_one_and_two_rows():
    assert config("sm80", 1, 14336) == dict(ROWS=8, WORDS=4, LANES=32) and config("sm90", 1, 4096) == dict(ROWS=4, WORDS=4, LANES=32)
    assert {config(chip, M, N)["LANES"] for chip in ("gfx942",) for M in (1, 2) for N in (1, 8192)} == {64}


def test_the_least_bytes_are_those_of_the_weight():                       # 0.5625 a weight, 0.5157 with double quantization, x and y beside it
    case = dict(M=1, N=14336, K=4096, dtype=torch.bfloat16)
    assert KERNEL.work(**case).bytes == 14336 * 4096 * 0.5625 + 2 * (4096 + 14336) and KERNEL.work(**case).flops == 2 * 14336 * 4096
    assert KERNEL.work(**case, nested=True).bytes == 14336 * 4096 * (0.5 + (1 + 4 / 256) / 64) + 2 * (4096 + 14336)
