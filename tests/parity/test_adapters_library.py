"""Bottleneck adapters, AdapterFusion and LoReFT against the `adapters` library, through files, both ways.

The library lives in .venv/adapters-library with an older transformers (make parity puts it there) and is run once, as a program of its own
(adapters_library.py): it reads what minift wrote, writes what minift reads, and both answer the same ids on the same base.
Tolerance 1e-5 of the largest number: sums of at most 48 float32 products, two blocks, one or two adapters in each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from peft import PeftType
from safetensors.torch import load_file, save_file
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.models.folder import read_model
from minift.peft.attach import state_of
from minift.peft.files import read, tensors
from minift.peft.training import penalty
from tests.peft.small import filled

LIBRARY = Path(sys.prefix) / "adapters-library"
IDS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]]
SHAPE = dict(vocab_size=31, initializer_range=0.2)
WIDE = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=32)
CONFIGS = {
    "llama": transformers.LlamaConfig(num_key_value_heads=1, **WIDE, **SHAPE),
    "mistral": transformers.MistralConfig(num_key_value_heads=1, sliding_window=None, **WIDE, **SHAPE),
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, **SHAPE),
    "bert": transformers.BertConfig(**WIDE, **SHAPE),
}
OURS = {"houlsby": peft.Houlsby, "pfeiffer": peft.Pfeiffer, "parallel": peft.Parallel}
LOREFT = dict(r=2, prefix_positions=2, tied_weights=True)


class Case(NamedTuple):
    family: str
    kind: str
    names: tuple[str, ...] = ("sst",)
    """More than one: their fusion."""

    def __str__(self) -> str:
        return "-".join([self.family, self.kind, *self.names[1:]])


BOTTLENECKS = [Case(family, kind) for family in CONFIGS for kind in OURS]
FUSIONS = [Case(family, kind, ("sst", "qnli")) for family in ("llama", "gpt2", "bert") for kind in ("houlsby", "pfeiffer")]
EDITS = [Case(family, "loreft") for family in ("llama", "gpt2", "bert")]
BOTH_WAYS = BOTTLENECKS + FUSIONS


@pytest.fixture(autouse=True)
def the_same_numbers_every_time():
    torch.manual_seed(0)


def theirs(base: Path, family: str) -> nn.Module:
    """A model object of today's transformers."""
    kind = transformers.BertModel if family == "bert" else transformers.AutoModelForCausalLM
    return kind.from_pretrained(base).eval()


def ours(base: Path, family: str) -> nn.Module:
    """minift's own model; BERT is an encoder, so there the object of transformers."""
    return theirs(base, family) if family == "bert" else read_model(base).eval()


def answer(model: nn.Module) -> torch.Tensor:
    out = model(torch.tensor(IDS))
    return out if isinstance(out, torch.Tensor) else out.last_hidden_state if "last_hidden_state" in out else out.logits


def put_on(model: nn.Module, case: Case) -> nn.Module:
    for name in case.names:
        peft.attach(model, OURS[case.kind](width=5), name=name)               # 24 / 5 is not a whole number: the file's factor must give 5
        filled(model)
    if len(case.names) > 1:
        peft.attach(model, peft.AdapterFusion(case.names), name="fusion")
        filled(model)
    return model


def load_all(model: nn.Module, folder: Path, case: Case) -> nn.Module:
    for name in (*case.names, *(["fusion"] if len(case.names) > 1 else [])):
        peft.load(model, folder / name, name=name)
    return model


