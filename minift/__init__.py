"""minift: fine-tuning language models, written out by hand.

    model, tokenizer = minift.load("base")
    minift.generate(model, tokenizer, ["Return the"], max_new_tokens=20)
    minift.save(model, tokenizer, "folder")
    from minift import peft, losses

The public names are imported when first used, so `import minift` is instant."""

import importlib
import sys
import types

__version__ = "0.1.0"

_HOMES = {"load": "minift.folder", "save": "minift.folder", "generate": "minift.generate", "embed": "minift.embed", "InputError": "minift.errors"}
_ROOMS = {"peft", "losses", "tokenizer", "models", "data", "evaluate", "quant", "classify"}


class _Package(types.ModuleType):
    """Importing the module minift.generate binds it as an attribute here; the function of that name stays in front of it."""

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, getattr(value, name) if name in _HOMES and isinstance(value, types.ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        found = importlib.import_module(f"minift.{name}")
    else:
        raise AttributeError(f"minift has no {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
