"""Generation against transformers: greedy ids of tiny random models, and the sampling filters on the same logits."""

import pytest
import torch
import transformers
from transformers.generation import logits_process as theirs

from minift.generate import generate_ids
from minift.models.folder import read_model
from minift.sampling import Sampling, adjust, penalize

V = 67                                                                        # odd, as no real vocabulary is
LLAMA = dict(vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=20)
GPT2 = dict(vocab_size=V, n_embd=24, n_layer=2, n_head=3, n_positions=48)
FAMILIES = {
    "llama": transformers.LlamaConfig(**LLAMA, rope_theta=500.0),
    "mistral": transformers.MistralConfig(**LLAMA, sliding_window=5, head_dim=4),
    "qwen2": transformers.Qwen2Config(**LLAMA),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=8),
    "gemma": transformers.GemmaConfig(**LLAMA, head_dim=8),
    "gpt2": transformers.GPT2Config(**GPT2),
    "falcon": transformers.FalconConfig(vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=3),
    "bloom": transformers.BloomConfig(vocab_size=V, hidden_size=24, n_layer=2, n_head=3),
    "gpt_neox": transformers.GPTNeoXConfig(
        vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, rotary_pct=0.25
    ),
}
FILTERS = [(None, None, None), (5, None, None), (None, 0.8, None), (None, None, 0.1), (20, 0.9, 0.05), (1, 0.01, 1.0)]
PROMPTS = [[5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [44, 45, 46, 47]]


def both(name, folder):
    """The same random model, theirs and ours, with logits far enough apart that rounding cannot decide between two tokens."""
    config = FAMILIES[name]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, None, None       # nothing ends a row unless a test says so
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, read_model(folder)


def their_ids(model, prompt, **options):
    ids = torch.tensor([prompt])
    options = dict(max_new_tokens=20, do_sample=False, pad_token_id=0) | options
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_ids_of_a_ragged_batch_equal_transformers(name, tmp_path):
    them, us = both(name, tmp_path)
    expected = [their_ids(them, prompt) for prompt in PROMPTS]
    assert generate_ids(us, PROMPTS, max_new_tokens=20) == expected
    assert len({tuple(ids) for ids in expected}) > 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_penalised_greedy_ids_with_end_tokens_equal_transformers(name, tmp_path):
    them, us = both(name, tmp_path)
    free = their_ids(them, PROMPTS[1], repetition_penalty=1.7)
    ends = [free[4], free[9]]
    expected = [their_ids(them, prompt, repetition_penalty=1.7, eos_token_id=ends) for prompt in PROMPTS]
    assert generate_ids(us, PROMPTS, Sampling(repetition_penalty=1.7), max_new_tokens=20, eos_ids=ends) == expected
    assert len(expected[1]) <= 5


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k, top_p, min_p", FILTERS)
def test_the_distribution_after_all_filters_equals_transformers(penalty, temperature, top_k, top_p, min_p):
    torch.manual_seed(0)
    logits, ids = 4 * torch.randn(7, V), torch.randint(0, V, (7, 9))
    processors = [theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature)]
    processors += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    processors += [theirs.TopPLogitsWarper(top_p)] if top_p else []
    processors += [theirs.MinPLogitsWarper(min_p)] if min_p else []
    expected = logits.clone()
    for processor in processors:
        expected = processor(ids, expected)
    seen = torch.zeros(7, V, dtype=torch.bool).scatter(1, ids, True)
    ours = adjust(penalize(logits, seen, penalty), Sampling(temperature, top_k, top_p, min_p, penalty))
    assert torch.equal(ours > float("-inf"), expected > float("-inf"))        # the same tokens are kept
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=1e-5)