@pytest.fixture(scope="module")
def exchange(tmp_path_factory) -> Path:
    """A folder per case and direction, with everybody's files and answers."""
    assert LIBRARY.is_dir(), f"the adapters library is not in {LIBRARY}: run `make parity`, or `make .venv/adapters-library/installed`"
    root, jobs = tmp_path_factory.mktemp("exchange"), []
    torch.manual_seed(0)
    for family, config in CONFIGS.items():
        kind = transformers.BertModel if family == "bert" else transformers.AutoModelForCausalLM
        model = kind._from_config(config) if family == "bert" else kind.from_config(config)
        model.save_pretrained(root / family)
    for case in BOTH_WAYS + EDITS:
        job = dict(family=case.family, kind=case.kind, names=case.names, base=str(root / case.family), ids=IDS)
        here, there = root / f"{case}-ours", root / f"{case}-theirs"
        there.mkdir()
        jobs.append({**job, "do": "write", "folder": str(there), "options": LOREFT if case.kind == "loreft" else dict(reduction_factor=8)})
        if case in BOTH_WAYS:
            model = put_on(ours(root / case.family, case.family), case)
            for name in peft.names(model):
                peft.save(model, here / name, name=name)
            jobs.append({**job, "do": "train", "folder": str(here)})
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("adapters_library.py")), str(root / "jobs.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(LIBRARY)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("case", BOTH_WAYS, ids=str)
def test_our_folders_load_in_the_library_with_the_same_outputs(case, exchange):
    expected = load_file(exchange / f"{case}-ours" / "answer.safetensors")["answer"]
    model = load_all(ours(exchange / case.family, case.family), exchange / f"{case}-ours", case)
    close(answer(model), expected)
    with peft.disabled(model):
        assert (answer(model) - expected).abs().max() > 0.1                   # the adapters say something


@pytest.mark.parametrize("case", BOTH_WAYS + EDITS, ids=str)
def test_the_librarys_folders_load_in_ours_with_the_same_outputs(case, exchange):
    folder = exchange / f"{case}-theirs"
    expected = load_file(folder / "answer.safetensors")["answer"]
    for new in (ours, theirs):
        model = load_all(new(exchange / case.family, case.family), folder, case)
        close(answer(model), expected)
        with peft.disabled(model):
            assert (answer(model) - expected).abs().max() > 0.05


@pytest.mark.parametrize("case", BOTH_WAYS, ids=str)
def test_what_was_read_is_written_as_it_was(case, exchange, tmp_path):
    folder = exchange / f"{case}-theirs"
    model = load_all(ours(exchange / case.family, case.family), folder, case)
    for name in peft.names(model):
        peft.save(model, tmp_path / name, name=name)
        one, two = (load_file(next(path.glob("*adapter*.safetensors"))) for path in (folder / name, tmp_path / name))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        their, our = (json.loads(next(path.glob("adapter*_config.json")).read_text()) for path in (folder / name, tmp_path / name))
        same = ["name", "model_type", "hidden_size", "version"]
        assert [our[key] for key in same] == [their[key] for key in same] and their.keys() == our.keys()
        assert our["config"].items() <= their["config"].items() or our["config"]["init_weights"] == "mam_adapter"


@pytest.mark.parametrize("case", BOTH_WAYS, ids=str)
def test_the_gradients_are_the_librarys(case, exchange):
    expected = load_file(exchange / f"{case}-ours" / "grads.safetensors")
    model = load_all(ours(exchange / case.family, case.family), exchange / f"{case}-ours", case)
    torch.manual_seed(3)
    out = answer(model)
    loss = (out * torch.randn(out.shape)).sum()
    (loss if penalty(model) is None else loss + penalty(model)).backward()
    name = peft.names(model)[-1]
    small = {path: wrapper.adapters[name] for path, wrapper in state_of(model).wrappers.items() if name in wrapper.adapters}
    found = {key.replace(".NAME.", f".{name}."): p.grad for key, p in tensors(model, state_of(model).sets[name], small).items()}
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    # a fusion's softmax over random scores is sharp: there ours and theirs are each 3e-5 of the largest away from float64
    atol = (1e-4 if len(case.names) > 1 else 1e-6) * largest
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=atol)


def test_the_defaults_are_the_librarys(exchange):
    for case in (Case("llama", kind) for kind in OURS):
        method, _ = read(exchange / f"{case}-theirs" / "sst")
        own = OURS[case.kind]()
        assert (method.activation, method.scale, method.dropout) == (own.activation, own.scale, own.dropout) and type(method) is type(own)
    method, _ = read(exchange / "llama-loreft-theirs" / "sst")
    assert method == peft.LoReFT(rank=2, prefix=2, dropout=0.05)


def test_a_head_saved_beside_the_adapter_is_checked(exchange, tmp_path):
    """save_adapter of a causal language model writes its head too: fine if it is the base's, and refused if it is another."""
    folder, model = exchange / "llama-pfeiffer-theirs" / "sst", theirs(exchange / "llama", "llama")
    for name, head in [("same", model.lm_head.weight), ("other", model.lm_head.weight + 1)]:
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        save_file({"lm_head.weight": head.detach().clone()}, tmp_path / name / "model_head.safetensors")
    peft.load(model, tmp_path / "same", name="a")
    with pytest.raises(InputError, match="lm_head.weight is not this model's own"):
        peft.load(model, tmp_path / "other", name="b")


METHODS = {**{kind: method(width=5) for kind, method in OURS.items()}, "loreft": peft.LoReFT(rank=2, prefix=4)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", METHODS)
def test_on_a_transformers_object_a_cache_and_checkpointing_change_nothing(family, kind, exchange, tmp_path):
    model, ids = theirs(exchange / family, family), torch.tensor(IDS)[:, :2]
    before = model(ids).logits
    peft.attach(model, METHODS[kind])
    assert torch.equal(model(ids).logits, before) == (kind == "parallel")     # the others start near the base, LoReFT away from it
    filled(model)
    greedy = dict(max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, output_scores=True, return_dict_in_generate=True)
    with_cache, without = (model.generate(ids, use_cache=cached, **greedy) for cached in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    close(torch.stack(with_cache.scores), torch.stack(without.scores))
    close(model(ids).logits, on_our_model(exchange / family, family, model, tmp_path)(ids))
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        model.train().zero_grad()
        for dropout in model.modules():
            if isinstance(dropout, nn.Dropout):
                dropout.p = 0.0
        model(torch.tensor(IDS)).logits.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def on_our_model(base: Path, family: str, model: nn.Module, folder: Path) -> nn.Module:
    """The set of a transformers object, through a folder, on minift's own model."""
    peft.save(model, folder / "set")
    own = ours(base, family)
    peft.load(own, folder / "set")
    return own


@pytest.mark.parametrize("kind", METHODS)
def test_on_a_bert_object_what_starts_at_the_base_starts_there_exactly(kind, exchange):
    model = theirs(exchange / "bert", "bert")
    before = answer(model)
    peft.attach(model, METHODS[kind] if kind == "loreft" else OURS[kind](init="mam_adapter"))
    assert torch.equal(answer(model), before) == (kind != "loreft")
    with peft.disabled(model):
        assert torch.equal(answer(model), before)
    with pytest.raises(InputError, match="cannot be merged"):
        peft.merge(model)


def test_peft_has_no_bottleneck_adapters_and_no_loreft():
    assert not [kind for kind in PeftType if "REFT" in kind or "BOTTLENECK" in kind or kind == "ADAPTER"]
