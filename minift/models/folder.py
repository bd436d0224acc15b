"""Checkpoint folders: a Transformer read from, and written to, Hugging Face's config.json + model.safetensors.

    model = read_model("folder", dtype=torch.bfloat16)       # any of the families, one file or shards, any float dtype
    write_model(model, "new-folder")                         # transformers loads it: AutoModelForCausalLM.from_pretrained("new-folder")

Reading: the model is built without memory (torch's meta device), each tensor is allocated once in the wanted dtype and filled from the
file in slices (stored.py), so the peak is the model itself plus one slice. Every stored tensor must be wanted and every wanted one
stored, in its shape; what does not fit is an error that lists it.
Left out: other formats; quantized weights, which quant/folder.py reads and writes with what is here.
Proved in tests/models/test_folder.py and tests/parity/test_families.py."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from minift.errors import InputError
from minift.files import new_folder, write_text
from minift.models.config import ModelConfig
from minift.models.encoder import Encoder
from minift.models.encoder_decoder import EncoderDecoder
from minift.models.families import from_hf, to_hf
from minift.models.names import BUFFERS, COPIES, SPARE, is_transposed, module_names, table
from minift.models.scorer import Scorer
from minift.models.stored import FLOATS, INDEX, WEIGHTS, Stored, read, read_json, same, some, stored
from minift.models.transformer import Transformer


class Wanted(NamedTuple):
    """One parameter of the model: its name in the checkpoint, its shape there, and whether that is ours transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool


