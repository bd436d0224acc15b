"""Adapters as folders of the `adapters` library, written and read: bottleneck adapters and AdapterFusion; LoReFT is read.

    adapter_config.json          config (of the method), hidden_size, model_class, model_name, model_type, name, version
    adapter.safetensors          model.layers.0.output_adapters.adapters.NAME.adapter_down.0.weight ...
    adapter_fusion_config.json, model_adapter_fusion.safetensors      for a fusion: the sets it mixes are folders of their own

The set's name is in the keys. Here it is written NAME, so that a folder can be loaded under any name. The library logs what it misses
and goes on; here a missing, left-over or mis-shaped tensor is an error (files.load), and so is an option that changes numbers and is
not implemented, another family or width of model, and a head saved beside the adapter that is not the model's own.
Adapters on named modules (`targets`) are written likewise, marked so that the library, which has no such thing, refuses them.
Left out: pickled pytorch_adapter.bin (refused, never opened), a reduction factor per layer, prefix tuning and LoRA of that library.
Proved in tests/peft/test_adapter_folders.py and tests/parity/test_adapters_library.py."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.config import ModelConfig
from minift.peft.attach import Method
from minift.peft.bottleneck import ON_TARGETS, BottleneckAdapter, Parallel, Pfeiffer
from minift.peft.fusion import AdapterFusion
from minift.peft.reft import LoReFT, orthonormal, reflections
from minift.peft.targets import published_names
from minift.peft.wrapper import base_modules

METHODS = (BottleneckAdapter, AdapterFusion)
"""The methods whose sets are written in this format."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
FUSION_CONFIG, FUSION_WEIGHTS = "adapter_fusion_config.json", "model_adapter_fusion.safetensors"
HEAD, PICKLES = "model_head.safetensors", ("pytorch_adapter.bin", "pytorch_model_adapter_fusion.bin")
VERSION = "adapters.1.3.0"
"""The library's version whose format this is."""

INERT = {
    "architecture", "factorized_phm_W", "factorized_phm_rule", "hypercomplex_nonlinearity", "init_weights_seed", "inv_adapter_reduction_factor",
    "learn_phm", "phm_bias", "phm_c_init", "phm_dim", "phm_init_range", "phm_rank", "shared_phm_rule", "dtype",
}  # fmt: skip
"""Options that change no number by themselves: details of Compacter (phm_layer) and of invertible adapters (inv_adapter), seeds."""


def is_one(fields: dict) -> bool:
    """Are these the fields of a config of this library, not of Hugging Face peft?"""
    return "peft_type" not in fields and "config" in fields


def config_path(folder: Path) -> Path:
    """The config of the folder: that of a fusion if there is no other."""
    return folder / FUSION_CONFIG if (folder / FUSION_CONFIG).is_file() and not (folder / CONFIG).is_file() else folder / CONFIG


def weights_path(folder: Path) -> Path:
    return folder / (FUSION_WEIGHTS if config_path(folder).name == FUSION_CONFIG else WEIGHTS)


def to_write(
    model: nn.Module, method: Method, small: dict[str, nn.Module], name: str, base_model: str | None
) -> tuple[str, dict, str, dict[str, Tensor]]:
    """Name of the config file, its fields, name of the tensors' file, the tensors."""
    kind, width = _base(model)
    fields = {
        "config": method.to_file(model, small), "hidden_size": width, "model_class": type(model).__name__, "model_name": base_model or "",
        "model_type": kind, "name": name, "version": VERSION,
    }  # fmt: skip
    stored = {key.replace(".adapters.NAME.", f".adapters.{name}."): tensor for key, tensor in method.file_tensors(model, small).items()}
    if isinstance(method, AdapterFusion):
        return FUSION_CONFIG, {**fields, "name": ",".join(method.names), "adapter_names": list(method.names)}, FUSION_WEIGHTS, stored
    return CONFIG, fields, WEIGHTS, stored


