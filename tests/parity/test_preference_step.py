"""benchmarks/preference_step.py: our steps have the losses of a bare loop on transformers' models, and of trl's own trainers, while every batch is learned
from twice: the second time the losses are no longer those of the start."""

import pytest

from benchmarks import preference_step
from benchmarks.preference_step_case import QUICK, write_start
from tests.benchmarks.test_preference_step import taken


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_start(folder, QUICK)
    return folder


@pytest.mark.parametrize("case", preference_step.GIVEN)
def test_our_steps_have_the_losses_of_a_bare_loop_and_of_trl(start, case):
    ours = taken(f"ours.learn_{case}", start)
    for peer in ("loop", "trl"):
        assert taken(f"peers.{peer}_{case}", start) == pytest.approx(ours, abs=2e-6), peer
