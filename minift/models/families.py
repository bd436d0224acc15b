"""Each family as a setting of ModelConfig: one function from its Hugging Face config.json, and one back.

    from_hf({"model_type": "llama", "hidden_size": 64, ...}) -> ModelConfig(family="llama", hidden_size=64, ...)
    to_hf(config)                                            -> the dict for config.json

Both spellings of transformers are read, and both are written: version 4 has torch_dtype, rope_theta and rope_scaling, version 5 has
dtype and rope_parameters. A field that is absent has the default of the family's transformers class, as transformers reads it.
An option that would change the numbers and is not implemented here is an error that names it, never ignored. What is passed over:
dropout on attention weights (attention.py says why), and fields that steer initialisation, caching or generation.
The weight names are in names.py. Proved in tests/models/test_families.py and, against transformers, tests/parity/test_families.py."""

import dataclasses

from minift.errors import InputError
from minift.models import bert_families as bert
from minift.models import gpt_families as gpt
from minift.models import llama_families as llama
from minift.models import t5_families as t5
from minift.models.config import ModelConfig
from minift.models.names import module_names as module_names

FAMILIES = {
    "gpt2": (gpt.gpt2, gpt.gpt2_back),
    "llama": (llama.llama, llama.llama_back),
    "mistral": (llama.mistral, llama.mistral_back),
    "qwen2": (llama.qwen2, llama.qwen2_back),
    "qwen3": (llama.qwen3, llama.qwen3_back),
    "falcon": (gpt.falcon, gpt.falcon_back),
    "bloom": (gpt.bloom, gpt.bloom_back),
    "gpt_neox": (gpt.gpt_neox, gpt.gpt_neox_back),
    "gemma": (llama.gemma, llama.gemma_back),
    "bert": (bert.bert, bert.bert_back),
    "roberta": (bert.roberta, bert.roberta_back),
    "xlm-roberta": (bert.xlm_roberta, bert.xlm_roberta_back),
    "distilbert": (bert.distilbert, bert.distilbert_back),
    "t5": (t5.t5, t5.t5_back),
    "mt5": (t5.mt5, t5.t5_back),
}
"""model_type -> (config.json to ModelConfig, and back)."""

INERT = {
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": None,
    "num_experts": None,
    "num_local_experts": None,
}
"""Options of any family that we do not implement -> the value at which they change nothing."""


SCORER = "ForSequenceClassification"
"""How the architecture of a scorer's folder ends."""
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
"""ModelConfig.problem -> problem_type in config.json."""


def from_hf(hf: dict) -> ModelConfig:
    """The ModelConfig of a config.json. Raises InputError naming the field it cannot honour."""
    kind = hf.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        if kind == "umt5":
            raise InputError(f"model_type is 'umt5': each of its blocks has a table of relative positions of its own, here a stack has one; known families are {known}")
        raise InputError(f"model_type is {kind!r}: known families are {known}" if kind else f"no model_type; known families are {known}")
    for option, wanted in INERT.items():
        if hf.get(option) is not None and hf[option] != wanted and not (option == "is_encoder_decoder" and kind in ("t5", "mt5")):
            raise InputError(f"{option} is {hf[option]!r}: minift does not implement it; only {wanted!r} or leaving it out will do")
    try:
        return dataclasses.replace(FAMILIES[kind][0](hf), **_labels(hf))
    except InputError:
        raise
    except ValueError as error:                                            # ModelConfig's own checks
        raise InputError(str(error)) from None


def to_hf(config: ModelConfig, dtype: str = "float32") -> dict:
    """The config.json of a ModelConfig, for transformers 4 and 5. Raises InputError if the family cannot say it."""
    if config.family not in FAMILIES:
        raise InputError(f"family is {config.family!r}: known families are {', '.join(FAMILIES)}")
    eos = config.eos_token_id
    hf = {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
        **FAMILIES[config.family][1](config),
    }
    if config.labels:
        names = {str(k): name for k, name in enumerate(config.label_names or _unnamed(config.labels))}
        hf["architectures"] = [name.replace("ForCausalLM", SCORER).replace("LMHeadModel", SCORER) for name in hf["architectures"]]
        hf |= {"num_labels": config.labels, "id2label": names, "label2id": {name: int(k) for k, name in names.items()}}
        hf |= {"problem_type": PROBLEMS[config.problem]} if config.problem else {}
    again = dataclasses.asdict(from_hf(hf))                                # the file must say exactly this model
    lost = [f"{name} {value!r}" for name, value in dataclasses.asdict(_plain(config)).items() if again[name] != value]
    if lost:
        raise InputError(f"the {config.family} family cannot express {', '.join(lost)}: choose another family or another value")
    return hf


def _labels(hf: dict) -> dict:
    """Our fields of a ...ForSequenceClassification; none for other models. K as transformers counts it: by id2label, else 2 unless num_labels says
    otherwise."""
    if not any(str(name).endswith(SCORER) for name in hf.get("architectures") or []):
        return {}
    names = hf.get("id2label")
    labels = len(names) if isinstance(names, dict) and names else hf.get("num_labels", 2)
    if not isinstance(labels, int) or isinstance(labels, bool) or labels < 1:
        raise InputError(f"num_labels is {labels!r}: wanted a positive whole number")
    named = {str(place): str(name) for place, name in names.items()} if isinstance(names, dict) else {}
    if named and (set(named) != {str(k) for k in range(labels)} or len(set(named.values())) < labels):
        raise InputError(f"id2label is {names!r:.200}: wanted a name of its own for each of 0 to {labels - 1}")
    in_order = tuple(named[str(k)] for k in range(labels)) if named else ()
    problem = next((ours for ours, theirs in PROBLEMS.items() if theirs == hf.get("problem_type")), None)
    if hf.get("problem_type") and problem is None:
        raise InputError(f"problem_type is {hf['problem_type']!r}: wanted one of {', '.join(PROBLEMS.values())}")
    return {"labels": labels, "label_names": () if in_order == _unnamed(labels) else in_order, "problem": problem}


def _unnamed(labels: int) -> tuple[str, ...]:
    """transformers' names for labels that have none."""
    return tuple(f"LABEL_{k}" for k in range(labels))


def _plain(config: ModelConfig) -> ModelConfig:
    """The same model with its redundant choices in the one form that from_hf returns."""
    windows = config.windows if any(window is not None for window in config.windows) else ()
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3" and scaling.original_max_positions is None:
        scaling = dataclasses.replace(scaling, original_max_positions=config.max_positions)
    if scaling is not None and scaling.kind != "llama3":                   # the other kinds do not read these
        trained = None if scaling.original_max_positions == config.max_positions else scaling.original_max_positions
        scaling = dataclasses.replace(scaling, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=trained)
    rotated = None if config.rope_dim == config.head_dim else config.rope_dim
    bare = config.top == "none" and config.family in ("bert", "roberta", "xlm-roberta")      # whether there is a pooler, the weights say
    top = "pooler" if bare else config.top
    names = () if config.label_names == _unnamed(config.labels) else config.label_names
    return dataclasses.replace(config, label_names=names, top=top, windows=windows, rope_scaling=scaling, rope_dim=rotated)
