"""Two processes in one run folder."""

import subprocess
import sys

import pytest

from minift.errors import InputError
from minift.train import alone as module
from minift.train.alone import alone

HOLDS = "import sys, time; from pathlib import Path; from minift.train.alone import alone\nwith alone(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"


def test_another_process_is_refused_until_the_first_has_ended_however_it_ends(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=f"another process is training in {tmp_path}: wait until it has ended, or name another folder with --out"), alone(tmp_path):
            pytest.fail("both were let in")
    finally:
        other.kill()
        other.wait()
    with alone(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    (tmp_path / "new").rmdir()
    with alone(tmp_path):
        assert list(tmp_path.iterdir()) == []                                  # and no file is left


def test_one_after_the_other_and_side_by_side_in_two_folders(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for _ in range(2):
        with alone(tmp_path / "a"), alone(tmp_path / "b"):
            pass


class Locks:
    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def flock(opened, how):
        raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("locks", [None, Locks], ids=["system", "disk"])
def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(module, "LOCKS", locks)
    with alone(tmp_path), alone(tmp_path):
        pass
