"""The harness of the benchmarks beside other libraries: rows in order, sides that are absent, results that differ, and what is stored."""

import json
import multiprocessing
import sys
from types import SimpleNamespace

import pytest

from benchmarks import harness, turns
from benchmarks.harness import Bench, Run, agreed, beside, gains
from benchmarks.turns import made_on

SPAWN = multiprocessing.get_context("spawn")


def side(gate, target, start):
    """A side for beside: it counts up from `start`, twice the work a step if it is called double."""
    if target == "absent":
        raise turns.Absent("no such library")
    gate.open()
    for step in range(10**6):
        gate.tick(start + step, 2.0 if target == "double" else 1.0)


def run(tmp_path, **own):
    return Run(**{"spawn": SPAWN, "folder": tmp_path, "sizes": None, "rounds": 2, "log": tmp_path / "log", **own})


def test_a_row_holds_every_side_that_is_there_and_why_another_is_not(tmp_path):
    checked = []
    row = beside(run(tmp_path), side, {"theirs": "double", "other": "absent", "minift": "single"}, (5.0,), 3, lambda losses: checked.append(losses) or 0.25)
    assert checked == [{"theirs": [5, 6, 7, 8], "minift": [5, 6, 7, 8]}]          # after the step that is not timed and one turn
    assert row["absent"] == {"other": "no such library"} and row["apart"] == 0.25 and row["rounds"] == 2
    assert set(row["sides"]) == {"theirs", "minift"} and set(row["faster"]) == {"theirs"} and set(row["faster"]["theirs"]) == {"wall", "cpu"}


def test_results_that_differ_stop_the_row_before_it_is_timed_further(tmp_path):
    with pytest.raises(RuntimeError, match="differ"):
        beside(run(tmp_path), side, {"a": "single", "minift": "single"}, (1.0,), 1, lambda losses: agreed({"a": [1.0], "b": [2.0]}, 0.5))


def test_only_the_sides_that_are_asked_for_run(tmp_path):
    row = beside(run(tmp_path, only=["a"], rounds=1), side, {"a": "single", "minift": "single"}, (1.0,), 1, lambda losses: pytest.fail("nothing to compare"))
    assert set(row["sides"]) == {"a"} and row["faster"] == {} and "apart" not in row


def test_a_peer_is_compared_with_each_of_ours_that_is_named():
    timed = lambda *walls: SimpleNamespace(turns=[{"wall": wall, "cpu": 2 * wall} for wall in walls])
    sides = {"theirs": timed(6.0, 9.0), "minift": timed(2.0, 3.0), "minift, int8": timed(1.0, 1.0)}
    found = gains(sides, lambda name: ["minift", "minift, int8", "minift, not run"])
    assert {name: faster["wall"]["median"] for name, faster in found.items()} == {"theirs": 3.0, "theirs / minift, int8": 7.5}


def test_work_is_what_a_turn_is_divided_by():
    sent = []
    gate = turns.Gate(SimpleNamespace(send=sent.append, recv=lambda: 2))
    gate._wait()
    gate.start -= 6.0                                                       # as if six seconds had passed
    gate.tick(0.5, 1.5)
    gate.tick(0.25, 2.5)
    assert sent[0]["wall"] == pytest.approx(1.5, abs=0.1) and sent[0]["losses"] == [0.5, 0.25] and gate.work == 0


def test_losses_that_are_no_numbers_never_agree():
    assert agreed({"a": [0.5, 0.7], "b": [0.5, 0.75]}, 0.1) == pytest.approx(0.05)
    for first, second in ((0.5, float("nan")), (float("nan"), 0.5)):
        with pytest.raises(RuntimeError, match="differ"):
            agreed({"a": [0.1, first], "b": [0.1, second]}, 1.0)


