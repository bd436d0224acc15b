"""Checkpoint folders: a Transformer read from, and written to, Hugging Face's config.json + model.safetensors.

    model = read_model("folder", dtype=torch.bfloat16)       # any of the families, one file or shards, any float dtype
    write_model(model, "new-folder")                         # transformers loads it: AutoModelForCausalLM.from_pretrained("new-folder")

Reading: the model is built without memory (torch's meta device), each tensor is allocated once in the wanted dtype and filled from the
memory-mapped file in slices of at most 32 MB, so the peak is the model itself plus one slice. Tensors are copied out of the mapping:
one that stayed in it would change, or kill the process, when the file does. Every stored tensor must be wanted and every wanted one
stored, in its shape; what does not fit is an error that lists it. Pickled weights are never opened: a pickle can run any program.
Left out: other formats, weights that are already quantized. Proved in tests/models/test_folder.py and tests/parity/test_families.py."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minift.errors import InputError
from minift.files import new_folder, write_text
from minift.models.config import ModelConfig
from minift.models.families import from_hf, to_hf
from minift.models.names import BUFFERS, is_transposed, module_names
from minift.models.transformer import Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SLICE_BYTES = 32 * 2**20
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The stored dtypes we read -> bytes per number."""


class Stored(NamedTuple):
    """One tensor of a file, as its header describes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Wanted(NamedTuple):
    """One parameter of the model: its name in the checkpoint, its shape there, and whether that is ours transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool


