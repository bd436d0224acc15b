"""A trained classifier as a folder, and what it says of texts.

    classifier.json        problem, label names, texts of a row; of a head on features also which model, pooling and prompt it reads
    head.safetensors       the head on features; the model itself stays where it is, and is checked by its fingerprint
    or a checkpoint        transformers' ...ForSequenceClassification, label names in config.json
    or an adapter          with its head (peft/head.py)

`load` takes any of them, the run folder they lie in, or a ...ForSequenceClassification from elsewhere.
Proved in tests/classify/test_classifier.py. Left out: several heads on one model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minift import folder as folders
from minift import peft
from minift.classify.features import features
from minift.classify.heads import make
from minift.classify.scores import all_scores, read
from minift.embed import fingerprint
from minift.errors import InputError
from minift.evaluate.scoring import load_scorer
from minift.files import new_folder, recover, write_text
from minift.models.folder import config_json, config_of
from minift.models.pooling import Pooling
from minift.models.sentence_folder import MODULES, read_pooling
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer
from minift.train.precision import Precision, autocast

FILE, HEAD = "classifier.json", "head.safetensors"


@dataclass
class Classifier:
    """A model that knows what its scores are for."""

    problem: str
    """single, multi or regression."""
    labels: list[str]
    """The names of the K scores; of regression one name, of the number."""
    sides: int
    """Texts of a row: 1 or 2; 0: not said, either."""
    model: Transformer
    tokenizer: Tokenizer
    max_length: int = 512
    """Of a fine-tuned model: tokens of a row that are read."""
    head: nn.Module | None = None
    """On features; None: the head is part of the model."""
    prompt: str | None = None
    """Before each text, for features."""
    precision: Precision = "fp32"

    def scores(self, texts: Sequence[str | tuple[str, ...]], cache: Path | None = None) -> Tensor:
        """(N, K): before the softmax, the sigmoid, or in the unit of the numbers. texts: one each, or tuples of two."""
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        for number, row in enumerate(rows):
            if len(row) not in ((1, 2) if not self.sides else (self.sides,)):
                raise InputError(f"row {number} has {len(row)} texts, and this classifier reads {self.sides or '1 or 2'}")
            if not all(text.strip() for text in row):
                raise InputError(f"row {number} has an empty text: there is nothing to read, leave it out")
        if not rows:
            return torch.empty(0, len(self.labels))
        if self.head is None:
            with autocast(self.precision, self.model.embed.weight.device.type):
                return all_scores(self.model, read(self.model, self.tokenizer, rows, self.max_length))
        with torch.no_grad():
            return self.head(features(self.model, self.tokenizer, rows, prompt=self.prompt, cache=cache, precision=self.precision).vectors)

    def predict(self, texts: Sequence[str | tuple[str, ...]]) -> list[dict[str, Any]]:
        """Of each row {"label", "probability", "probabilities"}, {"labels", "probabilities"} (those above one half) or {"score"}."""
        return [self.said(row) for row in self.scores(texts)]

    def said(self, scores: Tensor) -> dict[str, Any]:
        """One row's scores (K,) -> what predict says of it."""
        if self.problem == "regression":
            return {"score": scores[0].item()}
        chances = scores.softmax(0) if self.problem == "single" else scores.sigmoid()
        each = dict(zip(self.labels, chances.tolist()))
        if self.problem == "multi":
            return {"labels": [name for name, score in zip(self.labels, scores.tolist()) if score > 0], "probabilities": each}
        return {"label": self.labels[int(scores.argmax())], "probability": chances.max().item(), "probabilities": each}


def save_head(classifier: Classifier, folder: Path, head: dict[str, Any], model: str, adapter: str | None, loaded: dict[str, Any]) -> None:
    """classifier.json and head.safetensors. head: the arguments of heads.make; model, adapter: where they lie; loaded: dtype and quantize."""
    with new_folder(folder, overwrite=True) as aside:
        save_file({name: value.contiguous() for name, value in classifier.head.state_dict().items()}, aside / HEAD)
        pooling = None if classifier.model.pooling is None else asdict(classifier.model.pooling)
        made_by = {"model": model, "adapter": adapter, **loaded, "fingerprint": fingerprint(classifier.model), "pooling": pooling, "prompt": classifier.prompt}
        write_names(aside, classifier, head=head, features=made_by)


def write_names(folder: Path, classifier: Classifier, **more: Any) -> None:
    """classifier.json, in a folder that is there."""
    said = {name: getattr(classifier, name) for name in ("problem", "labels", "sides", "max_length", "precision")}
    write_text(folder / FILE, json.dumps({**said, **more}, indent=2, ensure_ascii=False) + "\n")


