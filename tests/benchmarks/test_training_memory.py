"""benchmarks/training_memory.py: the parts add up to the peak, what is alive is counted once, and a side of ours is weighed as it trains."""

import multiprocessing

import pytest
import torch
from torch._subclasses import FakeTensorMode

from benchmarks.training_case import QUICK
from benchmarks import training_memory as module
from benchmarks.training_memory import MIB, PARTS, STEPS, WARM, Weighed, alive, highest, lines, parts, write_page
from benchmarks.training_profile import shown, traced
from tests.benchmarks.test_training import start  # noqa: F401


def test_the_parts_of_a_peak_worked_by_hand():
    found = parts(peak=1000.0, loaded=300.0, weights=100 * MIB, border=300 * MIB, step=350 * MIB)
    assert found == {"libraries": 200, "weights": 100, "optimizer": 200, "step": 350, "rest": 150, "peak": 1000}
    assert sum(found[part] for part in PARTS) == found["peak"]


def test_the_most_that_is_held_on_the_way():
    assert highest([5, 3, -8, -4, 10, -1]) == 8 and highest([-3, 2]) == 0 == highest([])


def test_what_is_alive_is_counted_once():
    before = alive()
    with FakeTensorMode():
        torch.zeros(10**6, requires_grad=True).sum().backward()
        a_compilers = torch.zeros(10**6)
    assert alive() == before and a_compilers.shape
    weight = torch.zeros(1000, requires_grad=True)
    views = weight.detach()[::2], weight.detach()[5:]
    assert alive() == before + 4000 and len(views) == 2
    weight.grad = torch.ones(1000)
    assert alive() == before + 8000
    del weight, views
    assert alive() == before


class Answers:
    """A pipe that keeps what is sent."""

    def send(self, found):
        self.found = found


@pytest.mark.parametrize("freed_before", [False, True])
def test_gradients_count_for_the_step_once_whoever_frees_them(monkeypatch, freed_before):
    """A step of one matrix of 8 MiB: its double and its gradient are all that is made."""
    answers = Answers()
    monkeypatch.setattr(module.os, "_exit", lambda code: None)
    gate, weight = Weighed(answers), torch.zeros(2048, 1024, requires_grad=True)
    gate.open()
    for _ in range(WARM + STEPS):
        weight.grad = None
        (2 * weight).backward(torch.ones(1).expand(2048, 1024))
        if freed_before:
            weight.grad = None
        gate.tick(0.0)
    assert answers.found["step"] == pytest.approx(16, abs=1)


def test_a_side_of_ours_is_weighed_and_the_page_shows_it(start, tmp_path):  # noqa: F811
    found = traced(multiprocessing.get_context("spawn"), tmp_path / "log", "minift", start, QUICK, "full", "fp32", Weighed)
    assert sum(found[part] for part in PARTS) == pytest.approx(found["peak"], abs=3)
    shape = QUICK.shapes["15m"]
    weights = 4 * (shape.vocab * shape.width + shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.inner)) / MIB
    assert found["weights"] == pytest.approx(weights, abs=1) and found["optimizer"] == pytest.approx(2 * weights, abs=1) and weights - 1 <= found["step"] <= 20 * weights
    row = {"sides": {"minift": found | {"peak": 300, "rest": 60}, "HF Trainer": found | {"peak": 600}, "trl": {"absent": "not here"}}}
    table = lines({"full fp32": row})
    assert len(table) == 4 and "| 0.50 | 0.40 |" in table[3]
    on = dict(cpu="a", threads=2, torch="1", python="3", commit="x", transformers="5", peft="1", trl="1")
    write_page(tmp_path / "page.md", {"machine": on, "rows": {"full fp32": row}})
    assert table[3] in (tmp_path / "page.md").read_text() and (tmp_path / "page.png").stat().st_size > 5_000


def test_which_sides_are_shown():
    assert shown("trl, by length", "real", False) and not shown("trl, by length", "full", False)
    assert shown("torchtune", "full", False) and not shown("torchtune", "full", True) and not shown("torchtune", "full-110m", False) and shown("trl", "full", True)
