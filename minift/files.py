"""Writing files so that a crash, a kill or a full disk never costs the reader what was there before.

The rule is old and short: write aside, fsync, rename. A rename within one folder is atomic, so at every instant the name
leads either to the whole old content or to the whole new one. Proved in tests/test_files.py."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minift.errors import InputError


def write_text(path: str | Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8), or leave it exactly as it was."""
    with new_file(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it becomes `path` only when the block ends without an error, and then outlives a power cut too."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.writing")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` only when the block ends without an error.

    A folder cannot be renamed over a full one, so the old one steps aside for an instant: `recover` finishes a swap that
    was cut between the two renames. Raises InputError if `path` has content and `overwrite` is false."""
    path = Path(path)
    refuse_if_used(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in sorted(p for p in aside.rglob("*") if p.is_file()):
            _fsync(file)
        _fsync(aside)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        _fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover(path: str | Path) -> Path:
    """Put back the old folder if a swap was killed between its two renames; returns `path`."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.replace(old, path)
    return path


def refuse_if_used(path: str | Path, overwrite: bool) -> None:
    """Raise InputError if `path` is a file, a folder with content that `overwrite` does not give up, or where nothing can be written."""
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file, but a folder is to be written there: name another place")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(f"the folder {path} is in use: name another one, or pass --overwrite to replace it")
    home = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(dir=home).cleanup()
    except OSError as error:
        raise InputError(f"nothing can be written in {home} ({error.strerror}), so {path} cannot be made: name another place") from None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
