"""Adapters as Hugging Face peft folders, written and read.

    adapter_config.json          peft_type, target_modules and the method's own fields
    adapter_model.safetensors    base_model.model.<Hugging Face path of the module>.<the parameter's name in the file>

for LoRA on a LLaMA: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight". The name of the set is in neither file.
peft only warns about keys it misses and goes on with B = 0, which is the base model. Here a missing, left-over or mis-shaped
tensor, and an option that would change the numbers and is not implemented, is an error that names it (traps 22, 27), raised
before the model is touched.
Bottleneck adapters are unknown to peft; their folders are those of the `adapters` library (adapter_folders.py).
A scorer's head goes with the adapter (head.py).
Left out: pickled adapter_model.bin (refused, never opened), other modules_to_save, adapters sharded over several files.
Proved in tests/peft/test_files.py and tests/parity/test_peft_lora.py."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minift.errors import InputError
from minift.files import new_folder
from minift.models.config import ModelConfig
from minift.peft import adapter_folders, head
from minift.peft.adalora import AdaLoRA
from minift.peft.attach import Method, put_in, state_of
from minift.peft.bitfit import BitFit
from minift.peft.dora import DoRA
from minift.peft.ia3 import IA3
from minift.peft.layernorm import LayerNormTuning
from minift.peft.loftq import LoftQ
from minift.peft.lora import LoRA
from minift.peft.own import Full, Head, LastLayers
from minift.peft.pissa import PiSSA
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.peft.ptuning import PTuning
from minift.peft.reft import LoReFT
from minift.peft.targets import published_names
from minift.peft.tokens import NewTokens
from minift.peft.vera import VeRA
from minift.peft.wrapper import base_at

METHODS = {
    "LORA": LoRA,
    "LOREFT": LoReFT,
    "ADALORA": AdaLoRA,
    "VERA": VeRA,
    "IA3": IA3,
    "LN_TUNING": LayerNormTuning,
    "BITFIT": BitFit,
    "PREFIX_TUNING": Prefix,
    "PROMPT_TUNING": Prompt,
    "P_TUNING": PTuning,
    "TRAINABLE_TOKENS": NewTokens,
    "FULL": Full,
    "LAST_LAYERS": LastLayers,
    "HEAD": Head,
}
"""peft_type -> config."""

INERT = {
    "auto_mapping", "base_model_name_or_path", "bias", "inference_mode", "layers_pattern", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Fields of an adapter_config.json that change no number by themselves (bias is checked on its own)."""

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def tensors(model: nn.Module, method: Method, small: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Key in adapter_model.safetensors -> the tensor it stands for, for saving and to be filled by loading.

    Every parameter goes under the path of its module; a method whose files are otherwise (VeRA's shared matrices, one table of
    virtual tokens) has file_tensors(model, small) to say so."""
    own_head, small = head.tensors(method.peft_type, small), head.without(small)
    if hasattr(method, "file_tensors"):
        return {**method.file_tensors(model, small), **own_head}
    names = published_names(model)
    return own_head | {
        f"{PREFIX}{names[path]}.{module.file_names[name]}": parameter
        for path, module in small.items()
        for name, parameter in module.named_parameters()
    }


def _task(config: object) -> str | None:
    """What peft calls the kind of model: it then has a class of its own for the methods that need one."""
    if not isinstance(config, ModelConfig):
        return None
    if config.decoder_layers:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if config.causal else "FEATURE_EXTRACTION"                       # a classifier's: peft/head.py


def save(model: nn.Module, folder: str | Path, name: str = "default", overwrite: bool = False, base_model: str | None = None) -> None:
    """Write the set `name` as a folder, whole or not at all. base_model: what the config calls the model it belongs to."""
    state = state_of(model)
    if name not in state.sets:
        raise InputError(f"this model has no set named {name!r}; it has {sorted(state.sets)}")
    method = state.sets[name]
    small = {path: wrapper.adapters[name] for path, wrapper in state.wrappers.items() if name in wrapper.adapters}
    if isinstance(method, adapter_folders.METHODS):
        config, fields, weights, found = adapter_folders.to_write(model, method, head.without(small), name, base_model)
        found |= head.tensors(method.peft_type, small)
    else:
        config, weights, found = CONFIG, WEIGHTS, tensors(model, method, small)
        fields = {
            "peft_type": method.peft_type,
            "task_type": _task(getattr(model, "config", None)),
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            **head.fields(model, method.peft_type, small),
            **method.to_file(model, head.without(small)),
        }
    stored = {key: tensor.detach().cpu().clone() for key, tensor in found.items()}      # shared: written twice
    with new_folder(folder, overwrite) as aside:
        try:
            save_file(stored, aside / weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{aside / weights} cannot be written ({error}): is the disk full? Nothing was replaced") from None
        (aside / config).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def load(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Attach the adapter in `folder` to its base model as the set `name`, active and trainable."""
    method, found = read(folder)
    folder, fields = Path(folder), _read_config(Path(folder))
    where = folder / WEIGHTS
    if adapter_folders.is_one(fields):
        adapter_folders.check_base(model, folder, fields)
        where = adapter_folders.weights_path(folder)
    try:
        small = method.build(model)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error} {_bases(model, fields)}") from None
    head.check(model, folder, fields, found.keys())
    small |= head.beside(model, small)
    wanted, own = tensors(model, method, small), base_tensors(model, small)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys() - own.keys())
    if missing or extra:
        raise InputError(
            f"{where}: the tensors are not those that {CONFIG} and this model call for."
            f"{_some('missing', missing)}{_some('left over', extra)}"
            f" Is it an adapter for another model, or were keys renamed? {_bases(model, fields)}"
        )
    for key, base in own.items():
        if key in found and not same(found[key], base):
            raise InputError(f"{where}: {key} is not this model's own weight, so the adapter was made for another base (or a resized one)")
    filled: dict[int, str] = {}
    for key, parameter in wanted.items():
        if found[key].shape != parameter.shape:
            raise InputError(
                f"{where}: {key} has shape {tuple(found[key].shape)}, but {CONFIG} and this model call for {tuple(parameter.shape)}:"
                f" the rank in the config is another, or the adapter belongs to another model. {_bases(model, fields)}"
            )
        if not found[key].isfinite().all():
            raise InputError(f"{where}: {key} contains NaN or infinity: the training that wrote it had diverged")
        first = filled.setdefault(id(parameter), key)
        if not torch.equal(found[key], found[first]):
            raise InputError(f"{where}: {first} and {key} are one tensor in this model, but two in the file: the base it was made for is not tied")
        with torch.no_grad():
            parameter.copy_(found[key])
    put_in(model, method, small, name)