def test_a_side_is_a_function_of_a_module_of_its_benchmark(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.some_peers", SimpleNamespace(step=lambda gate, *rest: (gate, rest)))
    called = []
    monkeypatch.setattr(sys.modules["benchmarks.some_peers"], "step", lambda gate, *rest: called.append((gate, rest)))
    harness.run_side("some", "gate", "peers.step", 1, 2)
    assert called == [("gate", (1, 2))]


def write_start(folder, sizes):
    (folder / "start").write_text(str(sizes))


def compare(run, case, precision):
    if case == "broken":
        raise RuntimeError("the losses differ")
    return {"read": (run.folder / "start").read_text(), "rounds": run.rounds}


BENCH = Bench("it", "Some benchmark.\n\nMore.", ["a", "broken", "b"], ["fp32", "bf16"], compare, lambda key, row: f"{key}: {row['read']}",
              lambda page, values: page.write_text(str(list(values["rows"]))), write_start, "full", "quick", ("numpy",), "it",
              measured=lambda case, precision: (case, precision) != ("b", "bf16"))  # fmt: skip


def test_rows_come_precision_by_precision_or_case_by_case_without_those_that_are_not_measured():
    assert BENCH.keys(["a", "b"], ["fp32", "bf16"]) == [("a", "fp32"), ("b", "fp32"), ("a", "bf16")]
    from dataclasses import replace

    assert replace(BENCH, by_case=True).keys(["a", "b"], ["fp32", "bf16"]) == [("a", "fp32"), ("a", "bf16"), ("b", "fp32")]


def test_a_row_is_stored_when_it_is_measured_a_failed_one_is_said_and_missing_ones_are_added(tmp_path, capsys, monkeypatch):
    stored, page = tmp_path / "it.json", tmp_path / "it.md"

    def command(*options):
        monkeypatch.setattr(sys, "argv", ["it", "--json", str(stored), "--markdown", str(page), "--log", str(tmp_path / "log"), *options])
        harness.main(BENCH)
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match="some rows could not be measured"):
        command("--quick", "--precision", "fp32")
    assert "broken fp32: the losses differ (more in" in capsys.readouterr().out and page.read_text() == "['a fp32', 'b fp32']"
    first = json.loads(stored.read_text())
    on = {name: first["machine"][name] for name in ("cpu", "commit")}
    assert first["rows"]["a fp32"] == {"read": "quick", "rounds": 1, "on": on} and first["machine"]["numpy"]
    del first["rows"]["b fp32"]["on"]                                       # as files of before have it
    stored.write_text(json.dumps(first | {"machine": {"cpu": "theirs", "commit": "old"}}))
    assert command("--case", "a", "--missing", "--rounds", "7") == "a bf16: full\n"
    after = json.loads(stored.read_text())["rows"]
    assert after["a fp32"]["read"] == "quick" and after["a bf16"] == {"read": "full", "rounds": 7, "on": on} and after["b fp32"]["on"] == {"cpu": "theirs", "commit": "old"}
    assert command("--report") == ""


def test_nothing_is_stored_of_a_quick_run_or_of_some_sides(monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "measure", lambda bench, chosen, stored: seen.append(stored) or True)
    for options in (["--quick"], ["--sides", "a"]):
        monkeypatch.setattr(sys, "argv", ["it", *options])
        harness.main(BENCH)
    assert seen == [None, None]


def test_a_page_says_which_rows_were_measured_elsewhere_or_with_another_commit():
    machine = {"cpu": "C", "threads": 2, "torch": "T", "numpy": "N", "python": "P", "commit": "new"}
    rows = {"a fp32": {"on": {"cpu": "C", "commit": "new"}}, "a bf16": {"on": {"cpu": "C", "commit": "old"}}, "b fp32": {"on": {"cpu": "D", "commit": "old"}}, "c fp32": {}}
    assert made_on({"machine": machine, "rows": rows}, {"numpy": " (ours)"}) == (
        "C, 2 threads, torch T, numpy N (ours), Python P, commit new; a bf16: commit old; b fp32: D, commit old."
    )
