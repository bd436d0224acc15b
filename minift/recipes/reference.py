"""The reference of preference learning: what the model said before, or what another model says, of every answer.

    ref_a = sum over the tokens t of answer a of log p_ref(token_t | prompt, answer so far)          (A,)

It never changes, so it is computed once, before the first step, and kept in the run folder (reference.safetensors): no second model in
memory, no second forward pass in each step, whatever trains. The same numbers live, with the adapters off at every step, are there for
those who want to see it (--live-reference). The file knows which answers it is for; another data set's is refused.
Proved in tests/recipes/test_dpo.py (trap 18)."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minift import folder as folders
from minift import peft
from minift.data.branches import Tree, batches_of_trees, rows_of
from minift.errors import InputError
from minift.losses.logprobs import per_answer
from minift.models.block import Block
from minift.models.transformer import Transformer
from minift.peft.attach import names, state_of
from minift.train.answers import logprobs_of_answers
from minift.train.precision import Precision, autocast

FILE = "reference.safetensors"


@torch.no_grad()
def sums(model: Transformer, trees: Sequence[Tree], tokens: int, precision: Precision = "fp32") -> Tensor:
    """(A,) float32: the log-probability of each answer of each tree, in order, in micro-batches of about `tokens` tokens."""
    device, was_training = model.norm.weight.device, model.training
    model.eval()                                                                        # dropout would make another model (trap 18)
    first = torch.tensor([0, *(len(tree.answers) for tree in trees)]).cumsum(0)         # of each tree, in (A,)
    found = torch.empty(int(first[-1]))
    try:
        for batch in batches_of_trees([tree.size for tree in trees], tokens, seed=0, bucketed=True):
            rows = rows_of([trees[i] for i in batch], model.can_branch()).to(device)
            with autocast(precision, device.type):
                logprobs = logprobs_of_answers(model, rows)
            places = torch.cat([torch.arange(first[i], first[i + 1]) for i in batch])
            found[places] = per_answer(logprobs, rows.lengths).float().cpu()
    finally:
        model.train(was_training)
    return found


def reference_sums(model: Transformer, trees: Sequence[Tree], name: str, folder: Path, tokens: int, precision: Precision) -> Tensor:
    """`sums` under the reference called `name`, from folder/reference.safetensors if it is there, else computed and put there.

    name: "base", the model as it is before training (with its adapters off, if it has any), or a checkpoint folder."""
    file = folder / FILE
    if file.exists():
        return _read(file, trees)
    if name == "base":
        with base_of(model):
            found = sums(model, trees, tokens, precision)
    else:
        device = model.norm.weight.device
        other, _ = folders.decoder(name, model.norm.weight.dtype, device)
        if other.config.vocab_size != model.config.vocab_size:
            raise InputError(f"the reference {name} knows {other.config.vocab_size} tokens, the model {model.config.vocab_size}: they need one tokenizer")
        found = sums(other, trees, tokens, precision)
    if not torch.isfinite(found).all():
        raise InputError(f"the reference {name} gives {int((~torch.isfinite(found)).sum())} answers no finite probability: is its checkpoint damaged?")
    aside = file.with_name(f".{FILE}.writing")                                          # a run that is killed here leaves no half a file
    save_file({"logprobs": found}, aside, metadata={"answers": _mark(trees), "reference": name})
    os.replace(aside, file)
    return found


def named_file(name: str, trees: Sequence[Tree]) -> Tensor | None:
    """The log-probabilities in the file called `name`, another run's reference.safetensors; None if `name` is "base" or a checkpoint folder.

    Raises InputError if the file is of other answers, or if there is no such file or folder."""
    if name == "base":
        return None
    if Path(name).is_file():
        return _read(Path(name), trees)
    folders.locate(name)
    return None


def base_of(model: Transformer) -> contextlib.AbstractContextManager:
    """The model without what trains; a method that trains the model's own weights has not begun yet, and is the base itself."""
    return peft.disabled(model) if keeps_base(model) else contextlib.nullcontext()


def keeps_base(model: Transformer) -> bool:
    """Do the model's own weights stay what they were, beside what trains?"""
    return bool(names(model)) and all(getattr(method, "keep_base", True) for method in state_of(model).sets.values())


def set_dropout(model: Transformer, share: float) -> None:
    """The model's own dropout (GPT-2's folders say 0.1): none while preferences are learned, or a policy that equals its reference would not
    have its log-probabilities (trap 18). A method's own dropout stays."""
    model.config = dataclasses.replace(model.config, dropout=share)
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout = share


def _mark(trees: Sequence[Tree]) -> str:
    return hashlib.sha256(json.dumps([[tree.prompt, tree.answers] for tree in trees]).encode()).hexdigest()


def _read(file: Path, trees: Sequence[Tree]) -> Tensor:
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("answers") != _mark(trees):
                raise InputError(f"{file} holds the reference of other answers: delete it, or name the model with --reference")
            return opened.get_tensor("logprobs")
    except SafetensorError as error:
        raise InputError(f"{file} is no readable file of a reference's log-probabilities ({error}): delete it, and it is made again") from None
