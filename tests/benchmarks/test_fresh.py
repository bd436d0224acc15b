"""Fresh processes take turns, the first round is not counted, and one that fails stops the row."""

import sys

import pytest

from benchmarks import fresh

PYTHON = [sys.executable, "-S", "-c"]


def test_every_round_runs_each_command_once_in_turned_order_and_the_first_is_not_counted(tmp_path):
    note = lambda name: [*PYTHON, f"open({str(tmp_path / 'order')!r}, 'a').write({name!r}); print('said')"]
    found = fresh.in_turn({"a": note("a"), "b": note("b")}, 2, tmp_path / "log")
    assert (tmp_path / "order").read_text() == "baabba"
    assert [len(side.turns) for side in found.values()] == [2, 2] and (tmp_path / "log").read_text() == "said\n" * 6


def test_time_and_memory_are_those_of_the_process(tmp_path):
    slow = fresh.once("slow", [*PYTHON, "import time; time.sleep(0.3)"], tmp_path / "log")
    busy = fresh.once("busy", [*PYTHON, "import time\nwhile time.process_time() < 0.3: pass"], tmp_path / "log")
    large = fresh.once("large", [*PYTHON, "x = b'1' * 2**26"], tmp_path / "log")
    assert slow["wall"] >= 0.3 > 0.25 > slow["cpu"] and busy["cpu"] >= 0.3
    own = [b"1" * 2**20 for _ in range(100)]                                # what this process holds is none of theirs
    assert large["peak"] > slow["peak"] + 50 and slow["peak"] < 60 < len(own)     # MiB


def test_a_summary_is_of_the_middle_turn():
    side = fresh.Fresh()
    side.turns = [{"wall": w, "cpu": c, "peak": p} for w, c, p in ((0.5, 0.2, 30.0), (0.1, 0.9, 31.0), (0.2, 0.3, 40.4))]
    assert side.summary() == {"ms": 200, "cpu_s": 0.3, "peak_mib": 31}


def test_a_process_that_fails_stops_the_row(tmp_path):
    with pytest.raises(RuntimeError, match="it: the process ended with code 3"):
        fresh.in_turn({"it": [*PYTHON, "raise SystemExit(3)"]}, 1, tmp_path / "log")
