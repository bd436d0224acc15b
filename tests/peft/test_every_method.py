"""What must hold for every method on every family: it trains, its file brings it back, and nothing it meets changes its answer.

The models are the small ones of tests/models, one per family and option. Tolerance 1e-4 of the largest logit: other shapes of the same
products round differently, and bounded numbers pass two blocks."""

import dataclasses

import pytest
import torch
from torch import nn

from minift import peft
from minift.errors import InputError
from minift.peft import files
from minift.generate import generate_ids
from minift.models.transformer import Transformer
from minift.recipes.methods import METHODS as ALL
from minift.recipes.methods import method_config
from tests.models.small import CONFIGS, model, tokens

METHODS = {name: entry for name, entry in ALL.items() if name not in ("fusion", "loftq")}
"""One mixes sets that must be there (test_fusion.py), one rounds the base (test_loftq.py)."""
FAMILIES = [name for name in CONFIGS if name != "dynamic"]           # its frequencies look at the longest row: packed differs by nature
NOT_THE_BASE_AT_STEP_0 = {"prefix", "prompt", "p-tuning", "p-tuning-v2", "loreft"}
"""Their papers start from random numbers."""
NEAR_THE_BASE_AT_STEP_0 = {"houlsby", "pfeiffer"}
"""Their papers start near the identity: within a hundredth or so."""
OPTIONS = {"tokens": {"ids": "5,7"}, "bitfit": {"add_missing": "true"}, "vera": {"rank": "6"}, "adalora": {"init_r": "3", "target_r": "2"}}


def config(name: str, **more):
    entry = METHODS[name]
    known = entry.fields()
    options = {**OPTIONS.get(name, {}), **({"rank": "2"} if "rank" in known and name not in OPTIONS else {})}
    options |= {"length": "3"} if "length" in known else {}
    method = method_config(name, {}, options)
    return dataclasses.replace(method, keep_base=True) if entry.whole and "keep_base" in known else method


def attached(family: str, name: str, trained=True) -> Transformer:
    decoder = model(family)
    torch.manual_seed(3)
    peft.attach(decoder, config(name))
    if trained:
        with torch.no_grad():
            for p in decoder.parameters():
                if p.requires_grad:
                    p += 0.1 * torch.randn_like(p)
    return decoder


def near(a, b):
    """Equal up to the rounding of other shapes of the same products."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_family_starts_at_the_base_learns_and_goes_back(family, name, tmp_path):
    ids = tokens(2, 7)
    with torch.no_grad():
        before = model(family)(ids)
        fresh = attached(family, name, trained=False).eval()
        if name in NEAR_THE_BASE_AT_STEP_0:
            torch.testing.assert_close(fresh(ids), before, rtol=0, atol=0.03 * before.abs().max().item())
        elif name not in NOT_THE_BASE_AT_STEP_0:
            near(fresh(ids), before)
    decoder = attached(family, name).eval()
    after = decoder(ids)
    assert (after - before).abs().max() > 1e-3
    after.square().mean().backward()
    lost = [n for n, p in decoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())]
    assert not lost, f"no gradient: {lost}"
    assert all(p.grad is None for p in decoder.parameters() if not p.requires_grad)
    with peft.disabled(decoder), torch.no_grad():
        assert torch.equal(decoder(ids), before)
    peft.save(decoder, tmp_path / "a")
    other = model(family).eval()
    peft.load(other, tmp_path / "a")
    with torch.no_grad():
        near(other(ids), after.detach())
    peft.remove(decoder, "default")
    with torch.no_grad():
        assert torch.equal(decoder(ids), before)
    assert {type(m) for m in decoder.modules()} == {type(m) for m in model(family).modules()}


@pytest.mark.parametrize("name", METHODS)
def test_packed_is_alone_and_padded_too(name):
    decoder = attached("llama", name).eval()
    a, b = tokens(1, 5), tokens(1, 4)
    packed = torch.cat([a, b], 1)
    segments = torch.tensor([[0] * 5 + [1] * 4])
    with torch.no_grad():
        both = decoder(packed, segments=segments)
        near(both[:, :5], decoder(a))
        near(both[:, 5:], decoder(b))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("name", METHODS)
def test_a_text_grown_in_the_cache_is_the_text_read_at_once(family, name):
    decoder = attached(family, name).eval()
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    grown = generate_ids(decoder, prompts, max_new_tokens=6, eos_ids=())
    for prompt, new in zip(prompts, grown):
        ids = list(prompt)
        for token in new:
            with torch.no_grad():
                logits = decoder(torch.tensor([ids]))[0, -1]
            assert logits[token] >= logits.max() - 1e-4, "greedy, up to a tie in rounding"
            ids.append(token)


@pytest.mark.parametrize("name", METHODS)
def test_trap32_checkpointing_gives_the_same_gradients(name):
    grads = []
    for checkpointing in (False, True):
        decoder = attached("llama", name).train()
        decoder.checkpointing = checkpointing
        torch.manual_seed(5)
        decoder(tokens(2, 6)).square().mean().backward()
        grads.append({n: p.grad for n, p in decoder.named_parameters() if p.requires_grad})
    for n, grad in grads[0].items():
        torch.testing.assert_close(grads[1][n], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_trap34_on_a_bf16_base_what_trains_is_float32_and_autocast_runs(name):
    decoder = model("llama").bfloat16()
    peft.attach(decoder, config(name))
    assert {p.dtype for p in decoder.parameters() if p.requires_grad} == {torch.float32}
    logits = decoder(tokens(2, 6))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    plain = attached("llama", name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = plain(tokens(2, 6)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in plain.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_trap24_merge_is_the_same_function_or_a_refusal_with_a_reason(name):
    decoder = attached("llama", name).eval()
    ids = tokens(2, 7)
    with torch.no_grad():
        before = decoder(ids)
        try:
            peft.merge(decoder)
        except InputError as refusal:
            assert "merge" in str(refusal) and torch.equal(decoder(ids), before)
            return
        near(decoder(ids), before)
        peft.unmerge(decoder)
        assert torch.equal(decoder(ids), before)


def test_trap26_every_number_that_trains_is_in_the_file_or_made_from_what_is():
    """A module whose parameters were not saved would come back fresh: the reload above could not be equal. Here: no file is empty."""
    for name in METHODS:
        decoder = attached("llama", name)
        state = decoder._peft
        small = {path: w.adapters["default"] for path, w in state.wrappers.items()}
        assert files.tensors(decoder, state.sets["default"], small), name


def test_a_plain_mlp_takes_every_method_that_needs_only_linears():
    took = []
    for name in METHODS:
        mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5))
        x = torch.randn(3, 6)
        before = mlp(x)
        try:
            peft.attach(mlp, config(name))
        except InputError as refusal:
            assert len(str(refusal)) > 30 and torch.equal(mlp(x), before)
            continue
        took.append(name)
        peft.remove(mlp, "default")
        assert torch.equal(mlp(x), before)
    assert {"lora", "rslora", "lora+", "full"} <= set(took)
