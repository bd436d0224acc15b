"""sentence-transformers' files beside a checkpoint: which pooling, whether to normalise, how many tokens, which prompts.

    modules.json                        [Transformer at "", Pooling at "1_Pooling", Normalize at "2_Normalize"]
    1_Pooling/config.json               the mode: one name (version 6), or a true among pooling_mode_... (before)
    sentence_bert_config.json           max_seq_length; config_args {"is_causal": false}: the decoder looks both ways
    config_sentence_transformers.json   prompts, default_prompt_name
    config.json                         is_causal false, where the model lies here too: transformers 5 takes its causal mask off then

A folder whose embeddings are made otherwise (a dense layer, two poolings at once, a prompt left out of the mean) is refused: its vectors would be
wrong, and nobody would see it. Proved in tests/models/test_pooling.py, tests/parity/test_sentence_transformers.py."""

import json
from pathlib import Path

from minift.errors import InputError
from minift.files import write_text
from minift.models.pooling import Pooling
from minift.models.stored import read_json

MODULES, SETTINGS, LENGTH, CONFIG = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "config.json"
FLAGS = {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "weighted": "pooling_mode_weightedmean_tokens", "last": "pooling_mode_lasttoken",
}    # fmt: skip
NAMES = {"cls": "cls", "max": "max", "mean": "mean", "weightedmean": "weighted", "lasttoken": "last"}
"""sentence-transformers 6's names -> ours."""


def read_pooling(folder: str | Path) -> Pooling | None:
    """What the folder says of its embeddings; None if it says nothing."""
    folder = Path(folder)
    if not (folder / MODULES).exists():
        return None
    kinds, mode = [], None
    for module in _list(folder / MODULES):
        kind = str(module.get("type", "")).rpartition(".")[2]
        kinds.append(kind)
        if kind == "Pooling":
            mode = _mode(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Transformer" and module.get("path"):
            raise InputError(f"{folder / MODULES} has its transformer in {module['path']!r}: only weights beside {MODULES} are read; move them up")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(f"{folder / MODULES} lists {', '.join(kinds)}: minift makes embeddings with Transformer, Pooling and perhaps Normalize, in this order")
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    body = read_json(folder / LENGTH) if (folder / LENGTH).exists() else {}
    prompts = {str(name): str(text) for name, text in (settings.get("prompts") or {}).items() if text}
    default = settings.get("default_prompt_name")
    if default is not None and default not in (settings.get("prompts") or {}):
        raise InputError(f"{folder / SETTINGS}: default_prompt_name is {default!r}, which is none of its prompts: {', '.join(prompts) or 'there are none'}")
    return Pooling(mode, kinds[-1] == "Normalize", body.get("max_seq_length"), prompts, default if default in prompts else None, _looks_ahead(folder, body))


def write_pooling(pooling: Pooling, width: int, folder: str | Path) -> None:
    """The same files, as sentence-transformers of any version reads them. width: C."""
    folder = Path(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [{"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"} for i, (kind, place) in enumerate(zip(kinds, places))]
    flags = {"word_embedding_dimension": width, **{flag: mode == pooling.mode for mode, flag in FLAGS.items()}, "pooling_mode_mean_sqrt_len_tokens": False,
             "include_prompt": True}    # fmt: skip
    settings = {"model_type": "SentenceTransformer", "prompts": pooling.prompts, "default_prompt_name": pooling.default_prompt, "similarity_fn_name": "cosine"}
    if pooling.bidirectional and (folder / CONFIG).exists():
        _write(folder / CONFIG, {**read_json(folder / CONFIG), "is_causal": False})
    for place in places[1:]:
        (folder / place).mkdir(exist_ok=True)
    _write(folder / places[1] / "config.json", flags)
    _write(folder / MODULES, modules)
    _write(folder / SETTINGS, settings)
    _write(folder / LENGTH, {"max_seq_length": pooling.max_length, "do_lower_case": False, **({"config_args": {"is_causal": False}} if pooling.bidirectional else {})})


def _looks_ahead(folder: Path, body: dict) -> bool:
    """Does the folder ask for a decoder without its causal mask? An adapter's folder has no config.json."""
    model = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return any((said or {}).get("is_causal") is False for said in (model, body.get("config_args"), body.get("config_kwargs")))


def _mode(file: Path) -> str:
    if not file.exists():
        raise InputError(f"{file} is missing, but {MODULES} names its folder: fetch it again")
    said = read_json(file)
    if said.get("include_prompt") is False:
        raise InputError(f"{file}: include_prompt is false, and minift does not leave a prompt's tokens out")
    if "pooling_mode" in said:
        named = said["pooling_mode"] if isinstance(said["pooling_mode"], list) else [said["pooling_mode"]]
        found = [NAMES.get(name, f"{name!r}") for name in named]
    else:
        known = {flag: mode for mode, flag in FLAGS.items()}
        found = [known.get(key, key) for key, value in said.items() if key.startswith("pooling_mode_") and value is True] or ["mean"]
    if len(found) != 1 or found[0] not in FLAGS:
        raise InputError(f"{file} pools by {' and '.join(found)}: wanted one of {', '.join(FLAGS)}")
    return found[0]


def _list(file: Path) -> list[dict]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from None
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise InputError(f"{file} is no list of modules: fetch it again")
    return content


def _write(file: Path, content: object) -> None:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