def read_model(folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """The model of a checkpoint folder, in eval mode, its weights cast to `dtype` on `device`.

    Raises InputError for a folder that is missing, no checkpoint, pickled, damaged, or does not fit its config.json."""
    folder = Path(folder)
    config, held = read_config(folder), stored(folder)
    config = as_stored(config, held)
    model = skeleton(config)
    for ours, (source, transposed) in match(config, wanted_tensors(config, model), held, folder).items():
        assign(model, ours, read(source, transposed, dtype, device))
    tie(model)
    return model.eval()


def read_config(folder: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder. Raises InputError if its weights are quantized."""
    hf = config_json(folder)
    if hf.get("quantization_config"):
        raise InputError(
            f"{Path(folder) / 'config.json'}: the weights are quantized, and full ones are wanted here. minift.load reads them as they are; "
            "minift.quant.dequantize_model and minift.save make a folder of full ones"
        )
    return config_of(hf, folder)


def config_json(folder: str | Path) -> dict:
    """The content of config.json."""
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name the checkpoint folder that holds config.json and {WEIGHTS}")
    path = folder / "config.json"
    if not path.exists():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} is not a checkpoint: it has no config.json (found: {found})")
    return read_json(path)


def config_of(hf: dict, folder: str | Path) -> ModelConfig:
    """from_hf, whose errors name the file."""
    try:
        return from_hf(hf)
    except InputError as error:
        raise InputError(f"{Path(folder) / 'config.json'}: {error}") from None


def write_model(model: Transformer, folder: str | Path, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False) -> None:
    """Write config.json and model.safetensors, or shards of at most max_shard_bytes and an index; a tied head is stored once.

    The folder appears whole or not at all (minift.files.new_folder); if it has content, `overwrite` must be given.
    Raises InputError if the model holds other tensors than its config's, as it does with an adapter attached."""
    config = to_hf(model.config, str(model.embed.weight.dtype).removeprefix("torch."))
    write_tensors(config, to_store(model), folder, max_shard_bytes, overwrite)


def write_tensors(config: dict, tensors: dict[str, Tensor], folder: str | Path, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False) -> None:
    """write_model, of the content of config.json and the tensors by their names in the file."""
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


def as_stored(config: ModelConfig, held: dict[str, Stored]) -> ModelConfig:
    """The config, of an encoder without a task that was saved without its pooler: without one; of an encoder-decoder: with a head of its own if one is
    stored that is not the embedding."""
    if config.decoder_layers:
        head, embed = held.get("lm_head.weight"), next((held[name] for name in ("shared.weight", *COPIES[config.family]) if name in held), None)
        return dataclasses.replace(config, tie_embeddings=head is None or embed is None or same(head, embed))
    bare = config.top == "pooler" and not config.labels and not any(name.endswith("pooler.dense.weight") for name in held)
    return dataclasses.replace(config, top="none") if bare else config


def skeleton(config: ModelConfig) -> Transformer:
    """The model with shapes and without memory: an EncoderDecoder, an Encoder, a Scorer if a decoder's config has labels, or a Transformer."""
    with torch.device("meta"):
        if config.decoder_layers:
            return EncoderDecoder(config)
        return Encoder(config) if not config.causal else Scorer(config) if config.labels else Transformer(config)


def tie(model: Transformer) -> None:
    """A tied head is the embedding; a scorer has no such head, nor an encoder that says no tokens."""
    if model.config.tie_embeddings and not model.config.labels and model.config.top in ("next", "mask"):
        model.head.weight = model.embed.weight


def wanted_tensors(config: ModelConfig, model: Transformer) -> dict[str, Wanted]:
    """Our parameter name -> how the checkpoint stores it; a tied head is one parameter, called embed."""
    names, wanted = module_names(config), {}
    for ours, parameter in model.named_parameters():
        module, _, kind = ours.rpartition(".")
        turned = kind == "weight" and is_transposed(config, module)
        shape = tuple(parameter.shape)
        wanted[ours] = Wanted(f"{names[module]}.{kind}", shape[::-1] if turned else shape, turned)
    return wanted


def match(config: ModelConfig, wanted: dict[str, Wanted], held: dict[str, Stored], folder: Path) -> dict[str, tuple[Stored, bool]]:
    """Our parameter name -> (the stored tensor, whether to transpose it). Raises InputError listing all that does not fit."""
    known = {want.name for want in wanted.values()}
    head, embed = (f"{table(config)[module]}.weight" for module in ("head", "embed"))
    base = embed.partition(".")[0] + "."                                   # saved from the bare model: without "transformer." / "model."
    spare, found = SPARE.get(config.family, ()), {}
    for name, tensor in held.items():
        if name.endswith(BUFFERS):
            continue
        if name in COPIES.get(config.family, ()):
            first = held.get(embed, tensor)
            if not same(first, tensor):
                raise InputError(f"{tensor.file}: {name} and {embed} are one matrix in minift, and are stored with different values")
            found.setdefault(embed, first)
            continue
        if not config.causal:                                              # the first BERTs call their norms' weights by these letters
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if not {name, base + name} & known and (name.startswith(spare) or (base + name).startswith(spare)):
                continue
        full = base + name if name not in known and name != head and base + name in known | {head} else name
        if full in found and found[full] is not tensor:
            raise InputError(f"{tensor.file}: {name} is there twice, with and without {base!r}")
        found[full] = tensor
    if config.tie_embeddings and not config.labels and head in found:                            # stored under either name, or both
        if embed in found and not same(found[embed], found[head]):
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
        complaints.append(f"missing: {some(missing)}")
    if missing == [head] and embed in found:
        complaints.append("if the head is the embedding matrix, set tie_word_embeddings to true")
    if extra:
        complaints.append(f"left over: {some(extra)}")
    if bent:
        complaints.append(f"wrong shape: {some([f'{w.name} is {found[w.name].shape}, wanted {w.shape}' for w in bent])}")
    if odd:
        complaints.append(f"not a float: {some([f'{t.name} is {t.dtype}' for t in odd])}; wanted {', '.join(FLOATS)}")
    if complaints:
        raise InputError(f"{folder}: the weights do not fit config.json (family {config.family}); " + "; ".join(complaints))
    return {ours: (found[want.name], want.transposed) for ours, want in wanted.items()}


def assign(model: Transformer, ours: str, tensor: Tensor) -> None:
    """Set the parameter called `ours`."""
    path, _, kind = ours.rpartition(".")
    setattr(model.get_submodule(path), kind, nn.Parameter(tensor))


def to_store(model: Transformer, apart: Collection[str] = ()) -> dict[str, Tensor]:
    """The checkpoint's names -> tensors, in the checkpoint's layout; without the parameters in `apart`, which are stored in another form."""
    wanted = {name: want for name, want in wanted_tensors(model.config, skeleton(model.config)).items() if name not in apart}
    have = dict(model.named_parameters())
    extra, missing = [name for name in have if name not in wanted], [name for name in wanted if name not in have]
    if extra or missing:
        raise InputError(
            f"this model is not what its config describes (too many: {some(extra) or 'none'}; missing: {some(missing) or 'none'}): "
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
