"""One process at a time in a run's folder: two that train there would mix their checkpoints.

A lock on the folder itself (flock), which the system takes back when the process ends, however it ends: no file is left that would have to be deleted by hand.
Proved in tests/train/test_alone.py. Left out: Windows and file systems without such locks, where nothing is refused; several machines on one disk."""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from minift.errors import InputError

LOCKS = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises InputError if another process, or another block of this one, is in the folder, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if LOCKS is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        if not _locked(opened):
            raise InputError(f"another process is training in {folder}: wait until it has ended, or name another folder with --out")
        yield
    finally:
        os.close(opened)


def _locked(opened: int) -> bool:
    try:
        LOCKS.flock(opened, LOCKS.LOCK_EX | LOCKS.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True                                                            # no locks on this file system
    return True
