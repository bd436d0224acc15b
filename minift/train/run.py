"""The folder of one run: its resolved settings, metrics, checkpoints and results.

    config.json      every setting the run used, defaults included, the versions of Python and torch, and the arithmetic "auto" chose
    metrics.jsonl    one line per optimizer step and per evaluation
    checkpoints/     to go on from, and the best one (kept.py)

Proved in tests/train/test_run.py."""

import dataclasses
import importlib.util
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from minift.errors import InputError
from minift.files import refuse_if_used, write_text
from minift.train import precision

CONFIG = "config.json"
FREE_TO_CHANGE = {"resume", "overwrite", "epochs", "max_steps", "patience", "save_every", "keep_last", "keep_best", "tensorboard",
                  "profile", "methods", "judge_timeout", "judge_retries", "judge_workers", "judge_failures", "judge_key"}    # fmt: skip
"""Settings that a resumed run may set anew: none of them changes what was done so far."""


def open_run(folder: str | Path, verb: str, config, overwrite: bool = False, resume: bool = False) -> Path:
    """Make the run folder and write its config.json; or, to resume, check that the settings are those of the first start.

    Whatever can be refused before a run should have been refused by now: this is where an earlier run is given up."""
    folder = Path(folder)
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    if settings.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard, or leave the option out")
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite gives it up: choose one of them")
    device = torch.device(getattr(config, "device", "cpu")).type
    if resume:
        before = _same_settings(folder, verb, settings)
        if before.get("arithmetic") in ("fp32", "bf16"):
            precision.recall(device, before["arithmetic"])
    else:
        for left in folder.glob(f".{CONFIG}.writing"):                         # by a run that was killed before it had a config.json
            left.unlink()
        refuse_if_used(folder, overwrite)
        if folder.is_dir():
            _remove_run(folder, config)
        folder.mkdir(parents=True, exist_ok=True)
    content: dict = {"verb": verb, "settings": settings, "versions": {"python": platform.python_version(), "torch": torch.__version__}}
    if settings.get("precision") == "auto":
        content["arithmetic"] = precision.chosen("auto", device)
    write_text(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    return folder


def _remove_run(folder: Path, config) -> None:
    """Empty an old run's folder; a folder with content that is no run's, a checkpoint's for one, is never deleted. Nor is a run
    that the new one starts from, whichever option names something in it."""
    for field in dataclasses.fields(config):
        inside = None if field.name == "out" else next((path for path in _paths(getattr(config, field.name)) if _within(path, folder)), None)
        if inside is not None:
            raise InputError(f"{inside} (--{field.name.replace('_', '-')}) lies in {folder}, which would be emptied first: name another folder with --out")
    if any(folder.iterdir()) and verb_of(folder) is None:
        raise InputError(f"{folder} has content but no config.json of a run: --overwrite replaces runs only; name another folder")
    shutil.rmtree(folder)


def _paths(value) -> Iterator[str]:
    """Whatever in an option's value may be a path: itself, its parts ("one,two", "file.py:function", "judge:folder"), or those of what it holds."""
    if isinstance(value, (str, Path)):
        yield from dict.fromkeys(part.strip() for part in (str(value), *re.split("[,:]", str(value))) if part.strip())
    elif isinstance(value, Mapping):
        yield from _paths([*value.keys(), *value.values()])
    elif isinstance(value, Iterable):
        for one in value:
            yield from _paths(one)


def _within(path: str, folder: Path) -> bool:
    """Is it in the folder, or a pattern for files there? A word that is no path is not, even if a path could be spelled so."""
    try:
        named = Path(path).resolve()
        return named.is_relative_to(folder.resolve()) and (named.exists() or any(sign in path for sign in "*?["))
    except (OSError, ValueError):                                              # longer than a path may be
        return False


def verb_of(folder: str | Path) -> str | None:
    """The verb whose run this folder holds; None if it holds none (a checkpoint's config.json names no verb)."""
    try:
        content = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("verb") if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None


def _same(before, now, places: tuple) -> bool:
    """Are two values of an option the same? Also if they are a server at two addresses, or a path that was moved together with the run's folder, or is told from elsewhere.

    places: of that folder, before and now."""
    if before == now:
        return True
    if isinstance(before, str) and isinstance(now, str):
        servers = all(value.startswith(("http://", "https://")) for value in (before, now))
        return servers or all((before, now, *places)) and os.path.relpath(before, places[0]) == os.path.relpath(now, places[1])
    if isinstance(before, dict) and isinstance(now, dict):
        return _same(list(before.values()), list(now.values()), places) and _same(list(before), list(now), places)
    both = isinstance(before, list) and isinstance(now, list)
    return both and len(before) == len(now) and all(_same(one, other, places) for one, other in zip(before, now))


def _same_settings(folder: Path, verb: str, settings: dict) -> dict:
    """The content of the first start's config.json, if this one may go on with it."""
    before = verb_of(folder)
    if before is None:
        raise InputError(f"{folder} holds no run to go on with (no readable config.json): start without --resume")
    if before != verb:
        raise InputError(f"{folder} is a run of `{before}`, not of `{verb}`: name another folder")
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    old = content["settings"]
    places = old.get("out"), settings.get("out")
    differing = [name for name in settings if name not in FREE_TO_CHANGE and not _same(old.get(name), settings[name], places)]
    if differing:
        changes = ", ".join(f"{name} was {old.get(name)!r}, is {settings[name]!r}" for name in differing)
        raise InputError(f"a resumed run keeps its settings: {changes}")
    return content