def load(folder: str | Path, device: torch.device | str = "cpu", base: str | None = None, dtype: torch.dtype = torch.float32) -> Classifier:
    """A run of `minift classify`, its classifier, model or adapter folder, or any checkpoint with a classifier's head.

    base: where the model lies now, if it is not where it was. Raises InputError for a folder without labels, or features of another model."""
    folder = recover(folder)
    if draws := sorted(folder.glob("shots-*/draw-0")):
        raise InputError(f"{folder} is a few-shot run: name one of its classifiers, {draws[-1]} for one")
    if not (folder / FILE).exists() and not (folder / "model.safetensors").exists():
        folder = next((folder / name for name in ("classifier", "model", "adapter") if (folder / name / FILE).exists()), folder)
    said = _said(folder)
    if "head" in said:
        return _on_features(folder, said, device, base)
    if not said and (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is an adapter without {FILE}, so its labels have no names: only an adapter of `minift classify` is a classifier")
    if not said:
        config = config_of({**config_json(folders.locate(folder)), "quantization_config": None}, folder)
        if not config.labels:
            raise InputError(f"{folder} holds no classifier: name a run of `minift classify`, or a ...ForSequenceClassification checkpoint")
        if config.problem == "regression" and config.labels > 1:
            raise InputError(f"{folder} tells {config.labels} numbers of a text, and a classifier here tells one, or labels: name another checkpoint")
        named = list(config.label_names) or [f"LABEL_{k}" for k in range(config.labels)]
        said = {"problem": config.problem or ("regression" if config.labels == 1 else "single"), "labels": named, "sides": 0, "max_length": 512}
    if (folder / "adapter_config.json").exists():
        base = _there(base or json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or "", folder)
    model, tokenizer = load_scorer(folder, dtype, device, None, base, labels=len(said["labels"]), encoders=True)
    if not model.config.label_names and "precision" in said:                        # an adapter's base has no names of its own
        model.config = replace(model.config, label_names=tuple(said["labels"]))
    model.config = replace(model.config, problem=said["problem"])
    return Classifier(said["problem"], said["labels"], said["sides"], model, tokenizer, said["max_length"], precision=said.get("precision", "fp32"))


def embedder(
    model: str, adapter: str | None, pooling: Pooling | None, dtype: str, quantize: str | None, device: torch.device | str
) -> tuple[Transformer, Tokenizer]:
    """The model that makes features, frozen. pooling: None: as the adapter's or the model's folder says."""
    made, tokenizer = folders.embedder(model, getattr(torch, dtype), device, quantize)
    if adapter is not None:
        peft.load(made, recover(adapter))
        made.pooling = read_pooling(adapter) if (Path(adapter) / MODULES).exists() else made.pooling
    made.pooling = pooling or made.pooling
    return made.eval().requires_grad_(False), tokenizer


def _on_features(folder: Path, said: dict, device: torch.device | str, base: str | None) -> Classifier:
    by = said["features"]
    near = lambda name: None if name is None else str(folder / name) if (folder / name).is_dir() else name              # a SetFit run's own model
    pooling = Pooling(**by["pooling"]) if by["pooling"] else None
    model, tokenizer = embedder(_there(base or near(by["model"]), folder), near(by["adapter"]), pooling, by["dtype"], by["quantize"], device)
    if fingerprint(model) != by["fingerprint"]:
        raise InputError(f"{folder}: its head reads features of another model than {base or by['model']} is now: name the one it was trained on (--base)")
    try:
        numbers = load_file(folder / HEAD)
        head = make(**said["head"], rows=len(numbers["features"]) if "features" in numbers else 0)
        head.load_state_dict(numbers)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / HEAD} is missing, damaged, or another head's ({' '.join(str(error).split())}): train the head again") from None
    return Classifier(said["problem"], said["labels"], said["sides"], model, tokenizer, said["max_length"], head.eval(), by["prompt"], said["precision"])


def _there(model: str, folder: Path) -> str:
    """The model that a classifier needs beside its own files."""
    if not Path(model).is_dir() and model not in folders.bundled():
        raise InputError(f"{folder} was trained on the model {model!r}, which is not there: say where it is now (--base)")
    return model


def _said(folder: Path) -> dict:
    """classifier.json; nothing if there is none."""
    if not (folder / FILE).exists():
        return {}
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / FILE} is not valid JSON: {error}") from None
    wanted = ["problem", "labels", "sides", "max_length", *(["features", "precision"] if isinstance(found, dict) and "head" in found else [])]
    if not isinstance(found, dict) or not set(wanted) <= found.keys():
        raise InputError(f"{folder / FILE} does not say all of {', '.join(wanted)}: it is damaged, or another program's")
    return found
