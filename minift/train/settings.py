"""Are these the settings that a run was started with? Asked when it goes on, told perhaps from another folder, after a move.

    what was told, and what is                                                           the same?
    the same text                                                                        yes, unless it is a path that leads elsewhere from here
    a path to the same place, told otherwise: an absolute one, "./m" for "m"             yes
    a path that lies to the run's folder as it did: both were moved together             yes
    a judge behind http, at another address                                              yes
    anything else                                                                        no

A text may hold several paths, or a kind and a path ("judge:folder"): it is compared by the parts between commas and colons. Only what leads to something on this disk is a path.
Proved in tests/train/test_settings.py. Left out: whether a file at the same place has the same content (fingerprint.py sees that of the training data)."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

SERVED = {"judge"}
"""Options that may name a server."""


class Told(NamedTuple):
    """Settings as config.json holds them, and where they were told."""

    settings: Mapping[str, Any]
    cwd: str

    @property
    def out(self) -> str:
        """The run's folder."""
        return self.place(self.settings.get("out", ""))

    def place(self, path: str) -> str:
        return os.path.realpath(os.path.join(self.cwd, path))


def differing(before: Told, now: Told, defaults: Mapping[str, Any]) -> list[str]:
    """Names of now's settings that are others than before; defaults: of options that an earlier version did not have."""
    old = {name: before.settings.get(name, defaults.get(name)) for name in now.settings}
    return [name for name, value in now.settings.items() if not (_same(old[name], value, before, now) or name in SERVED and _servers(old[name], value))]


def _servers(*values: Any) -> bool:
    return all(str(value).startswith(("http://", "https://")) for value in values)


def _same(old: Any, new: Any, before: Told, now: Told) -> bool:
    if isinstance(old, str) and isinstance(new, str):
        olds, news = ([old], [new]) if _is_path(new, now) else (re.split("([,:])", text) for text in (old, new))
        return len(olds) == len(news) and all(_same_part(*pair, before, now) for pair in zip(olds, news))
    if isinstance(old, dict) and isinstance(new, dict):                        # in any order, or, where keys were moved, in the same one
        flat = lambda pairs: [value for pair in pairs for value in pair]
        return any(_same(flat(order(old.items())), flat(order(new.items())), before, now) for order in (sorted, list))
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same(*pair, before, now) for pair in zip(old, new))
    return old == new


def _is_path(text: str, told: Told) -> bool:
    return "\0" not in text and os.path.exists(told.place(text.strip()))


def _same_part(old: str, new: str, before: Told, now: Told) -> bool:
    if not _is_path(new, now) or not all("\0" not in text and text.strip(" /.\n\t") for text in (old, new)):        # marks alone, a stop of ".", are no path
        return old == new
    was, present = before.place(old.strip()), now.place(new.strip())
    if was == present or os.path.relpath(was, before.out) == os.path.relpath(present, now.out):
        return True
    return old == new and not os.path.exists(was)
