"""The folder of one run: its resolved settings, metrics, checkpoints and results.

    config.json      every setting the run used, defaults included, and the versions of Python, torch and minift
    metrics.jsonl    one line per optimizer step and per evaluation
    checkpoints/     last.pt (to go on from) and best.pt

Proved in tests/train/test_run.py."""

import dataclasses
import importlib.util
import json
import platform
import shutil
from pathlib import Path

import torch

from minift.errors import InputError
from minift.files import refuse_if_used, write_text

FREE_TO_CHANGE = {"resume", "overwrite", "epochs", "max_steps", "patience", "save_every", "tensorboard", "profile", "methods",
                  "judge_timeout", "judge_retries", "judge_workers", "judge_failures", "judge_key"}    # fmt: skip
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
    if resume:
        _same_settings(folder, verb, settings)
    else:
        refuse_if_used(folder, overwrite)
        if folder.is_dir():
            _remove_run(folder, config)
        folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    write_text(folder / "config.json", json.dumps({"verb": verb, "settings": settings, "versions": versions}, indent=2) + "\n")
    return folder


def _remove_run(folder: Path, config) -> None:
    """Empty an old run's folder; a folder with content that is no run's, a checkpoint's for one, is never deleted. Nor is a run
    that the new one starts from."""
    named = [*(getattr(config, name, None) for name in ("model", "tokenizer")), *getattr(config, "data", ()), *getattr(config, "eval_data", ())]
    for path in filter(None, named):
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path} lies in {folder}, which would be emptied first: name another folder with --out")
    if any(folder.iterdir()) and verb_of(folder) is None:
        raise InputError(f"{folder} has content but no config.json of a run: --overwrite replaces runs only; name another folder")
    shutil.rmtree(folder)


def verb_of(folder: str | Path) -> str | None:
    """The verb whose run this folder holds; None if it holds none (a checkpoint's config.json names no verb)."""
    try:
        content = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("verb") if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None


def _same_settings(folder: Path, verb: str, settings: dict) -> None:
    before = verb_of(folder)
    if before is None:
        raise InputError(f"{folder} holds no run to go on with (no readable config.json): start without --resume")
    if before != verb:
        raise InputError(f"{folder} is a run of `{before}`, not of `{verb}`: name another folder")
    old = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    moved = lambda name: all(str(value).startswith(("http://", "https://")) for value in (settings[name], old.get(name)))    # a server, at another address
    differing = [name for name in settings if name not in FREE_TO_CHANGE and settings[name] != old.get(name) and not moved(name)]
    if differing:
        changes = ", ".join(f"{name} was {old.get(name)!r}, is {settings[name]!r}" for name in differing)
        raise InputError(f"a resumed run keeps its settings: {changes}")
