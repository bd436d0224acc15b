"""The folder of one run: its resolved settings, metrics, checkpoints and results.

    config.json      every setting the run used, defaults included, where they were told, the versions of Python and torch, and the arithmetic "auto" chose
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
from minift.train.alone import alone
from minift.train.settings import Told, differing

CONFIG = "config.json"
FREE_TO_CHANGE = {"resume", "overwrite", "epochs", "max_steps", "patience", "save_every", "keep_last", "keep_best", "tensorboard",
                  "profile", "methods", "judge_timeout", "judge_retries", "judge_workers", "judge_failures", "judge_key"}    # fmt: skip
"""Settings that a resumed run may set anew: none of them changes what was done so far."""


def open_run(folder: str | Path, verb: str, config, overwrite: bool = False, resume: bool = False) -> Path:
    """Make the run folder and write its config.json; or, to resume, check that the settings are those of the first start.

    Whatever can be refused before a run should have been refused by now: this is where an earlier run is given up."""
    folder = Path(folder)
    now = Told(_settings(dataclasses.asdict(config)), os.getcwd())
    if now.settings.get("tensorboard") and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard, or leave the option out")
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite gives it up: choose one of them")
    device = torch.device(getattr(config, "device", "cpu")).type
    if resume:
        _same_settings(folder, verb, now, config)
        with alone(folder):
            recall_arithmetic(folder, device)
    else:
        for left in folder.glob(f".{CONFIG}.writing"):                         # by a run that was killed before it had a config.json
            left.unlink()
        refuse_if_used(folder, overwrite)
        if folder.is_dir():
            with alone(folder):
                _remove_run(folder, config)
        folder.mkdir(parents=True, exist_ok=True)
    content = {"verb": verb, "settings": now.settings, "cwd": now.cwd, "versions": {"python": platform.python_version(), "torch": torch.__version__}}
    if now.settings.get("precision") == "auto":
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
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == CONFIG):             # that last: killed before, it is still known for a run
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def recall_arithmetic(folder: str | Path, device: torch.device | str = "cpu") -> None:
    """What "auto" chose at the first start of the run in the folder, if there was one, holds from now on."""
    if verb_of(folder) is not None and (arithmetic := _content(Path(folder)).get("arithmetic")) in ("fp32", "bf16"):
        precision.recall(torch.device(device).type, arithmetic)


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


def _same_settings(folder: Path, verb: str, now: Told, config) -> None:
    """Raises InputError if the run in the folder may not go on with these settings."""
    kind = verb_of(folder)
    if kind is None:
        raise InputError(f"{folder} holds no run to go on with (no readable config.json): start without --resume")
    if kind != verb:
        raise InputError(f"{folder} is a run of `{kind}`, not of `{verb}`: name another folder")
    content = _content(folder)
    old = content["settings"]
    defaults = _settings({field.name: _default(field) for field in dataclasses.fields(config)})
    names = [name for name in differing(Told(old, content.get("cwd", now.cwd)), now, defaults) if name not in FREE_TO_CHANGE]
    if names:
        changes = ", ".join(f"{name} was {old.get(name, defaults.get(name))!r}, is {now.settings[name]!r}" for name in names)
        raise InputError(f"a resumed run keeps its settings: {changes}")


def _default(field: dataclasses.Field):
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return None if made is dataclasses.MISSING else made


def _settings(values: dict) -> dict:
    """As they come back from config.json."""
    return json.loads(json.dumps(values, default=str))


def _content(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
