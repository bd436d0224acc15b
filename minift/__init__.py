"""minift: fine-tuning language models, written out by hand.

    model, tokenizer = minift.load("base")
    minift.generate(model, tokenizer, ["Return the"], max_new_tokens=20)
    minift.save(model, tokenizer, "folder")
    from minift import peft, losses

The public names are imported when first used, so `import minift` is instant."""

import importlib

__version__ = "0.1.0"

_HOMES = {"load": "minift.folder", "save": "minift.folder", "generate": "minift.generate", "InputError": "minift.errors"}
_ROOMS = {"peft", "losses", "tokenizer", "models", "data", "evaluate"}


def __getattr__(name: str):
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        found = importlib.import_module(f"minift.{name}")
    else:
        raise AttributeError(f"minift has no {name!r}")
    globals()[name] = found                # the function `generate` stays in front of the module of that name
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
