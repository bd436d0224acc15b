"""GPTQ's walk over blocks works on transformers' models as it does on minift's: other block classes, other arguments, tuples."""

import copy

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from minift.quant import QuantizedLinear, gptq, quantize_model

SHAPE = dict(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=37, use_cache=False, initializer_range=0.2)


@pytest.mark.parametrize("kind, config, linears", [
    (LlamaForCausalLM, LlamaConfig(**SHAPE, num_key_value_heads=1), 21), (GPTNeoXForCausalLM, GPTNeoXConfig(**SHAPE), 12),
])    # fmt: skip
def test_a_model_of_transformers_is_nearer_to_what_it_was_than_rounded_to_nearest(kind, config, linears):
    torch.manual_seed(0)
    model = kind(config).eval()
    batches = [torch.randint(0, 61, (4, 23)) for _ in range(3)]
    logits = lambda m: torch.stack([m(batch).logits for batch in batches]).detach()
    full, nearest = logits(model), copy.deepcopy(model)
    quantize_model(nearest, "int4", 16)
    errors = gptq.quantize_model(model, batches, 16)
    assert len(errors) == linears == sum(isinstance(m, QuantizedLinear) for m in model.modules())
    assert (logits(model) - full).norm() < 0.9 * (logits(nearest) - full).norm()            # 0.72 and 0.77 where this was written
