"""benchmarks/training_profile.py: every operation of a step belongs to one part, the parts add up to the step, and a side of ours is profiled as it trains."""

import multiprocessing

import pytest

from benchmarks.training_case import QUICK
from benchmarks.training_profile import KINDS, PARTS, bound, kind_of, lines, parts, traced, write_page
from tests.benchmarks.test_training import start  # noqa: F401


@pytest.mark.parametrize("name, kind", [
    ("aten::mm", "products"), ("aten::addmm_", "products"), ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
    ("aten::_log_softmax", "head and loss"), ("aten::exp_", "head and loss"), ("aten::_fused_adamw_", "optimizer"), ("aten::linalg_vector_norm", "optimizer"),
    ("aten::copy_", "copies"), ("aten::mul", "elementwise"), ("aten::silu_backward", "elementwise"), ("aten::addcmul_", "elementwise"), ("aten::empty", "other"),
    ("aten::expand", "other"), ("aten::embedding_dense_backward", "copies"),
])  # fmt: skip
def test_what_an_operation_counts_for(name, kind):
    assert kind_of(name) == kind and (kind in KINDS or kind == "other")


def test_the_parts_of_a_step_worked_by_hand():
    """100 ms in two units of work; what operations do not account for is between them, and so is the own time of a Python annotation."""
    found = parts({"aten::mm": 40.0, "aten::mul": 20.0, "aten::empty": 4.0, "ProductBackward": 6.0}, 100.0, 2)
    assert found == {"products": 20.0, "attention": 0, "head and loss": 0, "optimizer": 0, "copies": 0, "elementwise": 10.0, "other": 2.0, "between": 18.0, "step": 50.0}
    assert sum(found[part] for part in PARTS) == found["step"]
    assert bound(found | {"attention": 5.0}, {"step": 75.0}) == 3.0


def test_a_side_of_ours_is_profiled_and_the_page_shows_it(start, tmp_path):  # noqa: F811
    spawn = multiprocessing.get_context("spawn")
    found = traced(spawn, tmp_path / "log", "minift", start, QUICK, "lora", "fp32")
    assert sum(found[part] for part in PARTS) == pytest.approx(found["step"], abs=0.1) and found["products"] > 0 and found["attention"] > 0
    row = {"sides": {"minift": found, "HF Trainer": found | {"step": 2 * found["step"]}, "torchtune": {"absent": "not here"}}}
    table = lines({"lora fp32": row})
    assert len(table) == 4 and "| 2.00 |" in table[3]
    on = dict(cpu="a", threads=2, torch="1", python="3", commit="x", transformers="5", peft="1", trl="1")
    write_page(tmp_path / "page.md", {"machine": on, "rows": {"lora fp32": row}})
    assert table[3] in (tmp_path / "page.md").read_text() and (tmp_path / "page.png").stat().st_size > 5_000


def test_a_side_that_fails_is_said_to(tmp_path):
    with pytest.raises(RuntimeError, match="ended without a word"):
        traced(multiprocessing.get_context("spawn"), tmp_path / "log", "minift", tmp_path / "nothing", QUICK, "lora", "fp32")