def read(folder: Path, fields: dict) -> tuple[Method, dict[str, Tensor]]:
    """The method's config and the tensors, under the keys of its file_tensors."""
    path = config_path(folder)
    options, name = fields["config"], fields.get("name")
    if not isinstance(options, dict) or not isinstance(name, str):
        raise InputError(f"{path}: config is {options!r} and name is {name!r}: the one must hold the method's options, the other name the adapter")
    options = dict(options)
    try:
        if path.name == FUSION_CONFIG:
            method = _fusion(options, fields.get("adapter_names", name))
        elif options.get("architecture") == "reft":
            method = _reft(options)
        else:
            method = _bottleneck(options)
    except (InputError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: {error}") from None
    unknown = [f"{key} = {value!r}" for key, value in options.items() if key not in INERT and value not in (None, False, [], {}, "", 0)]
    if unknown:
        raise InputError(f"{path}: minift does not implement {', '.join(unknown)}; ignoring it would give other numbers")
    found = _tensors(weights_path(folder))
    if isinstance(method, AdapterFusion):
        ours = f".adapter_fusion_layer.{','.join(method.names)}."
        return method, {key.replace(f".adapter_fusion_layer.{name}.", ours): tensor for key, tensor in found.items()}
    if isinstance(method, LoReFT):
        return method, _edits(folder, found, name)
    return method, {key.replace(f".adapters.{name}.", ".adapters.NAME."): tensor for key, tensor in found.items()}


def check_base(model: nn.Module, folder: Path, fields: dict) -> None:
    """Raise InputError if the adapter says it was made for another family or width, or brings a head that is not this model's."""
    path, (kind, width) = config_path(folder), _base(model)
    for what, found, own in (("model_type", fields.get("model_type"), kind), ("hidden_size", fields.get("hidden_size"), width)):
        if found is not None and own is not None and found != own:
            raise InputError(f"{path}: the adapter was made for a model with {what} {found!r}, and this one has {own!r}: load it on its own base")
    if (folder / HEAD).is_file():
        names = published_names(model)
        own = {f"{names[at]}.{key}": p for at, module in base_modules(model).items() for key, p in module.named_parameters(recurse=False)}
        for key, tensor in _tensors(folder / HEAD).items():
            if key not in own or own[key].shape != tensor.shape or not torch.equal(own[key].detach().cpu().to(tensor.dtype), tensor):
                raise InputError(
                    f"{folder / HEAD}: {key} is not this model's own, so the adapter was trained together with a head. minift loads adapters"
                    " only: put the head into the base model first, or save the adapter with with_head=False"
                )


def _bottleneck(options: dict) -> BottleneckAdapter:
    on_targets = options.get("architecture") == ON_TARGETS
    if options.get("architecture") not in (None, ON_TARGETS):
        raise InputError(f"architecture is {options['architecture']!r}; minift reads bottleneck adapters and reft of this library")
    said = {key: options.pop(key, False) for key in BottleneckAdapter.arrangement}
    kind = next((kind for kind in (BottleneckAdapter, Pfeiffer, Parallel) if kind.arrangement == said), None)
    if kind is None:
        shown = ", ".join(f"{key} {value!r}" for key, value in said.items())
        has = "Houlsby's (double_seq_bn), Pfeiffer's (seq_bn) and parallel (par_bn) ones"
        raise InputError(f"minift has no bottleneck adapter with {shown}: it has {has}")
    for key in ("original_ln_after", "residual_before_ln"):
        if options.pop(key, True) is not True:
            raise InputError(f"minift does not implement {key} other than true; ignoring it would give other numbers")
    if isinstance(options.get("reduction_factor"), dict):
        raise InputError("reduction_factor differs by layer: minift has one for all")
    if "reduction_factor" not in options:
        raise InputError("reduction_factor is missing: it says how wide the adapters are")
    if on_targets != ("targets" in options):
        raise InputError(f"targets do not go with architecture {options.get('architecture')!r}: it must be {ON_TARGETS!r} where there are any")
    return kind.from_file(options)


def _fusion(options: dict, names: str | list[str]) -> AdapterFusion:
    fixed = {"key": True, "query": True, "value": True, "value_before_softmax": True}
    for key, wanted in fixed.items():
        if options.pop(key, None) is not wanted:
            raise InputError(f"minift has the fusion with {key} {wanted!r} only ('dynamic' in the library)")
    options.pop("value_initialized", None)
    return AdapterFusion(tuple(names.split(",")) if isinstance(names, str) else tuple(names), bool(options.pop("regularization", True)))


def _reft(options: dict) -> LoReFT:
    if options.pop("orthogonality", None) is not True or options.pop("output_reft", True) is not True:
        raise InputError("minift has LoReFT, with orthogonality and output_reft true, and no other ReFT")
    options.pop("tied_weights", None)                                      # of prefix and suffix; the suffix must be 0, or is refused
    layers = options.pop("layers", "all")
    return LoReFT(options.pop("r"), options.pop("prefix_positions"), layers, options.pop("dropout", 0.0))


def _edits(folder: Path, found: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The library's parametrization, Q = base H(original), as our W, b, X. Flipping a row of R and of W and b together changes nothing."""
    middle, rest, edits = f".reft_layer.refts.{name}.units.", dict(found), {}
    for start in sorted({key.split(middle)[0] for key in found if middle in key}):
        unit = lambda end, number=0: f"{start}{middle}{number}.{end}"
        rotation = "projection.parametrizations.weight"
        keys = ("learned_source.weight", "learned_source.bias", f"{rotation}.original", f"{rotation}.0.base")
        missing = [unit(key) for key in keys if unit(key) not in rest]
        if missing:
            raise InputError(f"{folder / WEIGHTS} lacks {', '.join(missing)}")
        W, b, original, base = (rest.pop(unit(key)).double() for key in keys)
        for key in keys:
            rest.pop(unit(key, 1), None)                                   # the suffix's edit, and there is no suffix
        if W.shape != original.shape or base.shape != (W.shape[1],) * 2 or b.shape != W.shape[:1]:
            raise InputError(f"{folder / WEIGHTS}: the tensors of {start}{middle}0 do not fit together: W {tuple(W.shape)}, base {tuple(base.shape)}")
        if W.shape[0] >= W.shape[1]:
            r, C = W.shape
            raise InputError(f"{folder / WEIGHTS}: rank {r} at width {C}: the library builds a square R in another way, which is not read")
        R = base @ (orthonormal(original.T).T * original.diagonal())       # (C, r); the library keeps signs on the diagonal
        X, signs = reflections(R)
        ours = {"reft_W": signs[:, None] * W, "reft_b": signs * b, "reft_X": X}
        edits |= {f"base_model.model.{start}.{key}": tensor.float() for key, tensor in ours.items()}
    return {**edits, **rest}                                               # what is left over, files.load names


def _tensors(path: Path) -> dict[str, Tensor]:
    folder = path.parent
    if not path.is_file():
        pickled = next((pickle for pickle in PICKLES if (folder / pickle).exists()), None)
        if pickled:
            raise InputError(
                f"{folder} has only a pickled {pickled}, which could run any code when opened. Ask its author for {path.name}, or, if you trust the"
                " file, load it with the adapters library and save it again with use_safetensors=True"
            )
        raise InputError(f"{folder} has no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or cut short ({error}): copy or save it again") from None


def _base(model: nn.Module) -> tuple[str | None, int | None]:
    """model_type and hidden_size, as transformers has them; None where the model does not say."""
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig):
        return config.family, config.hidden_size
    return getattr(config, "model_type", None), getattr(config, "hidden_size", None)
