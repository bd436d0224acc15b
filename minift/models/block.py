"""One block of a transformer: attention, an MLP, and their norms. x: (B, T, C)

    before   x = x + attention(norm1(x));   x = x + mlp(norm2(x))                   most decoders (pre-LN)
    beside   x = x + attention(norm1(x)) + mlp(norm2(x))                            GPT-NeoX, Falcon
    after    x = norm1(x + attention(x));   x = norm2(x + mlp(x))                   BERT (post-LN, Vaswani et al. 2017, arXiv:1706.03762)
    cross    before, and between the two    x = x + cross(cross_norm(x), encoder)   the decoder of T5 (cross.py)

Proved in tests/models/test_transformer.py and tests/models/test_encoder.py."""

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.attention import Attention, Context
from minift.models.config import ModelConfig
from minift.models.cross import CrossAttention
from minift.models.linear import Linear

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose stored weight w acts as (offset + w), in float32 as Gemma does it."""

    def __init__(self, width: int, eps: float, offset: float):
        super().__init__(width, eps=eps)
        self.offset = offset
        nn.init.constant_(self.weight, 1.0 - offset)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.offset + self.weight.float(), self.eps).to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    if config.norm_offset:
        return OffsetRMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


class MLP(nn.Module):
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)) (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, M = config.hidden_size, config.mlp_size
        self.gate = Linear(C, M, bias=config.mlp_bias) if config.gated else None
        self.up = Linear(C, M, bias=config.mlp_bias)
        self.down = Linear(M, C, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:                           # (B, T, C) -> (B, T, C)
        if self.gate is None:
            return self.down(self.act(self.up(x)))
        return self.down(self.act(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then the MLP; each adds its branch to the stream x. Where the norms stand is ModelConfig's choice."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.parallel, self.norm_after, self.layer, self.dropout = config.parallel, config.norm_after, layer, config.dropout
        self.norm1 = make_norm(config)
        self.attention = Attention(config, layer)
        self.cross_norm, self.cross = (make_norm(config), CrossAttention(config, layer)) if config.cross else (None, None)
        self.norm2 = None if config.shared_norm else make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:                             # (B, T, C) -> (B, T, C)
        drop = lambda y: F.dropout(y, self.dropout, self.training) if self.dropout else y
        normed = x if self.norm_after else self.norm1(x)                                  # (B, T, C)
        attended = drop(self.attention(normed, context))
        if self.norm_after:                                                               # the stream itself is normed, twice
            x = self.norm1(x + attended)
            x = self.norm2(x + drop(self.mlp(x)))
        elif self.parallel:                                                                 # both read the same x
            x = x + attended + drop(self.mlp(normed if self.norm2 is None else self.norm2(x)))
        else:
            x = x + attended
            if self.cross is not None:
                x = x + drop(self.cross(self.cross_norm(x), context.memory))
            x = x + drop(self.mlp(self.norm2(x)))
        if context.capture is not None:
            context.capture[f"blocks.{self.layer}.attention"] = attended
            context.capture[f"blocks.{self.layer}.hidden"] = x
        return x