def read_model(folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """The model of a checkpoint folder, in eval mode, its weights cast to `dtype` on `device`.

    Raises InputError for a folder that is missing, no checkpoint, pickled, damaged, or does not fit its config.json."""
    folder = Path(folder)
    config = read_config(folder)
    model = _skeleton(config)
    for ours, (source, transposed) in _match(config, model, stored(folder), folder).items():
        _assign(model, ours, _read(source, transposed, dtype, device))
    if config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model.eval()


def read_config(folder: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder."""
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name the checkpoint folder that holds config.json and {WEIGHTS}")
    path = folder / "config.json"
    if not path.exists():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} is not a checkpoint: it has no config.json (found: {found})")
    try:
        return from_hf(_read_json(path))
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def write_model(model: Transformer, folder: str | Path, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False) -> None:
    """Write config.json and model.safetensors, or shards of at most max_shard_bytes and an index; a tied head is stored once.

    The folder appears whole or not at all (minift.files.new_folder); if it has content, `overwrite` must be given.
    Raises InputError if the model holds other tensors than its config's, as it does with an adapter attached."""
    tensors = _to_store(model)
    config = to_hf(model.config, str(model.embed.weight.dtype).removeprefix("torch."))
    with new_folder(folder, overwrite) as aside:
        write_text(aside / "config.json", json.dumps(config, indent=2) + "\n")
        shards = _shards(tensors, max_shard_bytes)
        if len(shards) == 1:
            _save(shards[0], aside / WEIGHTS)
            return
        weight_map = {}
        for number, shard in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _save(shard, aside / file)
            weight_map.update(dict.fromkeys(shard, file))
        sizes = {
            "total_size": sum(tensor.nbytes for tensor in tensors.values()),
            "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
        }
        write_text(aside / INDEX, json.dumps({"metadata": sizes, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder's weight files by name, from the headers alone."""
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise InputError(
                f"{folder} holds pickled weights only ({', '.join(pickled[:3])}): opening a pickle can run any program, so minift does "
                "not. If you trust them, convert: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) "
                "with transformers, which writes model.safetensors"
            )
        raise InputError(f"{folder} has a config.json but no weights: wanted {WEIGHTS} or {INDEX}")
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
        raise InputError(f"{folder / INDEX} has no weight_map from tensor names to files of this folder: download it again")
    tensors = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).exists():
            raise InputError(f"{folder / file} is missing, but {INDEX} names it: download it again")
        for name, tensor in _header(folder / file).items():
            if weight_map.get(name) != file:
                raise InputError(f"{folder / file} holds {name}, but {INDEX} puts it in {weight_map.get(name)}: files of two checkpoints?")
            tensors[name] = tensor
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise InputError(f"{folder / weight_map[absent[0]]} lacks {_some(absent)}, which {INDEX} puts there: download it again")
    return tensors


def _header(file: Path) -> dict[str, Stored]:
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                tensors[name] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is cut short or damaged ({error}): download or copy it again") from None
    return tensors


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: wanted a JSON object")
    return content


def _skeleton(config: ModelConfig) -> Transformer:
    with torch.device("meta"):                                             # shapes without memory
        return Transformer(config)


def _wanted(config: ModelConfig, model: Transformer) -> dict[str, Wanted]:
    """Our parameter name -> how the checkpoint stores it; a tied head is one parameter, called embed."""
    names, wanted = module_names(config), {}
    for ours, parameter in model.named_parameters():
        module, _, kind = ours.rpartition(".")
        turned = kind == "weight" and is_transposed(config, module)
        shape = tuple(parameter.shape)
        wanted[ours] = Wanted(f"{names[module]}.{kind}", shape[::-1] if turned else shape, turned)
    return wanted


def _match(config: ModelConfig, model: Transformer, held: dict[str, Stored], folder: Path) -> dict[str, tuple[Stored, bool]]:
    """Our parameter name -> (the stored tensor, whether to transpose it). Raises InputError listing all that does not fit."""
    wanted = _wanted(config, model)
    known = {want.name for want in wanted.values()}
    head, embed = (f"{module_names(config)[module]}.weight" for module in ("head", "embed"))
    base = embed.partition(".")[0] + "."                                   # saved from the bare model: without "transformer." / "model."
    found = {}
    for name, tensor in held.items():
        if name.endswith(BUFFERS):
            continue
        full = base + name if name not in known and name != head and base + name in known | {head} else name
        if full in found:
            raise InputError(f"{tensor.file}: {name} is there twice, with and without {base!r}")
        found[full] = tensor
    if config.tie_embeddings and head in found:                            # stored under either name, or both
        if embed in found and not _same(found[embed], found[head]):
            raise InputError(
                f"{folder}: config.json ties {head} to {embed}, but the two are stored with different values: set "
                "tie_word_embeddings to false in config.json to keep both"
            )
        found[embed] = found.pop(head) if embed not in found else found[embed]
        found.pop(head, None)
    missing = [name for name in known if name not in found]
    extra = [name for name in found if name not in known]
    bent = [w for w in wanted.values() if w.name in found and found[w.name].shape != w.shape]
    odd = [tensor for name, tensor in found.items() if name in known and tensor.dtype not in FLOATS]
    complaints = []
    if missing:
        complaints.append(f"missing: {_some(missing)}")
    if missing == [head] and embed in found:
        complaints.append("if the head is the embedding matrix, set tie_word_embeddings to true")
    if extra:
        complaints.append(f"left over: {_some(extra)}")
    if bent:
        complaints.append(f"wrong shape: {_some([f'{w.name} is {found[w.name].shape}, wanted {w.shape}' for w in bent])}")
    if odd:
        complaints.append(f"not a float: {_some([f'{t.name} is {t.dtype}' for t in odd])}; wanted {', '.join(FLOATS)}")
    if complaints:
        raise InputError(f"{folder}: the weights do not fit config.json (family {config.family}); " + "; ".join(complaints))
    return {ours: (found[want.name], want.transposed) for ours, want in wanted.items()}


def _some(names: list[str], most: int = 6) -> str:
    """A list for an error text, in the order of the blocks, cut after `most`."""
    names = sorted(names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)])
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _slices(tensor: Stored):
    """The tensor's rows in pieces of at most 32 MB: (first row, values).

    The file is opened for each piece and closed after it, because the pages of a mapping count as this process's memory
    as long as the mapping lives."""
    rows = tensor.shape[0] if tensor.shape else 1
    width = FLOATS.get(tensor.dtype, 8)
    for size in tensor.shape[1:]:
        width *= size
    step = max(1, SLICE_BYTES // max(1, width))
    for first in range(0, rows, step):
        with safe_open(tensor.file, framework="pt") as opened:
            yield first, opened.get_slice(tensor.name)[first : first + step]


def _read(source: Stored, transposed: bool, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    shape = source.shape[::-1] if transposed else source.shape
    target = torch.empty(shape, dtype=dtype, device=device)
    rows = target.T if transposed else target                              # a view with the file's layout
    for first, values in _slices(source):
        rows[first : first + len(values)] = values                         # casts, transposes and moves
    return target


def _same(one: Stored, other: Stored) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(_slices(one), _slices(other)))


def _assign(model: Transformer, ours: str, tensor: Tensor) -> None:
    path, _, kind = ours.rpartition(".")
    setattr(model.get_submodule(path), kind, nn.Parameter(tensor))


def _to_store(model: Transformer) -> dict[str, Tensor]:
    """The checkpoint's names -> tensors, in the checkpoint's layout."""
    wanted = _wanted(model.config, _skeleton(model.config))
    have = dict(model.named_parameters())
    extra, missing = [name for name in have if name not in wanted], [name for name in wanted if name not in have]
    if extra or missing:
        raise InputError(
            f"this model is not what its config describes (too many: {_some(extra) or 'none'}; missing: {_some(missing) or 'none'}): "
            "merge or remove adapters, dequantize, or mend model.config (tie_embeddings?) before writing it"
        )
    tensors = {}
    for ours, want in wanted.items():
        values = have[ours].detach()
        values = values.T if want.transposed else values
        if tuple(values.shape) != want.shape:
            raise InputError(f"{ours} is {tuple(values.shape)}, but config wants {want.shape} as {want.name}: mend model.config")
        tensors[want.name] = values.contiguous().cpu()
    return tensors


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error}): is the disk full? Nothing was replaced") from None
    file.chmod((file.parent / "config.json").stat().st_mode)               # safetensors makes files that only their owner can read


def _shards(tensors: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Fill shards in order; a tensor larger than `most` gets one for itself."""
    shards, used = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > most:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    return shards
