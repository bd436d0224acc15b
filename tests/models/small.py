"""Tiny decoders of every family, with odd shapes and no trivial number."""

import torch

from minift.models.config import ModelConfig, RopeScaling
from minift.models.transformer import Transformer

SHAPE = dict(vocab_size=31, hidden_size=24, layers=2, heads=3, kv_heads=3, head_dim=8, mlp_size=28, max_positions=64)
GQA = {**SHAPE, "heads": 6, "kv_heads": 2, "head_dim": 4}
BIASED = dict(qkv_bias=True, attention_out_bias=True, mlp_bias=True)
GPT = dict(norm="layernorm", gated=False, **BIASED)
FALCON = dict(family="falcon", norm="layernorm", activation="gelu", gated=False, parallel=True)

CONFIGS = {
    "llama": ModelConfig(**SHAPE, tie_embeddings=False, bos_token_id=1, eos_token_id=(2, 5)),
    "llama3": ModelConfig(**GQA, rope_theta=500.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)),
    "linear": ModelConfig(**GQA, rope_scaling=RopeScaling("linear", 2.0)),
    "dynamic": ModelConfig(**{**GQA, "max_positions": 8}, rope_scaling=RopeScaling("dynamic", 2.0)),
    "mistral": ModelConfig(**GQA, family="mistral", windows=(4, 4)),
    "qwen2": ModelConfig(**GQA, family="qwen2", qkv_bias=True, windows=(None, 5)),
    "qwen3": ModelConfig(**GQA, family="qwen3", qk_norm=True, tie_embeddings=False),
    "gemma": ModelConfig(**GQA, family="gemma", activation="gelu_tanh", norm_offset=1.0, embed_scale=24**0.5),
    "gpt2": ModelConfig(**{**SHAPE, "mlp_size": 96}, **GPT, family="gpt2", activation="gelu_tanh", position="learned", qkv="joined"),
    "bloom": ModelConfig(
        **{**SHAPE, "mlp_size": 96}, **GPT, family="bloom", activation="gelu_tanh", position="alibi", qkv="grouped", embed_norm=True
    ),
    "gpt_neox": ModelConfig(
        **SHAPE, **GPT, family="gpt_neox", activation="gelu", qkv="grouped", rope_dim=2, parallel=True, tie_embeddings=False
    ),
    "falcon_7b": ModelConfig(**{**SHAPE, "kv_heads": 1}, **FALCON, qkv="joined", shared_norm=True),
    "falcon_40b": ModelConfig(**GQA, **FALCON, qkv="grouped"),
    "falcon_per_head": ModelConfig(**SHAPE, **FALCON, qkv="grouped", shared_norm=True),
}


def model(name: str = "llama", seed: int = 0) -> Transformer:
    """A random model: attention far from uniform, biases not 0, norms not 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(Transformer(CONFIGS[name]), seed)


def randomised(decoder: Transformer, seed: int = 0) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator)
    return decoder.eval()


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 31, shape, generator=torch.Generator().manual_seed(seed))
