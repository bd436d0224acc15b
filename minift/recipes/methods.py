"""The methods by name, as --method takes them: which config, with which defaults, at which learning rate; and how one is put on a model.

`minift methods` prints them; `minift methods NAME` one with all its options. This module is that verb too. Options that several methods share have flags of their own
(--rank, --alpha, --lora-dropout, --targets, --last-n); every other field of a method's config is set with --options FIELD VALUE.
Proved in tests/recipes/test_methods.py."""

import dataclasses
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console

from minift import peft
from minift.errors import InputError
from minift.recipes.report import terminal_table
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entry:
    """One method."""

    config: type
    """Its config dataclass in minift/peft/."""
    idea: str
    """What trains, in a line."""
    lr: float
    """Peak learning rate when none is given, of the size the papers use; a model as small as the bundled one wants 4 to 16 times as much
    (`minift compare` searches)."""
    paper: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that differ from the config's own defaults under this name."""
    whole: bool = False
    """The result is a whole checkpoint, not an adapter."""

    def fields(self) -> dict[str, Any]:
        """Every option with its default; `...` where there is none."""
        out = {}
        for field in dataclasses.fields(self.config):
            factory = field.default_factory
            out[field.name] = factory() if factory is not dataclasses.MISSING else ... if field.default is dataclasses.MISSING else field.default
        return {**out, **self.defaults}


KEPT = dict(keep_base=False)
METHODS = {
    "full": Entry(peft.Full, "every weight of the model", 2e-4, "the baseline", KEPT, whole=True),
    "last": Entry(peft.LastLayers, "the last blocks, the final norm and an untied head", 1e-3, "Houlsby et al. 2019, section 3.4", KEPT, whole=True),
    "head": Entry(peft.Head, "the output head on a frozen body", 1e-3, "feature extraction", whole=True),
    "tokens": Entry(peft.NewTokens, "the embeddings of a few tokens", 3e-3, "new words only"),
    "lora": Entry(peft.LoRA, "a low-rank change to every linear", 5e-4, "Hu et al. 2021, arXiv:2106.09685"),
    "rslora": Entry(peft.LoRA, "LoRA, scaled by alpha / sqrt(r)", 5e-4, "Kalajdzievski 2023, arXiv:2312.03732", dict(rslora=True)),
    "lora+": Entry(peft.LoRA, "LoRA whose B learns 16 times as fast", 2e-4, "Hayou et al. 2024, arXiv:2402.12354", dict(lr_ratio=16.0)),
    "dora": Entry(peft.DoRA, "LoRA on the direction of each row, and the row's length", 5e-4, "Liu et al. 2024, arXiv:2402.09353"),
    "pissa": Entry(peft.PiSSA, "LoRA that starts from the weight's largest singular vectors", 5e-4, "Meng et al. 2024, arXiv:2404.02948"),
    "loftq": Entry(peft.LoftQ, "LoRA that starts from what rounding the base to 4 bits lost", 5e-4, "Li et al. 2023, arXiv:2310.08659"),
    "adalora": Entry(peft.AdaLoRA, "a change P Lambda Q whose ranks are shared out while training", 2e-3, "Zhang et al. 2023, arXiv:2303.10512"),
    "vera": Entry(peft.VeRA, "scales between random matrices that all linears share", 1e-2, "Kopiczko et al. 2023, arXiv:2310.11454"),
    "ia3": Entry(peft.IA3, "scales on keys, values and the MLP's inner numbers", 1e-2, "Liu et al. 2022, arXiv:2205.05638"),
    "bitfit": Entry(peft.BitFit, "the biases", 1e-3, "Ben Zaken et al. 2021, arXiv:2106.10199"),
    "layernorm": Entry(peft.LayerNormTuning, "the gains of the norms", 3e-3, "Zhao et al. 2023, arXiv:2312.11420"),
    "houlsby": Entry(peft.Houlsby, "two bottleneck adapters per block", 1e-3, "Houlsby et al. 2019, arXiv:1902.00751"),
    "pfeiffer": Entry(peft.Pfeiffer, "one bottleneck adapter per block", 1e-3, "Pfeiffer et al. 2020, arXiv:2005.00247"),
    "parallel": Entry(peft.Parallel, "a bottleneck adapter beside each MLP", 1e-3, "He et al. 2021, arXiv:2110.04366"),
    "fusion": Entry(peft.AdapterFusion, "a mixture of trained Houlsby or Pfeiffer adapters", 1e-3, "Pfeiffer et al. 2020, arXiv:2005.00247"),
    "loreft": Entry(peft.LoReFT, "a low-rank edit of the hidden states of a text's first tokens", 2e-3, "Wu et al. 2024, arXiv:2404.03592"),
    "prefix": Entry(peft.Prefix, "keys and values of virtual tokens in every layer, through an MLP", 1e-3, "Li and Liang 2021, arXiv:2101.00190"),
    "prompt": Entry(peft.Prompt, "embeddings of virtual tokens in front of the text", 3e-2, "Lester et al. 2021, arXiv:2104.08691"),
    "p-tuning": Entry(peft.PTuning, "virtual tokens made by a small LSTM or MLP", 1e-3, "Liu et al. 2021, arXiv:2103.10385"),
    "p-tuning-v2": Entry(peft.PTuningV2, "virtual tokens in every layer, without an MLP", 1e-2, "Liu et al. 2021, arXiv:2110.07602"),
}
"""--method NAME -> entry."""

