"""benchmarks/preference_step.py: both sides learn from the same tokens, turns are counted right, and the page says what was measured."""

import multiprocessing
import time

import pytest

from benchmarks import preference_step, turns
from benchmarks.preference_step_case import END, GROUPS, QUICK, preferences, prompts, text, write_start
from benchmarks.preference_step_report import line, write_page

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_start(folder, QUICK)
    return folder


class Ended(Exception):
    pass


class Three:
    """A gate that ends a side after three steps."""

    def __init__(self):
        self.losses = []

    def open(self):
        self.losses = []

    def tick(self, loss):
        self.losses.append(loss)
        if len(self.losses) == 3:
            raise Ended


def taken(target, folder, precision="fp32"):
    gate = Three()
    with pytest.raises(Ended):
        preference_step.run_side(gate, target, folder, QUICK, precision)
    return gate.losses


@pytest.mark.parametrize("case", preference_step.GIVEN)
def test_our_steps_have_the_losses_of_a_bare_loop_on_transformers_models(start, case):
    bare = taken(f"peers.loop_{case}", start)
    assert taken(f"ours.learn_{case}", start) == pytest.approx(bare, abs=1e-4)
    assert len(set(bare)) == 3                                              # other rows each step, and weights that moved


def test_a_reference_computed_once_gives_the_losses_of_one_run_in_every_step(start):
    assert taken("ours.learn_dpo_once", start) == pytest.approx(taken("ours.learn_dpo", start), abs=1e-5)


@pytest.mark.parametrize("case", list(GROUPS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_recipes_that_draw_answers_run(start, case, precision):
    assert all(abs(loss) < 10 for loss in taken(f"ours.learn_{case}", start, precision))


def test_rows_have_the_lengths_that_the_page_names_and_end_where_trainers_end_them():
    rows = preferences(QUICK)
    assert {(len(p), len(c), len(r)) for p, c, r in rows} == {(QUICK.prompt, QUICK.answer, QUICK.answer)} and len(rows) == QUICK.batches * QUICK.pairs
    assert all(c[-1] == r[-1] == END and END not in p + c[:-1] + r[:-1] for p, c, r in rows)
    assert len(prompts(QUICK, "rloo")) == QUICK.batches * GROUPS["rloo"][0]
    assert text([END, 7]) == "</s> w7"


def sleeper(gate, seconds):
    gate.open()
    for step in range(10**6):
        time.sleep(seconds)
        gate.tick(float(step))


def failing(gate):
    gate.open()
    raise ValueError("a step went wrong")


def test_sides_take_turns_and_a_ratio_is_of_one_round():
    sides = {"slow": turns.Side(SPAWN, sleeper, 0.04), "fast": turns.Side(SPAWN, sleeper, 0.01)}
    try:
        for side in sides.values():
            side.loaded()
            side.steps(1, timed=False)
        turns.turns(sides, rounds=3, steps=2)
        assert sides["slow"].losses == [0, 1, 2, 3, 4, 5, 6] and len(sides["slow"].turns) == 3
        ratio = turns.faster(sides["slow"], sides["fast"], "wall")
        assert 1.5 < ratio["least"] <= ratio["median"] <= ratio["most"]
        assert sides["slow"].summary()["ms"] >= 40                          # of one step, not of a turn
    finally:
        for side in sides.values():
            side.stop()


def test_the_error_of_a_side_reaches_the_one_who_asked():
    side = turns.Side(SPAWN, failing)
    side.loaded()
    with pytest.raises(RuntimeError, match="ValueError: a step went wrong"):
        side.steps(1)


def test_losses_that_differ_stop_the_row():
    assert preference_step.agreed({"a": [0.5, 0.7], "b": [0.5, 0.75]}, 0.1) == pytest.approx(0.05)
    with pytest.raises(RuntimeError, match="differ"):
        preference_step.agreed({"a": [0.5, 0.7], "b": [0.5, 0.75]}, 0.01)
    with pytest.raises(RuntimeError, match="differ"):
        preference_step.agreed({"a": [float("nan")], "b": [0.5]}, 0.01)


ROW = {
    "rounds": 3, "apart": 2e-6,
    "sides": {"trl": {"ms": 4000, "cpu_s": 7.5, "peak_mib": 5000, "added_mib": 4500}, "minift": {"ms": 1000, "cpu_s": 2.0, "peak_mib": 1500, "added_mib": 1100}},
    "faster": {"trl": {"wall": {"median": 4.0, "least": 3.9, "most": 4.2}, "cpu": {"median": 3.75, "least": 3.7, "most": 3.8}}},
}  # fmt: skip


def test_a_line_of_the_page():
    assert line("dpo fp32", ROW) == (
        "| dpo | fp32 | trl | 4,000 | 1,000 | **4.00** (3.90 to 4.20) | 3.2 / 4 | 3.75 (3.70 to 3.80) | 5,000 / 1,500 | 0.30 | 2e-06 |"
    )


def test_the_table_is_put_between_the_pages_marks_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- table -->\nold\n<!-- end of table -->\n\nWhat it means.\n")
    values = {"rows": {"dpo fp32": ROW}, "machine": {"cpu": "C", "threads": 2, "torch": "T", "transformers": "F", "trl": "L", "python": "P", "commit": "abc"}}
    for _ in range(2):
        write_page(page, values)
    written = page.read_text()
    assert written.startswith("# Speed\n\n<!-- table -->\n| step |") and written.endswith("<!-- end of table -->\n\nWhat it means.\n")
    assert line("dpo fp32", ROW) in written and "old" not in written and written.count("| dpo |") == 1
