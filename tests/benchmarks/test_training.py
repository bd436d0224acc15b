"""benchmarks/training.py: our sides train on the rows they are given, all ways to batch real rows hold the same tokens, and the page says what was measured.
What takes the other libraries is in tests/parity/test_training.py."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness, training, training_ours
from benchmarks.training_case import CASES, END, QUICK, exact_rows, real_rows, write_real
from benchmarks.training_report import AIMS, ORDER, aims, best_mode, line, verdict, write_page
from minift import peft
from minift.models.config import ModelConfig
from minift.models.folder import read_model, write_model
from minift.models.transformer import Transformer


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What write_start writes, without transformers."""
    folder = tmp_path_factory.mktemp("start")
    for name, shape in QUICK.shapes.items():
        torch.manual_seed(0)
        config = ModelConfig(vocab_size=shape.vocab, hidden_size=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.heads,
                             head_dim=shape.width // shape.heads, mlp_size=shape.inner, max_positions=64, tie_embeddings=True)  # fmt: skip
        write_model(Transformer(config), folder / name / "base")
        model = read_model(folder / name / "base")
        peft.attach(model, peft.LoRA(rank=8, alpha=16))
        peft.save(model, folder / name / "lora")
    (folder / "rows.json").write_text(json.dumps(write_real(QUICK)))
    return folder


class Ended(Exception):
    pass


class Some:
    """A gate that ends a side after so many steps."""

    def __init__(self, count):
        self.count, self.losses, self.work = count, [], []

    def open(self):
        self.losses, self.work = [], []

    def tick(self, loss, work=1.0):
        self.losses.append(loss)
        self.work.append(work)
        if len(self.losses) == self.count:
            raise Ended


def taken(target, folder, case, precision="fp32", count=2 * QUICK.batches):
    gate = Some(count)
    with pytest.raises(Ended):
        harness.run_side("training", gate, target, folder, QUICK, case, precision)
    return gate


@pytest.mark.parametrize("case", [case for case in CASES if not CASES[case].real])
def test_our_first_loss_is_that_of_the_rows_and_every_batch_is_learned_from(start, case):
    gate = taken("ours.learn", start, case)
    if CASES[case].method == "full":
        model, ids = read_model(start / CASES[case].shape / "base"), exact_rows(QUICK, case)[0]
        with torch.no_grad():
            mean = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert gate.losses[0] == pytest.approx(mean.item(), abs=1e-5)
    assert all(again < once for once, again in zip(gate.losses[:3], gate.losses[3:])) and set(gate.work) == {1.0}


def test_a_step_in_bf16_is_near_that_in_fp32(start):
    losses = {precision: taken("ours.learn", start, "full", precision, 1).losses[0] for precision in ("fp32", "bf16")}
    assert 0 < abs(losses["fp32"] - losses["bf16"]) < training.AGREE["bf16"]


@pytest.mark.parametrize("way", ["padded", "bucketed", "packed", "unasked"])
def test_every_way_to_batch_real_rows_counts_each_of_their_tokens_once(start, way, monkeypatch):
    rows, batches = real_rows(start), []
    monkeypatch.setattr(training_ours, "train", lambda gate, folder, case, config, made, work: batches.extend((b, work(b)) for b in made(0)))
    getattr(training_ours, way)(None, start, QUICK, "real", "fp32")
    assert sum(work for _, work in batches) == pytest.approx(sum(len(asked) + len(answer) for asked, answer in rows) / 1000)
    assert sum(batch.targets for batch, _ in batches) == sum(len(answer) for _, answer in rows)


def test_real_rows_fit_and_hold_no_token_that_is_a_pad():
    rows = write_real(QUICK)
    assert len(rows) == QUICK.real and rows == write_real(QUICK)
    assert all(asked and answer and 0 not in asked + answer and len(asked) + len(answer) <= QUICK.longest for asked, answer in rows)
    whole = [answer for asked, answer in rows if len(asked) + len(answer) < QUICK.longest]
    assert whole and all(answer[-1] == END for answer in whole)


def test_every_row_of_the_command_line_is_in_the_page_and_what_was_wanted_is_of_a_row():
    keys = [f"{case} {precision}" for case, precision in training.BENCH.keys(list(CASES), training.BENCH.precisions)]
    assert set(keys) <= set(ORDER) and set(AIMS) <= set(keys)
    assert "defaults auto" in keys and "defaults fp32" not in keys and "start bf16" not in keys


def test_losses_that_differ_stop_a_row_but_only_of_sides_with_the_same_batches():
    assert training.apart({"HF Trainer": [10.0], "minift": [10.00005]}, "full", "fp32") == pytest.approx(5e-5)
    with pytest.raises(RuntimeError, match="differ"):
        training.apart({"HF Trainer": [10.0], "minift": [10.001]}, "full", "fp32")
    assert training.apart({"HF Trainer": [10.0], "minift, as they come": [10.0], "minift": [9.0], "trl, packed": [8.0]}, "real", "fp32") == 0
    assert training.apart({"HF Trainer": [10.0], "minift": [10.0], "trl": [10.01]}, "qlora", "fp32") == pytest.approx(0.01)
    with pytest.raises(RuntimeError, match="differ"):
        training.apart({"HF Trainer": [10.0], "minift": [10.01], "trl": [10.01]}, "qlora", "fp32")


def test_the_sides_that_must_agree_are_sides():
    given, real = training.SAME_ROWS
    assert set(given) == set(training.LIBRARIES) and set(real) <= set(training.SIDES["real"])


SIDE = {"ms": 3000, "cpu_s": 6.0, "peak_mib": 2000, "added_mib": 1500}
ROW = {
    "rounds": 5, "apart": 2e-6, "absent": {"litgpt": "no litgpt"},
    "sides": {"HF Trainer": SIDE, "trl": {**SIDE, "ms": 5000, "peak_mib": 4000}, "minift": {"ms": 2000, "cpu_s": 4.0, "peak_mib": 1000, "added_mib": 600}},
    "faster": {
        "HF Trainer": {"wall": {"median": 1.5, "least": 1.4, "most": 1.6}, "cpu": {"median": 1.5, "least": 1.2, "most": 1.7}},
        "trl": {"wall": {"median": 2.5, "least": 2.4, "most": 2.6}, "cpu": {"median": 2.25, "least": 2.2, "most": 2.3}},
    },
}  # fmt: skip


def test_a_line_of_the_page():
    assert line("full fp32", ROW).splitlines() == [
        "| full | fp32 | HF Trainer | 3,000 | 2,000 | **1.50** (1.20 to 1.70) | 1.50 (1.40 to 1.60) | 2,000 / 1,000 | 0.50 | 2e-06 |",
        "| full | fp32 | trl | 5,000 | 2,000 | **2.25** (2.20 to 2.30) | 2.50 (2.40 to 2.60) | 4,000 / 1,000 | 0.25 | 2e-06 |",
        "| full | fp32 | litgpt | no litgpt | | | | | | |",
    ]


def test_what_was_wanted_is_met_or_missed():
    assert aims({"full fp32": ROW}) == [
        "| full | fp32 | HF Trainer | 1.25 / 1.45 | 1.50 (1.20 to 1.70) | met, as hoped | 0.6 | 0.50 | met |",
        "| full | fp32 | trl | 2.30 / 2.70 | 2.25 (2.20 to 2.30) | **missed** | 0.35 | 0.25 | met |",
    ]
    found = {"median": 1.3, "least": 1.2, "most": 1.5}
    assert verdict(found, 1.2, 1.4) == "met" and verdict(found, 1.25, None) == "met, not in every round" and verdict(found, 1.31, None) == "**missed**"


def test_trls_best_mode_is_the_one_that_takes_the_least():
    faster = lambda ratio: {"cpu": {"median": ratio, "least": ratio, "most": ratio}}
    assert best_mode({"faster": {"HF Trainer": faster(1.0), "trl": faster(5.0), "trl, packed": faster(3.0)}}) == "trl, packed"
    assert best_mode({"faster": {"HF Trainer": faster(1.0)}}) is None


def test_the_page_and_the_picture_are_made_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- table -->\nold\n<!-- end of table -->\n\nWhat it means.\n")
    machine = {"cpu": "C", "threads": 2, "python": "P", "commit": "abc", **dict.fromkeys(("torch", "transformers", "peft", "trl", "bitsandbytes"), "V")}
    for _ in range(2):
        write_page(page, {"rows": {"full fp32": ROW, "start fp32": ROW}, "machine": machine})
    written = page.read_text()
    assert written.startswith("# Speed\n\n<!-- table -->\n![") and written.endswith("<!-- end of table -->\n\nWhat it means.\n") and "old" not in written
    assert line("full fp32", ROW) in written and "| start | fp32 | trl | 2.22 | 2.25 (2.20 to 2.30) | met, not in every round | | | |" in written
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_quick_run_stores_a_row_of_ours(start, tmp_path):
    """In this process, with the folder that was written here; the command line itself is tests/parity/test_training.py's."""
    import multiprocessing

    run = harness.Run(multiprocessing.get_context("spawn"), start, QUICK, 1, tmp_path / "log", ["minift"])
    row = training.compare(run, "lora", "fp32")
    assert set(row["sides"]) == {"minift"} and line("lora fp32", row).startswith("| lora | fp32 | | | ")
    row = training.compare(run, "start", "fp32")
    assert row["sides"]["minift"]["ms"] > 0 and Path(sys.executable).exists()
