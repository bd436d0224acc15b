"""The methods by name, as --method takes them: which config, with which defaults, at which learning rate; and how one is put on a model.

`minift methods` prints them; `minift methods NAME` one with all its options. Options that several methods share have flags of their own
(--rank, --alpha, --lora-dropout, --targets, --last-n); every other field of a method's config is set with --options FIELD VALUE.
Proved in tests/recipes/test_methods.py."""

import dataclasses
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from minift import peft
from minift.errors import InputError
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entry:
    """One method."""

    config: type
    """Its config dataclass in minift/peft/."""
    lr: float
    """Peak learning rate when none is given; found on the bundled model with `minift compare`."""
    paper: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that differ from the config's own defaults under this name."""
    whole: bool = False
    """The result is a whole checkpoint, not an adapter."""

    @property
    def idea(self) -> str:
        """The first sentence of the config's docstring."""
        return (self.config.__doc__ or "").strip().split("\n")[0]

    def fields(self) -> dict[str, Any]:
        """Every option with its default; `...` where there is none."""
        out = {}
        for field in dataclasses.fields(self.config):
            factory = field.default_factory
            out[field.name] = factory() if factory is not dataclasses.MISSING else ... if field.default is dataclasses.MISSING else field.default
        return {**out, **self.defaults}


METHODS = {
    "full": Entry(peft.Full, 3e-4, "the baseline", dict(keep_base=False), whole=True),
    "last": Entry(peft.LastLayers, 1e-3, "the baseline", dict(keep_base=False), whole=True),
    "head": Entry(peft.Head, 3e-3, "the baseline", whole=True),
    "tokens": Entry(peft.NewTokens, 3e-3, "the baseline"),
    "lora": Entry(peft.LoRA, 5e-4, "Hu et al. 2021, arXiv:2106.09685"),
}
"""--method NAME -> entry."""

FLAGS = {"rank": "rank", "alpha": "alpha", "lora_dropout": "dropout", "targets": "targets", "last_n": "n"}
"""Fields of sft's config -> the method's field they set."""


def method_config(name: str, flags: Mapping[str, Any], options: Mapping[str, str], tokenizer: Tokenizer | None = None):
    """The config of method `name`. `flags`: sft's fields of FLAGS that were given; `options`: FIELD VALUE pairs as text.

    Raises InputError for an option that this method does not have: it would be without effect."""
    entry = METHODS[name]
    known, hints = entry.fields(), get_type_hints(entry.config)
    chosen = dict(entry.defaults)
    for flag, value in flags.items():
        if FLAGS[flag] not in known:
            owners = [other for other in METHODS if FLAGS[flag] in METHODS[other].fields()]
            text = f"--{flag.replace('_', '-')} is an option of --method {', '.join(owners)}, not of {name}: leave it out"
            raise InputError(text)
        chosen[FLAGS[flag]] = value
    for key, text in options.items():
        field = key.replace("-", "_")
        if field in ("init_text", "tokens") and tokenizer is not None and (target := _ids_field(known)):
            chosen[target] = tuple(tokenizer.encode(text, add_special_tokens=False))
        elif field not in known:
            raise InputError(f"--options {key}: the method {name} has no such option; it has {', '.join(sorted(known)) or 'none'}")
        else:
            chosen[field] = parse(text, hints[field], f"--options {key}")
    missing = [field for field, value in known.items() if value is ... and field not in chosen]
    if missing:
        raise InputError(f"--method {name} needs --options {missing[0]} VALUE")
    return entry.config(**chosen)


def parse(text: str, kind: Any, where: str) -> Any:
    """`text` as a value of type `kind`: bool, int, float, str, one of a Literal, a tuple or list (comma-separated) or a dict (a=1,b=2)."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in inside and text.lower() == "none":
            return None
        several = [k for k in inside if get_origin(k) in (tuple, list)]
        if str in inside and several:                                     # targets: a comma makes it a list
            return parse(text, several[0], where) if "," in text else text
        return parse(text, next(k for k in inside if k is not type(None)), where)
    if origin in (tuple, list):
        return origin(parse(part.strip(), inside[0], where) for part in text.split(",") if part.strip())
    if origin is dict:
        pairs = (part.rpartition("=") for part in text.split(","))
        return {key.strip(): parse(value, inside[1], where) for key, _, value in pairs}
    if origin is Literal:
        if text not in map(str, inside):
            raise InputError(f"{where} is {text!r}: choose one of {', '.join(map(str, inside))}")
        return next(value for value in inside if str(value) == text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{where} is {text!r}: wanted true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise InputError(f"{where} is {text!r}: wanted {'a whole number' if kind is int else 'a number'}") from None
    return text


def _ids_field(known: Mapping[str, Any]) -> str | None:
    """The field of a method that takes token ids, which the command line lets be given as text."""
    return next((field for field in ("init_ids", "init_tokens", "ids") if field in known), None)


def field_docs(config: type) -> dict[str, str]:
    """Field -> the docstring under it, read from the source."""
    import inspect

    docs: dict[str, str] = {}
    for home in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        for name, doc in re.findall(r'\n    (\w+): [^\n]+\n    """(.*?)"""', inspect.getsource(home), re.S):
            docs[name] = " ".join(doc.split())
    return docs

