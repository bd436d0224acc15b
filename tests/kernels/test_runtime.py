"""Where kernels run, and what is said where they do not."""

import pytest
import torch

from minift_kernels import dequantize, runtime
from minift_kernels.quantize import quantize_4bit
from tests.kernels.memcheck import watched


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(runtime, "_said", set())


def test_the_interpreter_runs_kernels_on_the_cpu():
    assert runtime.INTERPRETED and runtime.can_launch("k", torch.ones(2), None) and runtime.chip(torch.device("cpu")) == ""


def test_without_it_the_cpu_falls_back_and_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    assert not runtime.can_launch("k", torch.ones(2)) and not runtime.can_launch("k", torch.ones(3))
    said = "minift_kernels: k runs as plain torch: the tensors are on cpu, and Triton needs a GPU (or TRITON_INTERPRET=1)\n"
    assert capsys.readouterr() == ("", said)
    assert not runtime.can_launch("another", torch.ones(2))
    assert capsys.readouterr().err.startswith("minift_kernels: another runs as plain torch: ")


def test_bfloat16_goes_to_the_reference_under_the_interpreter(capsys):
    weight = torch.randn(300).bfloat16()
    with watched() as launches:
        packed, absmax = quantize_4bit(weight, dequantize.four_bit_map("nf4"), 64)
        again = dequantize.dequantize_4bit(packed, absmax, dequantize.four_bit_map("nf4"), 300, 64, torch.bfloat16)
    assert not launches
    assert capsys.readouterr().err.splitlines() == [
        "minift_kernels: quantize runs as plain torch: Triton's interpreter computes bfloat16 wrongly",
        "minift_kernels: dequantize runs as plain torch: it does not write torch.bfloat16 here",
    ]
    assert (again.float() - weight.float()).abs().max() <= 0.16 * weight.abs().max()           # half of NF4's widest step is 0.152; bf16 rounds


def test_several_devices_are_refused():
    with pytest.raises(ValueError, match=r"the tensors are on several devices \(cpu, meta\): move them to one"):
        runtime.can_launch("k", torch.ones(2), torch.ones(2, device="meta"))


def test_a_dtype_that_is_not_served_and_a_reason_of_the_kernels_own(capsys):
    assert not runtime.can_launch("k", torch.ones(2).double(), dtypes=(torch.float32,))
    assert not runtime.can_launch("k", torch.ones(2), unless="it is Sunday")
    assert capsys.readouterr().err.splitlines() == [
        "minift_kernels: k runs as plain torch: it does not serve torch.float64", "minift_kernels: k runs as plain torch: it is Sunday",
    ]  # fmt: skip


def test_require_says_what_was_found_and_what_was_wanted():
    runtime.require("k", x=(torch.ones(2, 2), torch.float32), y=(None, torch.float32))
    with pytest.raises(ValueError, match="k: x is torch.float64, wanted torch.float32"):
        runtime.require("k", x=(torch.ones(2).double(), torch.float32))
    with pytest.raises(ValueError, match=r"k: x of shape \(3, 2\) has strides \(1, 3\), wanted it in one piece: .contiguous\(\)"):
        runtime.require("k", x=(torch.ones(2, 3).T, torch.float32))


def test_quantize_refuses_nothing_and_odd_blocks():
    code_map = dequantize.four_bit_map("nf4")
    for weight, block in ((torch.ones(0), 64), (torch.ones(8).int(), 64), (torch.ones(8), 7)):
        with pytest.raises(ValueError, match=rf"quantize: found weight {weight.dtype} .* in blocks of {block}, wanted floating-point numbers"):
            quantize_4bit(weight, code_map, block)


def test_a_block_size_that_no_kernel_serves_is_computed_by_the_reference(capsys):
    packed, absmax = quantize_4bit(torch.tensor([4.0, 0.0, -2.0, 1.0]), dequantize.four_bit_map("nf4"), 2)
    assert absmax.tolist() == [4.0, 2.0] and packed.tolist() == [0xF7, 0x0C]                   # 1, 0 | -1, 0.5, whose nearest is 0.44 (code 12)
    assert dequantize.dequantize_4bit(packed, absmax, dequantize.four_bit_map("nf4"), 4, 2, torch.float32)[:3].tolist() == [4, 0, -2]
    assert "does not serve blocks of 2" in capsys.readouterr().err
