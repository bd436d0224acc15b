"""Reward models out of folders, and the rewards of many answers at once: in order, whatever they are batched with."""

import json

import pytest
import torch

from minift import folder as folders
from minift import peft
from minift.data.branches import Tree
from minift.errors import InputError
from minift.evaluate.scoring import load_scorer, rewards
from minift.models.scorer import Scorer
from tests.models.small import model

TREES = [Tree([3, 4, 5, 6], [[7, 2], [8, 9, 10, 2]]), Tree([3], [[2]]), Tree([5, 6], [[4, 2], [11, 2], [12, 13, 2]])]


@pytest.mark.parametrize("batch_tokens", [1, 9, 1000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "dynamic"])
def test_rewards_come_in_the_order_of_the_answers_whatever_the_batch(name, batch_tokens):
    scorer = Scorer.on(model(name)).train()
    wanted = [scorer(torch.tensor([tree.prompt + answer]))[0, -1, 0] for tree in TREES for answer in tree.answers]
    found = rewards(scorer, TREES, batch_tokens)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    assert scorer.training and not found.requires_grad


@pytest.fixture
def base(small_model, tmp_path):
    """An adapter with its head, on the small model; returns (folder, rewards)."""
    scorer, _ = folders.load(small_model, scores=1, seed=4)
    peft.attach(scorer, peft.LoRA(rank=2))
    for parameter in scorer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2
    peft.save(scorer, tmp_path / "run/adapter", base_model=str(small_model))
    return tmp_path / "run", rewards(scorer, TREES)


def test_a_run_its_adapter_and_its_whole_model_are_found(base, tmp_path):
    run, wanted = base
    for folder in (run, run / "adapter"):
        scorer, _ = load_scorer(folder)
        torch.testing.assert_close(rewards(scorer, TREES), wanted, atol=1e-5, rtol=1e-5)
        assert not scorer.training and not any(p.requires_grad for p in scorer.parameters())
    scorer, tokenizer = load_scorer(run)
    peft.merge(scorer)
    peft.remove(scorer, "default")
    folders.save(scorer, tokenizer, tmp_path / "whole/model")
    for folder in (tmp_path / "whole", tmp_path / "whole/model"):
        torch.testing.assert_close(rewards(load_scorer(folder)[0], TREES), wanted, atol=1e-4, rtol=1e-4)


def test_the_base_is_in_the_bits_it_was_trained_in_unless_others_are_asked_for(base):
    run, _ = base
    (run / "adapter/base.json").write_text(json.dumps({"quantize": "nf4"}))
    assert load_scorer(run)[0].blocks[0].mlp.up.base.q.scheme == "nf4"
    assert load_scorer(run, quantize="int8")[0].blocks[0].mlp.up.base.q.scheme == "int8"


def test_another_base_can_be_named(base, small_model, tmp_path):
    run, wanted = base
    fields = json.loads((run / "adapter/adapter_config.json").read_text())
    (run / "adapter/adapter_config.json").write_text(json.dumps({**fields, "base_model_name_or_path": "/moved/away"}))
    with pytest.raises(InputError, match="no such folder: /moved/away"):
        load_scorer(run)
    torch.testing.assert_close(rewards(load_scorer(run, base=small_model)[0], TREES), wanted, atol=1e-5, rtol=1e-5)


def test_the_template_it_was_trained_with_comes_along(base):
    run, _ = base
    (run / "adapter/chat_template.jinja").write_text("{{ messages }}")
    assert load_scorer(run)[1].chat_template == "{{ messages }}"
