"""benchmarks/training.py: our steps have the losses of transformers' Trainer, trl's SFTTrainer and a bare loop, of litgpt and torchtune where they are installed,
every batch learned from twice; and a quick run of the command line stores rows that the page shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.training_case import QUICK, real_rows, write_start
from benchmarks.turns import Absent
from tests.benchmarks.test_training import taken

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_start(folder, QUICK)
    return folder


@pytest.mark.parametrize("case", ["full", "lora", "qlora", "full-v4096"])
def test_our_steps_have_the_losses_of_the_trainers_and_of_a_bare_loop(start, case):
    ours = taken("ours.learn", start, case).losses
    peers = {peer: taken(f"peers.{peer}", start, case).losses for peer in ("trainer", "trl", "loop")}
    assert ours[3] < ours[0] - 0.01                                          # it learns
    # trl keeps LoRA's matrices in bfloat16 beside a 4-bit base
    assert peers["trainer"] == pytest.approx(ours, abs=2e-5) and peers["loop"] == pytest.approx(ours, abs=2e-5)
    assert peers["trl"] == pytest.approx(ours, abs=5e-3 if case == "qlora" else 2e-5)


@pytest.mark.parametrize("case", ["full", "lora"])
@pytest.mark.parametrize("library", ["litgpt", "torchtune"])
def test_our_steps_have_the_losses_of_other_libraries(start, case, library):
    try:
        theirs = taken(f"others.{library}", start, case).losses
    except Absent as absent:
        pytest.skip(str(absent))
    assert theirs == pytest.approx(taken("ours.learn", start, case).losses, abs=2e-5)


def test_rows_as_they_come_have_the_losses_of_the_trainers(start):
    count = QUICK.real // QUICK.rows
    ours = taken("ours.padded", start, "real", count=count)
    for peer in ("trainer", "trl"):
        theirs = taken(f"peers.{peer}", start, "real", count=count)
        assert theirs.losses == pytest.approx(ours.losses, abs=2e-5) and theirs.work == pytest.approx(ours.work), peer
    assert sum(ours.work) == pytest.approx(sum(len(asked) + len(answer) for asked, answer in real_rows(start)) / 1000)


@pytest.mark.parametrize("way", ["trainer_grouped", "trl_grouped", "trl_bfd", "trl_wrapped", "trl_padding_free", "trainer_unasked", "trl_unasked"])
def test_every_other_way_to_batch_real_rows_trains_on_real_tokens(start, way):
    gate = taken(f"peers.{way}", start, "real", count=2)
    assert all(7 < loss < 11 for loss in gate.losses) and all(0 < work * 1000 <= 8 * QUICK.longest for work in gate.work)


def test_a_quick_run_stores_rows_that_the_page_shows(tmp_path):
    options = ["--quick", "--case", "lora", "--precision", "fp32", "--sides", "bare loop", "minift", "--json", tmp_path / "it.json", "--markdown", tmp_path / "it.md",
               "--log", tmp_path / "log"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "benchmarks.training", *map(str, options)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "it.json").read_text())["rows"]["lora fp32"]
    assert row["apart"] < 1e-4 and set(row["sides"]) == {"bare loop", "minift"} and "| lora | fp32 | bare loop |" in (tmp_path / "it.md").read_text()