def read(folder: str | Path) -> tuple[Method, dict[str, Tensor]]:
    """The method's config and the tensors of a peft folder, checked as far as possible without the model."""
    folder = Path(folder)
    fields = _read_config(folder)
    if adapter_folders.is_one(fields):
        return adapter_folders.read(folder, fields)
    kind = fields.get("peft_type")
    if not isinstance(kind, str) or kind not in METHODS:
        raise InputError(f"{folder / CONFIG}: peft_type is {kind!r}; minift reads {', '.join(METHODS)}")
    if fields.get("bias", "none") != "none":
        raise InputError(f"{folder / CONFIG}: bias is {fields['bias']!r}: minift does not train biases beside {kind}; only 'none' will do")
    try:
        method = _config(kind, fields).from_file(fields)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:                     # a field that is missing, or of another type
        raise InputError(f"{folder / CONFIG}: a field of {kind} is missing or of a wrong kind ({type(error).__name__}: {error})") from None
    head.take(fields)
    unknown = [f"{key} = {value!r}" for key, value in fields.items() if key not in INERT and value not in (None, False, [], {}, "")]
    if unknown:
        raise InputError(f"{folder / CONFIG}: minift does not implement {', '.join(unknown)}; ignoring it would give other numbers")
    try:
        found = load_file(_weights(folder))
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged or cut short ({error}): copy or save it again") from None
    for key, tensor in found.items():
        if not tensor.isfinite().all():
            raise InputError(f"{folder / WEIGHTS}: {key} contains NaN or infinity: the training that wrote it had diverged")
    return method, found


def base_tensors(model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Keys under which peft also stores the base's own weights (it does so for embeddings and heads it adapts)."""
    names = published_names(model)
    return {
        f"{PREFIX}{names[path]}.base_layer.{key}": value for path in head.without(small) for key, value in base_at(model, path).named_parameters()
    }


def _bases(model: nn.Module, fields: dict) -> str:
    """What the adapter was made for, as far as it says, and what it was put on."""
    config = getattr(model, "config", None)
    this = f"a {config.family} of {config.layers} blocks, {config.hidden_size} wide" if isinstance(config, ModelConfig) else f"a {type(model).__name__}"
    made_for = fields.get("base_model_name_or_path") or fields.get("model_name") or "a base it does not name"
    return f"(It was made for {made_for}; this model is {this})"


def same(found: Tensor, own: Tensor) -> bool:
    """Equal, if need be after one of them was rounded to the other's dtype."""
    own = own.detach().cpu()
    return found.shape == own.shape and (torch.equal(found.to(own.dtype), own) or torch.equal(found, own.to(found.dtype)))


def _read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    path = adapter_folders.config_path(folder)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} is not an adapter folder: it has no {CONFIG}") from None
    except ValueError as error:                                            # not JSON, or not UTF-8
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} must hold a JSON object, not a {type(fields).__name__}")
    return fields


def _config(kind: str, fields: dict) -> type[Method]:
    """Four methods go by the name LORA in peft's files."""
    if kind == "LORA" and fields.get("use_dora"):
        return DoRA
    if kind == "LORA" and str(fields.get("init_lora_weights")).startswith("pissa"):
        return PiSSA
    if kind == "LORA" and fields.get("init_lora_weights") == "loftq":
        return LoftQ
    return METHODS[kind]


def _weights(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / "adapter_model.bin").exists():
        raise InputError(
            f"{folder} has only a pickled adapter_model.bin, which could run any code when opened. Ask its author for {WEIGHTS}, or, if you"
            " trust the file, load it with Hugging Face peft and save_pretrained it again"
        )
    raise InputError(f"{folder} has no {WEIGHTS}")


def _some(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f" {len(keys)} {what}: {', '.join(keys[:3])}{rest}."
