"""Where a method goes: choosing modules of a model by name.

    "all-linear"             every linear except the output head
    ["q", "mlp.down"]        names: a module whose path is "q" or ends in ".q"
    r".*\\.1\\..*_proj"        any other string: a regular expression that must match the whole path

A minift Transformer has two paths for a module, ours ("blocks.0.attention.q") and that of its family's Hugging Face checkpoints
("model.layers.0.self_attn.q_proj"); either may be named. The rules are those of Hugging Face peft, so its files keep their meaning.
A name that matches nothing is an error: the usual way to train nothing at all is a target list written for another family.
Left out: the output projection of nn.MultiheadAttention, whose weight is read without the module ever being called.
Proved in tests/peft/test_targets.py."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.models.names import is_transposed
from minift.peft.wrapper import Adapted, base_modules

HEADS = ("head", "lm_head", "score", "classifier")
"""Top-level modules that are the output head of a model without get_output_embeddings()."""


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D: the linear of its GPT-2, y = x W + b with W stored (K, N)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Does calling this module compute x WT + b?"""
    return is_conv1d(module) or (isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear))


def is_embedding(module: nn.Module) -> bool:
    """A plain look-up; subclasses with a forward of their own (Gemma 3 scales its rows) are something else."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def is_norm(module: nn.Module) -> bool:
    """LayerNorm or RMSNorm, torch's or a model's own (LlamaRMSNorm, T5LayerNorm), with a gain to train."""
    named = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or re.search("(Layer|RMS)_?Norm", type(module).__name__)
    return bool(named) and {"weight"} <= {name for name, _ in module.named_parameters()} <= {"weight", "bias"}


def takes_lora(module: nn.Module) -> bool:
    return is_linear(module) or is_embedding(module)


def published_names(model: nn.Module) -> dict[str, str]:
    """Our path -> the path used in files: the family's Hugging Face path if the model knows one, else its own."""
    known = model.module_names() if hasattr(model, "module_names") else {}
    return {path: known.get(path, path) for path in base_modules(model)}


def find(
    model: nn.Module,
    targets: str | list[str] | tuple[str, ...],
    fits: Callable[[nn.Module], bool] = takes_lora,
    kind: str = "linear or embedding",
) -> dict[str, nn.Module]:
    """Path -> module for every module of this kind (where `fits`) that `targets` names; InputError if one of them names none."""
    modules, names = base_modules(model), published_names(model)
    choices = {path: module for path, module in modules.items() if fits(module)}
    if targets == "all-linear":
        found = {path: module for path, module in choices.items() if is_linear(module) and not _is_head(model, path, module)}
        return found or _nothing("'all-linear'", {}, names, kind)
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InputError(f"targets {targets!r} is not a regular expression ({error}); to name modules, give a list") from None
        found = {path: module for path, module in choices.items() if pattern.fullmatch(path) or pattern.fullmatch(names[path])}
        return found or _nothing(f"the pattern {targets!r}", choices, names, kind)
    if not targets:
        raise InputError("targets is an empty list: name at least one module, or say 'all-linear'")
    wanted = {}
    for target in targets:
        paths = [path for path in choices if named(path, target) or named(names[path], target)]
        if not paths:
            _nothing(repr(target), choices, names, kind)
        wanted.update(dict.fromkeys(paths))
    return {path: module for path, module in choices.items() if path in wanted}     # in the model's order, whatever the list's


def named(path: str, target: str) -> bool:
    """Is `target` this path, or the end of it?"""
    return path == target or path.endswith("." + target)


def shortest(wanted: list[str], existing: list[str]) -> list[str]:
    """The list to write as target_modules: last names ("q_proj") if they choose exactly `wanted` among `existing`, else full paths."""
    last = sorted({path.rsplit(".", 1)[-1] for path in wanted})
    chosen = [path for path in existing if any(named(path, name) for name in last)]
    return last if set(chosen) == set(wanted) else sorted(wanted)


def written_targets(model: nn.Module, paths: Iterable[str], fits: Callable[[nn.Module], bool] = takes_lora) -> list[str]:
    """target_modules for an adapter on these of our paths, in the names of the model's files; `fits`: what a reader could take."""
    names, modules = published_names(model), base_modules(model)
    could = [names[path] for path, module in modules.items() if fits(module)]
    return shortest([names[path] for path in paths], could)


def read_targets(fields: dict) -> str | list[str]:
    """Take target_modules out of the fields of an adapter_config.json."""
    targets = fields.pop("target_modules", None)
    if not targets or not (isinstance(targets, str) or isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise InputError(f"target_modules is {targets!r}: it must say which modules the adapter is on")
    return targets


def is_stored_transposed(model: nn.Module, paths: Iterable[str]) -> bool:
    """Does a checkpoint of this model store the weights at `paths` (K, N), as GPT-2's do? peft calls that fan_in_fan_out."""
    modules, ours = base_modules(model), isinstance(getattr(model, "config", None), ModelConfig)
    return any(is_conv1d(modules[path]) or (ours and is_transposed(model.config, path)) for path in paths)


def _is_head(model: nn.Module, path: str, module: nn.Module) -> bool:
    if hasattr(model, "get_output_embeddings"):
        head = model.get_output_embeddings()
        return module is (head.base if isinstance(head, Adapted) else head)
    return path in HEADS


def _nothing(what: str, choices: dict[str, nn.Module], names: dict[str, str], kind: str):
    """Raise, showing what could have been meant: block numbers folded, near names first."""
    if not choices:
        raise InputError(f"targets {what}: this model has no {kind} an adapter could go on")
    fold = lambda path: re.sub(r"\.\d+(?=\.|$)", ".N", path)
    shown = sorted({fold(path) if names[path] == path else f"{fold(path)} ({fold(names[path])})" for path in choices})
    last = {path.rsplit(".", 1)[-1] for path in choices} | {names[path].rsplit(".", 1)[-1] for path in choices}
    near = get_close_matches(what.strip("'"), sorted(last), n=3)
    hint = f"; near names: {', '.join(near)}" if near else ""
    raise InputError(f"targets {what} matches no {kind} of this model{hint}. It has: {', '.join(shown)}")
