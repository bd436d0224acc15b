"""A crash, a kill or a full disk never costs what was there before."""

import os
import signal
import subprocess
import sys

import pytest

from minift.errors import InputError
from minift.files import new_folder, recover, refuse_if_used, write_text


def test_a_new_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "a").read_text() == "1"
    assert os.listdir(tmp_path / "deep") == ["new"]                         # nothing is left beside it


def test_an_error_while_writing_keeps_the_old_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    with pytest.raises(OSError, match="No space"), new_folder(tmp_path / "model", overwrite=True) as aside:
        (aside / "a").write_text("new")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "model" / "a").read_text() == "old" and os.listdir(tmp_path) == ["model"]


def test_a_kill_while_writing_keeps_the_old_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    program = (
        "import os, sys; from minift.files import new_folder\n"
        "with new_folder(sys.argv[1], overwrite=True) as aside:\n"
        "    (aside / 'a').write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "model" / "a").read_text() == "old"
    with new_folder(tmp_path / "model", overwrite=True) as aside:            # what the kill left aside is not in the way
        assert not list(aside.iterdir())
        (aside / "a").write_text("new")
    assert (tmp_path / "model" / "a").read_text() == "new"


def test_a_swap_cut_between_its_two_renames_is_put_back(tmp_path):
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "a").write_text("old")
    assert (recover(tmp_path / "model") / "a").read_text() == "old"


def test_a_folder_in_use_needs_overwrite(tmp_path):
    (tmp_path / "a").write_text("1")
    with pytest.raises(InputError, match="is in use.*--overwrite"):
        refuse_if_used(tmp_path, overwrite=False)
    refuse_if_used(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        refuse_if_used(tmp_path / "a", overwrite=True)


def test_a_text_file_is_replaced_or_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "report.md"
    write_text(file, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["report.md"]