FLAGS = {"rank": "rank", "alpha": "alpha", "lora_dropout": "dropout", "targets": "targets", "last_n": "n"}
"""Fields of sft's config -> the method's field they set."""


def method_config(name: str, flags: Mapping[str, Any], options: Mapping[str, str], tokenizer: Tokenizer | None = None):
    """The config of method `name`. `flags`: sft's fields of FLAGS that were given; `options`: FIELD VALUE pairs as text.

    Raises InputError for an option that this method does not have: it would be without effect."""
    entry = METHODS[name]
    known, hints = entry.fields(), get_type_hints(entry.config)
    chosen = dict(entry.defaults)
    for flag, value in flags.items():
        if FLAGS[flag] not in known:
            owners = [other for other in METHODS if FLAGS[flag] in METHODS[other].fields()]
            text = f"--{flag.replace('_', '-')} is an option of --method {', '.join(owners)}, not of {name}: leave it out"
            raise InputError(text)
        chosen[FLAGS[flag]] = value
    for key, text in options.items():
        field = key.replace("-", "_")
        if field in ("init_text", "tokens") and tokenizer is not None and (target := _ids_field(known)):
            chosen[target] = tuple(tokenizer.encode(text, add_special_tokens=False))
            chosen |= {"init": "text"} if "init" in known else {}
        elif field not in known:
            raise InputError(f"--options {key}: the method {name} has no such option; it has {', '.join(sorted(known)) or 'none'}")
        elif field in (FLAGS[flag] for flag in flags):
            raise InputError(f"--options {key} and the flag for it were both given: leave one out")
        else:
            chosen[field] = parse(text, hints[field], f"--options {key}")
    missing = [field for field, value in known.items() if value is ... and field not in chosen]
    if missing:
        raise InputError(f"--method {name} needs --options {missing[0]} VALUE")
    return entry.config(**chosen)


def parse(text: str, kind: Any, where: str) -> Any:
    """`text` as a value of type `kind`: bool, int, float, str, one of a Literal, a tuple or list (comma-separated) or a dict (a=1,b=2)."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in inside and text.lower() == "none":
            return None
        several = [k for k in inside if get_origin(k) in (tuple, list)]
        if str in inside and several:                                     # targets: names, "all-...", or a regular expression
            numbers = get_args(several[0])[0] is int
            one = not text.replace(",", "").replace(" ", "").isdigit() if numbers else text.startswith("all-") or bool(set(text) & set("*|\\[(+?^$"))
            return text if one else parse(text, several[0], where)
        return parse(text, next(k for k in inside if k is not type(None)), where)
    if origin in (tuple, list):
        return origin(parse(part.strip(), inside[0], where) for part in text.split(",") if part.strip())
    if origin is dict:
        pairs = (part.rpartition("=") for part in text.split(","))
        return {key.strip(): parse(value, inside[1], where) for key, _, value in pairs}
    if origin is Literal:
        if text not in map(str, inside):
            raise InputError(f"{where} is {text!r}: choose one of {', '.join(map(str, inside))}")
        return next(value for value in inside if str(value) == text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{where} is {text!r}: wanted true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise InputError(f"{where} is {text!r}: wanted {'a whole number' if kind is int else 'a number'}") from None
    return text


def _ids_field(known: Mapping[str, Any]) -> str | None:
    """The field of a method that takes token ids, which the command line lets be given as text."""
    return next((field for field in ("init_ids", "init_tokens", "ids") if field in known), None)


def field_docs(config: type) -> dict[str, str]:
    """Field -> the docstring under it, read from the source."""
    docs: dict[str, str] = {}
    for home in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        for name, doc in re.findall(r'\n    (\w+): [^\n]+\n    """(.*?)"""', inspect.getsource(home), re.S):
            docs[name] = " ".join(doc.split())
    return docs



@dataclass(frozen=True, kw_only=True)
class Config:
    """The fine-tuning methods: what each one trains, and what it takes."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """One method, with all its options; empty: all methods."""


def run(config: Config) -> None:
    console = Console()
    if not config.name:
        rows = [[name, entry.idea, entry.paper, f"{entry.lr:g}"] for name, entry in METHODS.items()]
        console.print(terminal_table("minift sft --method NAME", ["name", "what trains", "paper", "learning rate"], rows, left=3))
        console.print("`minift methods NAME` lists a method's options.")
        return
    if config.name not in METHODS:
        near = ", ".join(get_close_matches(config.name, METHODS, n=3))
        raise InputError(f"there is no method {config.name!r}{'; near names: ' + near if near else ''}. There are {', '.join(METHODS)}")
    entry, docs = METHODS[config.name], field_docs(METHODS[config.name].config)
    console.print(f"{config.name}: {entry.idea} ({entry.paper})\n", highlight=False)
    flags = {field: "--" + flag.replace("_", "-") for flag, field in FLAGS.items()}
    rows = []
    for field, default in entry.fields().items():
        rows.append([flags.get(field, f"--options {field}"), "needed" if default is ... else repr(default), docs.get(field, "")])
    if ids := _ids_field(entry.fields()):
        rows.append(["--options init_text" if ids != "ids" else "--options tokens", "", f"the same as {ids}, as text"])
    if config.name == "fusion":
        rows = [["--options adapters", "needed", "DIR,DIR: folders of the adapters to mix"], *rows[1:]]
    console.print(terminal_table(f"minift sft --method {config.name} --lr {entry.lr:g} ...", ["option", "default", ""], rows, left=3))
