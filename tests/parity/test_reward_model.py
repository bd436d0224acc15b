"""Reward models against transformers and peft: one folder, the same scores, both ways; an adapter with its head, both ways.

transformers finds a text's end by its pad id, so the texts here end in a token that is not the pad; ours are told the lengths."""

import json

import peft as hf_peft
import pytest
import torch
import transformers

from minift import peft
from minift.models.folder import read_model, write_model
from minift.models.scorer import Scorer, last_tokens
from tests.parity.test_families import BLOOM, FALCON, GPT2, GQA, LLAMA, NEOX

FAMILIES = {
    "llama": LLAMA, "gpt2": GPT2, "qwen2": {**GQA, "tie_word_embeddings": True}, "mistral": {**GQA, "sliding_window": 7}, "qwen3": {**GQA, "head_dim": 12},
    "gemma": {**GQA, "head_dim": 8}, "gpt_neox": NEOX, "falcon": {**FALCON, "multi_query": True}, "bloom": BLOOM,
}  # fmt: skip
PAD, LENGTHS, T = 0, [11, 4, 7], 11
CLOSE = dict(atol=1e-5, rtol=1e-5)


def theirs(family: str, labels: int = 1):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family], num_labels=labels, pad_token_id=PAD)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch():
    ids = torch.randint(3, 97, (3, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    return ids.where(mask, PAD), mask.long()


def their_scores(model):
    ids, mask = batch()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@torch.no_grad()
def their_scores_one_by_one(model):
    """peft's prompt tuning hands transformers embeddings instead of ids, and then it reads the score at the last place, pad or not."""
    ids, _ = batch()
    return torch.cat([model(input_ids=row[None, :n], attention_mask=torch.ones(1, n).long()).logits for row, n in zip(ids, LENGTHS)])


@torch.no_grad()
def our_scores(model: Scorer):
    ids, mask = batch()
    return model.at(last_tokens(torch.tensor(LENGTHS), T), ids, segments=mask)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_their_folder(family, labels, tmp_path):
    model = theirs(family, labels)
    model.save_pretrained(tmp_path)
    ours = read_model(tmp_path)
    assert isinstance(ours, Scorer) and ours.config.labels == labels
    torch.testing.assert_close(our_scores(ours), their_scores(model), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_our_folder(family, tmp_path):
    theirs(family).save_pretrained(tmp_path / "theirs")
    ours = read_model(tmp_path / "theirs")
    ours.score.weight.data += 0.5
    write_model(ours, tmp_path / "ours")
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and again.num_labels == 1
    torch.testing.assert_close(their_scores(again.eval()), our_scores(ours), **CLOSE)


def test_gradients_of_a_pair_are_theirs(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path)
    ours, (ids, mask) = read_model(tmp_path), batch()
    of_theirs = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    of_ours = ours.at(last_tokens(torch.tensor(LENGTHS), T), ids, segments=mask)[:, 0]
    for rewards in (of_theirs, of_ours):
        (-torch.nn.functional.logsigmoid(rewards[0] - rewards[1])).backward()
    torch.testing.assert_close(ours.score.weight.grad, model.score.weight.grad, **CLOSE)
    torch.testing.assert_close(ours.embed.weight.grad, model.model.embed_tokens.weight.grad, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [peft.LoRA(rank=2, alpha=4), peft.Prompt(length=3)], ids=["lora", "prompt"])
def test_trap26_their_peft_reads_our_adapter_with_its_head(method, family, tmp_path):
    theirs(family).save_pretrained(tmp_path / "base")
    ours = read_model(tmp_path / "base")
    peft.attach(ours, method)
    for parameter in ours.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    peft.save(ours.eval(), tmp_path / "adapter", base_model=str(tmp_path / "base"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = hf_peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(their_scores_one_by_one(loaded), our_scores(ours), **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt"])
def test_trap26_we_read_their_adapter_with_its_head(kind, family, tmp_path):
    theirs(family).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    config = {
        "lora": lambda: hf_peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules="all-linear" if family == "llama" else ["c_attn"]),
        "ia3": lambda: hf_peft.IA3Config(task_type="SEQ_CLS"),
        "prompt": lambda: hf_peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    }[kind]()
    model = hf_peft.get_peft_model(base, config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    ours = read_model(tmp_path / "base")
    ours.score.weight.data.zero_()                                          # theirs comes with the adapter
    peft.load(ours, tmp_path / "adapter")
    torch.testing.assert_close(our_scores(ours.eval()), their_scores_one_by_one(model), **CLOSE)
    peft.save(ours, tmp_path / "again")
    fields = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert fields["task_type"] == "SEQ_CLS"
