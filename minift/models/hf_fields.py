"""Reading single fields of a Hugging Face config.json, with their old and new spellings, and refusing what we cannot honour.

The family functions (llama_families.py, gpt_families.py) are written with these. Every refusal is an InputError that names the
field, what it holds and what would be understood. Proved in tests/models/test_families.py."""

from minift.errors import InputError
from minift.models.config import ModelConfig, RopeScaling

REQUIRED = object()
"""The default of a field that fixes a shape: a positive whole number that has to be there."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Hugging Face's names -> ours; the three tanh forms of GELU are one formula."""

HF_ACTIVATION = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
"""Our names -> the one we write."""


def take(hf: dict, names: tuple[str, ...], default):
    """The first of `names` that is present and not null, else `default`. Its type has to be the default's (an int is a float too)."""
    found = next((name for name in names if hf.get(name) is not None), None)
    if found is None:
        if default is REQUIRED:
            raise InputError(f"{' or '.join(names)} is missing: it fixes a shape, so there is no default")
        return default
    value = hf[found]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if default is REQUIRED or isinstance(default, int) and not isinstance(default, bool):
        fits, wanted = whole and value > 0, "a positive whole number"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits, wanted = whole or isinstance(value, float), "a number"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str), "a name"
    else:                                                                  # optional sizes have the default None
        fits, wanted = whole and value > 0, "a positive whole number or null"
    if not fits:
        raise InputError(f"{found} is {value!r}: wanted {wanted}")
    return value


def check(hf: dict, option: str, wanted) -> None:
    """Raise if an option that we do not implement is set to anything but the value at which it does nothing."""
    if hf.get(option) is not None and hf[option] != wanted:
        raise InputError(f"{option} is {hf[option]!r}: minift implements only {wanted!r} for the {hf['model_type']} family")


def activation(hf: dict, field: str, default: str) -> str:
    """Our name of the activation that `field` names."""
    name = take(hf, (field,), default)
    if name not in ACTIVATIONS:
        raise InputError(f"{field} is {name!r}: known activations are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def head_width(hidden_size: int, heads: int) -> int:
    """D = C / H for the families that do not say it; raises if it does not come out even."""
    if hidden_size % heads:
        raise InputError(f"hidden size {hidden_size} is not a multiple of the {heads} attention heads, and no head_dim is given")
    return hidden_size // heads


def special_ids(hf: dict, vocab_size: int, bos: int, eos: int, pad: int | None) -> dict:
    """bos_token_id, eos_token_id, pad_token_id as keyword arguments. An absent field has the family's default (if it is a row of
    the embedding), an explicit null is None; several ends of text are a tuple."""
    ids = {}
    for name, default in (("bos_token_id", bos), ("eos_token_id", eos), ("pad_token_id", pad)):
        value = hf.get(name, default if default is not None and default < vocab_size else None)
        ids[name] = tuple(value) if isinstance(value, list) else value
    return ids


def read_rope(hf: dict, max_positions: int) -> tuple[float, float, RopeScaling | None]:
    """(theta, rotated part of the head, scaling) from rope_theta + rope_scaling (v4) or rope_parameters (v5).

    If both are there rope_scaling counts, as in transformers 5; the kind is called "type" or "rope_type"."""
    block = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(block, dict) or any(isinstance(value, dict) for value in block.values()):
        raise InputError(f"rope_parameters is {block!r}: wanted one flat set of values for all layers")
    theta = float(take(block, ("rope_theta",), take(hf, ("rope_theta",), 10000.0)))
    part = float(take(block, ("partial_rotary_factor",), take(hf, ("partial_rotary_factor",), 1.0)))
    kind = block.get("rope_type") or block.get("type") or "default"
    if kind == "default":
        return theta, part, None
    if kind not in ("linear", "dynamic", "llama3"):
        raise InputError(f"rope type {kind!r} is not implemented: known are default, linear, dynamic and llama3")
    if "factor" not in block:
        raise InputError(f"rope type {kind!r} needs a factor; found {', '.join(sorted(block))}")
    factor = float(take(block, ("factor",), 1.0))
    trained = take(block, ("original_max_position_embeddings",), None)
    if kind == "llama3":
        low, high = float(take(block, ("low_freq_factor",), 1.0)), float(take(block, ("high_freq_factor",), 4.0))
        return theta, part, RopeScaling("llama3", factor, low, high, trained or max_positions)
    if trained not in (None, max_positions):
        raise InputError(
            f"original_max_position_embeddings is {trained} with rope type {kind!r}: transformers ignores it there and uses "
            f"max_position_embeddings ({max_positions}); remove the field to do the same"
        )
    return theta, part, RopeScaling(kind, factor)


def rope_fields(config: ModelConfig) -> dict:
    """rope_theta, rope_scaling and rope_parameters for config.json: what transformers 4 and 5 look for."""
    scaling = config.rope_scaling
    if scaling is None:
        block = None
    else:
        block = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            block["low_freq_factor"], block["high_freq_factor"] = scaling.low_freq_factor, scaling.high_freq_factor
            block["original_max_position_embeddings"] = scaling.original_max_positions or config.max_positions
    parameters = {"rope_theta": config.rope_theta, **(block or {"rope_type": "default"})}
    return {"rope_theta": config.rope_theta, "rope_scaling": block, "rope_parameters": parameters}
