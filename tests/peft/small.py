"""Small models for the adapter tests, of odd sizes."""

from torch import nn

from minift.models.config import ModelConfig
from minift.models.transformer import Transformer


def llama(**choices) -> Transformer:
    """Three query heads on one key/value head, two blocks, tied head."""
    shape = dict(vocab_size=11, hidden_size=12, layers=2, heads=3, kv_heads=1, head_dim=4, mlp_size=20, max_positions=16)
    return Transformer(ModelConfig(**{**shape, **choices}))


def gpt2(**choices) -> Transformer:
    shape = dict(family="gpt2", norm="layernorm", position="learned", activation="gelu_tanh", gated=False, qkv="joined", qkv_bias=True,
                 attention_out_bias=True, mlp_bias=True, kv_heads=3)  # fmt: skip
    return llama(**{**shape, **choices})


def filled(model: nn.Module) -> nn.Module:
    """Every A and B random: with B = 0 a forgotten scale would pass."""
    for name, parameter in model.named_parameters():
        if ".adapters." in name:
            nn.init.normal_(parameter, std=0.3)
    return model
