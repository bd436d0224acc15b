"""A reward model taken from a folder, and asked: r(prompt, answer), one number per answer.

    model, tokenizer = load_scorer("run")                    # the result of `minift reward`: run/model, or run/adapter on its base
    rewards(model, [Tree(prompt, [answer, other])])          # (A,) in the order of the trees

A whole folder is transformers' ...ForSequenceClassification. An adapter names its base, and base.json beside it says in how many bits the
base was; the score head comes with the adapter (peft/head.py), and an adapter without one is refused.
Answers to one prompt share it (data/branches.py), and a reward depends on nothing else in its batch.
Left out: several scores per answer. Proved in tests/evaluate/test_scoring.py."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minift import folder as folders
from minift import peft
from minift.data.branches import Tree, batches_of_trees, rows_of
from minift.errors import InputError
from minift.files import recover
from minift.models.encoder import Encoder
from minift.models.scorer import Scorer
from minift.quant.tensor import Scheme
from minift.tokenizer import Tokenizer


def load_scorer(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", quantize: Scheme | None = None,
    base: str | Path | None = None, labels: int = 1, encoders: bool = False,
) -> tuple[Scorer | Encoder, Tokenizer]:
    """A run of `minift reward`, a scorer's folder, or an adapter's with its head; in eval mode, and frozen.

    quantize: of an adapter's base, instead of what base.json beside it says. base: instead of the one that adapter_config.json names. encoders:
    whether one will do as well; else it is refused. Raises InputError for a language model: it gives no scores."""
    folder, open_base = recover(folder), folders.load if encoders else folders.decoder
    if not (folder / "model.safetensors").exists():
        folder = next((folder / name for name in ("model", "adapter") if (folder / name).is_dir()), folder)
    config = _json(folder / "adapter_config.json") or _json(folder / "adapter_fusion_config.json")
    if not config:
        whole = folders.locate(folder)
        if not _is_scorer(whole):
            raise InputError(f"{whole} is a language model, which gives no scores: train one with `minift reward`, or name its folder")
        model, tokenizer = open_base(whole, dtype, device, quantize, scores=labels)
        return model.requires_grad_(False), tokenizer
    named = base or config.get("base_model_name_or_path") or config.get("model_name")
    if not named:
        raise InputError(f"{folder} does not name its base model: give it (base)")
    whole = folders.locate(named)
    if not _json(whole / "config.json").get("quantization_config"):
        quantize = quantize or _json(folder / "base.json").get("quantize")
    model, tokenizer = open_base(whole, dtype, device, quantize, scores=labels)
    for mixed in sorted((folder / "mixed").iterdir()) if (folder / "mixed").is_dir() else ():     # what a fusion mixes
        peft.load(model, mixed, mixed.name)
    peft.load(model, folder)
    template = folder / "chat_template.jinja"
    if template.exists():                                                   # the one it was trained with
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return model.eval().requires_grad_(False), tokenizer


@torch.no_grad()
def rewards(model: Scorer, trees: Sequence[Tree], batch_tokens: int = 4096) -> Tensor:
    """(A,) float32 on the CPU: the reward of each answer, in the order of the trees, in eval mode. Trees of similar size are run together,
    at most batch_tokens in a batch (a larger tree alone)."""
    was_training, device = model.training, model.norm.weight.device
    model.eval()
    counts = torch.tensor([len(tree.answers) for tree in trees])
    starts = counts.cumsum(0) - counts                                      # where each tree's answers stand in the result
    out = torch.empty(int(counts.sum()))
    try:
        for chosen in batches_of_trees([tree.size for tree in trees], batch_tokens, seed=0, bucketed=True):
            found = model.rewards(rows_of([trees[i] for i in chosen], model.can_branch()).to(device)).float().cpu()
            out[torch.cat([torch.arange(counts[i]) + starts[i] for i in chosen])] = found
    finally:
        model.train(was_training)
    return out


def _is_scorer(folder: Path) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in _json(folder / "config.json").get("architectures") or [])


def _json(path: Path) -> dict:
    """What a JSON file holds; nothing if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    return found if isinstance(found, dict) else {}
