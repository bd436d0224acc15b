"""A model and its tokenizer as one thing: a Hugging Face folder, or the small model that comes with minift.

    model, tokenizer = load("base")                 # the bundled docstring model
    model, tokenizer = load("path/to/checkpoint")   # config.json, *.safetensors and tokenizer files; weights may be quantized
    model, tokenizer = load("base", quantize="nf4") # its linears in 4 bits, quantized as they are read
    save(model, tokenizer, "new-folder")
    model, tokenizer = load("encoder-folder")       # BERT's kin; how embeddings are made is in model.pooling (models/pooling.py)
    model, tokenizer = load("t5-folder")            # an EncoderDecoder (models/encoder_decoder.py)

Proved in tests/test_folder.py."""

from pathlib import Path

import torch

from minift import tokenizer as tokenizers
from minift.errors import InputError
from minift.files import new_folder, recover
from minift.models.config import ModelConfig
from minift.models.encoder import Encoder
from minift.models.families import SCORER
from minift.models.folder import config_json, config_of
from minift.models.scorer import Scorer
from minift.models.sentence_folder import read_pooling, write_pooling
from minift.models.transformer import Transformer
from minift.quant.folder import read_model, write_model
from minift.quant.linear import QuantizedLinear
from minift.quant.model import plain
from minift.quant.tensor import Scheme
from minift.tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"


def bundled() -> list[str]:
    """Names `load` knows without a path."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.json"))


def locate(name: str | Path) -> Path:
    """The folder a name or path stands for; a folder that exists wins over a bundled name."""
    path = recover(name)
    if path.is_dir():
        if (path / "metrics.jsonl").exists():
            raise InputError(f"{path} is the folder of a run, not a model: name its subfolder 'model', or pass 'adapter' with --adapter")
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            raise InputError(f"{path} holds an adapter, not a model: name the base model as the model and pass this folder with --adapter")
        return path
    if str(name) in bundled():
        return ASSETS / str(name)
    raise InputError(f"no such folder: {path} (bundled models: {', '.join(bundled()) or 'none'})")


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", quantize: Scheme | None = None,
    scores: int = 0, seed: int = 0,
) -> tuple[Transformer, Tokenizer]:
    """Read a checkpoint folder, or a bundled model by name. The tokenizer must not be larger than the embedding.

    quantize: "nf4", "fp4", "int8" or "int4" for the linears of a folder with full weights; head, embeddings, norms and biases are in dtype.
    scores: K for a model with K scores (models/scorer.py, encoder.py): the folder's own, or the body of a model and a new head drawn from `seed`."""
    folder = locate(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}): cpu always can") from None
    tokenizer = tokenizers.load(folder)
    model = read_model(folder, dtype, device, quantize)
    tokenizers.check_fits(tokenizer, model.config.vocab_size)
    model.pooling = read_pooling(folder)
    if model.config.labels and not scores:
        raise InputError(f"{folder} holds a reward model or a classifier (its config.json says ...{SCORER}), and a language model is wanted here")
    if scores and model.config.decoder_layers:
        raise InputError(f"{folder} is an encoder-decoder, which writes and gives no scores: name a decoder or an encoder")
    if scores:
        made = Scorer if model.config.causal else Encoder
        model = model if model.config.labels else made.on(model, scores, seed)
        if model.config.labels != scores:
            raise InputError(f"{folder} gives {model.config.labels} scores, and {scores} are wanted here: name another folder")
        model.score.float()                                                 # a head is small, and two close scores are no one number
        if getattr(model, "pooler", None) is not None:                      # it is trained with the head, so it cannot stay in 4 bits
            model.pooler = (plain(model.pooler) if isinstance(model.pooler, QuantizedLinear) else model.pooler).float()
    return model, tokenizer


def described(name: str | Path) -> ModelConfig | None:
    """What the folder's config.json says of its model; None if there is none."""
    folder = locate(name)
    return config_of({**config_json(folder), "quantization_config": None}, folder) if (folder / "config.json").exists() else None


def decoder(
    name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", quantize: Scheme | None = None,
    scores: int = 0, seed: int = 0, pairs: bool = False,
) -> tuple[Transformer, Tokenizer]:
    """`load`, for work that writes texts or scores them token by token: raises InputError for an encoder, and for an encoder-decoder unless `pairs`."""
    folder, config = locate(name), described(name)
    if config is not None and config.decoder_layers and not pairs:
        raise InputError(f"{folder} is an encoder-decoder ({config.family}): it answers a prompt that it reads apart, and a decoder that goes on with a text is "
                         "wanted here. What an encoder-decoder can do: minift sft, evaluate, generate; its encoder: minift embed, encode, search")
    if config is not None and not config.causal:
        raise InputError(f"{folder} is an encoder: it reads texts and writes none, and a decoder is wanted here. What an encoder can do: minift embed, encode, search")
    return load(folder, dtype, device, quantize, scores, seed)


def embedder(
    name: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", quantize: Scheme | None = None
) -> tuple[Transformer, Tokenizer]:
    """`load`, for work that makes vectors of texts: of an encoder-decoder, its encoder."""
    model, tokenizer = load(name, dtype, device, quantize)
    if model.config.decoder_layers:
        model.encoder.pooling = model.pooling
    return (model.encoder if model.config.decoder_layers else model), tokenizer


def save(model: Transformer, tokenizer: Tokenizer, folder: str | Path, overwrite: bool = False) -> None:
    """Write a folder that transformers and `load` can read: config.json, model.safetensors and the tokenizer's files; where the model says how
    its embeddings are made, sentence-transformers' files too.

    Quantized linears are written as they are: nf4, fp4 and int8 as bitsandbytes writes them, int4 in minift's own form."""
    with new_folder(folder, overwrite) as aside:
        write_model(model, aside)
        tokenizer.save(aside)
        if model.pooling is not None:
            write_pooling(model.pooling, model.config.hidden_size, aside)
