"""A new head trains beside the adapter: a reward model's or a classifier's, which no base has (models/scorer.py, models/encoder.py).

    base body, frozen  ->  adapter's change  ->  stream  ->  score head: trained in full, and stored with the adapter

An adapter without its head would be worthless, and the fresh head it would be put on looks just like it (trap 26). So on a Scorer every
set gets a trained copy of the head, unless its method trains or changes the head itself; on an Encoder with labels it gets one of the pooler too. In a
folder it is what Hugging Face peft calls modules_to_save, under the family's own names: for a scorer "modules_to_save": ["score"] and the key
base_model.model.score.weight, for BERT ["pooler", "classifier"]; task_type is SEQ_CLS. The `adapters` library's folders have
no such place: there the tensor stands among the adapter's own, and the library says that it does not know it.
Left out: heads of other names, heads of transformers' models (peft saves them itself). Proved in tests/peft/test_head.py."""

from collections.abc import Collection
from pathlib import Path

from torch import Tensor, nn

from minift.errors import InputError
from minift.models.encoder import Encoder
from minift.models.scorer import Scorer
from minift.peft.own import Own, own
from minift.peft.wrapper import base_at

HEADS = ("pooler", "score")
SAVED = {"bert": ("pooler", "classifier"), "roberta": ("classifier",), "xlm-roberta": ("classifier",), "distilbert": ("pre_classifier", "classifier")}
"""Of an encoder's family: what modules_to_save calls the two; RoBERTa's are one module."""
VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
"""peft_type of the methods around which peft has no wrapper: its files lack one "model." there, and their configs modules_to_save."""


class NewHead(Own):
    """The trained copy of the head beside a method's modules. `published`: what the family's files call it."""

    published = "score"


def has_head(model: nn.Module) -> bool:
    """A scorer, or an encoder with labels."""
    return isinstance(model, Scorer) or isinstance(model, Encoder) and model.config.labels > 0


def beside(model: nn.Module, small: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Of a model with a head, {"score": a copy of the head that trains}, if `small`, a method's modules, has nothing there. An encoder's head and
    pooler, which were drawn at random or trained for another task, are replaced by their copies unless the method trains all of their numbers."""
    if not has_head(model):
        return {}
    heads, names = {}, model.module_names()
    for path in HEADS:
        taken = path in small and (isinstance(model, Scorer) or isinstance(small[path], Own))
        if path in names and not taken:
            heads[path] = NewHead(own({path: base_at(model, path)}, keep_base=True)[path]._parameters, copied=True)
            heads[path].published = names[path]
    return heads


def without(small: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The method's own modules."""
    return {path: module for path, module in small.items() if not isinstance(module, NewHead)}


def tensors(kind: str, small: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Key in the file of a method with the peft_type `kind` -> the head that stands beside its modules."""
    before = f"base_model.{'' if kind in VIRTUAL else 'model.'}"
    heads = [module for module in small.values() if isinstance(module, NewHead)]
    return {f"{before}{head.published}.{name}": number for head in heads for name, number in head.named_parameters()}


def fields(model: nn.Module, kind: str, small: dict[str, nn.Module]) -> dict:
    """What adapter_config.json says of it."""
    task = {"task_type": "SEQ_CLS"} if has_head(model) else {}
    saved = [HEADS[-1]] if isinstance(model, Scorer) else SAVED.get(model.config.family, []) if isinstance(model, Encoder) else []
    return task | ({"modules_to_save": list(saved)} if tensors(kind, small) and kind not in VIRTUAL else {})


def take(found: dict) -> None:
    """Take modules_to_save out of an adapter_config.json. peft writes all of its names for heads, of which a model has some."""
    if found.get("modules_to_save") and set(found["modules_to_save"]) <= {"score", "classifier", "pooler", "pre_classifier"}:
        del found["modules_to_save"]


def check(model: nn.Module, folder: Path, config: dict, keys: Collection[str]) -> None:
    """Raise InputError if a head was stored and this model has no place for it, or the other way round. config: of adapter_config.json."""
    names = model.module_names() if has_head(model) else {}
    stored = any(f".{name}." in key for key in keys for name in ({names["score"]} if names else ("score", "classifier")))
    if not names and (config.get("modules_to_save") or stored and config.get("task_type") == "SEQ_CLS"):
        raise InputError(
            f"{folder}: the adapter comes with a score head (modules_to_save = {config.get('modules_to_save')}), so it is for a reward model or a"
            " classifier, and this model has no head for scores: evaluate.scoring.load_scorer and `minift predict` make the model it belongs to"
        )
    if names and not stored:
        raise InputError(f"{folder} holds no score head, so it is an adapter for the plain model, not for a scorer or a classifier on it: load it there")
