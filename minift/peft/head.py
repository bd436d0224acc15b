"""A new head trains beside the adapter: a reward model's or a classifier's, which no base has (models/scorer.py).

    base body, frozen  ->  adapter's change  ->  stream  ->  score head: trained in full, and stored with the adapter

An adapter without its head would be worthless, and the fresh head it would be put on looks just like it (trap 26). So on a Scorer every
set gets a trained copy of the head, unless its method trains or changes the head itself. In a folder it is what Hugging Face peft calls
modules_to_save: "modules_to_save": ["score"], task_type SEQ_CLS, key base_model.model.score.weight. The `adapters` library's folders have
no such place: there the tensor stands among the adapter's own, and the library says that it does not know it.
Left out: heads of other names, heads of transformers' models (peft saves them itself). Proved in tests/peft/test_head.py."""

from collections.abc import Collection
from pathlib import Path

from torch import Tensor, nn

from minift.errors import InputError
from minift.models.scorer import Scorer
from minift.peft.own import Own, own
from minift.peft.wrapper import base_at

HEAD = "score"
VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""peft_type of the methods around which peft has no wrapper: its files lack one "model." there, and their configs modules_to_save."""


class NewHead(Own):
    """The trained copy of the head beside a method's modules."""


def beside(model: nn.Module, small: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """{"score": a copy of the head that trains}, if the model is a Scorer and `small`, a method's modules, has nothing there."""
    if not isinstance(model, Scorer) or HEAD in small:
        return {}
    copy = own({HEAD: base_at(model, HEAD)}, keep_base=True)[HEAD]
    return {HEAD: NewHead({"weight": copy.weight}, copied=True)}


def without(small: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The method's own modules."""
    return {path: module for path, module in small.items() if not isinstance(module, NewHead)}


def tensors(kind: str, small: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Key in the file of a method with the peft_type `kind` -> the head that stands beside its modules."""
    key = f"base_model.{'' if kind in VIRTUAL else 'model.'}{HEAD}.weight"
    return {key: module.weight for module in small.values() if isinstance(module, NewHead)}


def fields(model: nn.Module, kind: str, small: dict[str, nn.Module]) -> dict:
    """What adapter_config.json says of it."""
    task = {"task_type": "SEQ_CLS"} if isinstance(model, Scorer) else {}
    return task | ({"modules_to_save": [HEAD]} if tensors(kind, small) and kind not in VIRTUAL else {})


def take(found: dict) -> None:
    """Take modules_to_save out of an adapter_config.json. peft writes both of its names for heads, of which a model has one."""
    if found.get("modules_to_save") and set(found["modules_to_save"]) <= {HEAD, "classifier"}:
        del found["modules_to_save"]


def check(model: nn.Module, folder: Path, config: dict, keys: Collection[str]) -> None:
    """Raise InputError if a head was stored and this model has no place for it, or the other way round. config: of adapter_config.json."""
    stored = any(f".{HEAD}." in key for key in keys)
    if not isinstance(model, Scorer) and (config.get("modules_to_save") or stored and config.get("task_type") == "SEQ_CLS"):
        raise InputError(
            f"{folder}: the adapter comes with a score head (modules_to_save = {config.get('modules_to_save')}), so it is for a reward model or a"
            " classifier, and this is a language model: evaluate.scoring.load_scorer makes the model it belongs to"
        )
    if isinstance(model, Scorer) and not stored:
        raise InputError(f"{folder} holds no score head, so it is an adapter for the language model, not for a scorer on it: load it there")
