"""One block of a transformer: attention, an MLP, and their norms. x: (B, T, C)

    before   x = x + attention(norm1(x));   x = x + mlp(norm2(x))                   most decoders (pre-LN)
    beside   x = x + attention(norm1(x)) + mlp(norm2(x))                            GPT-NeoX, Falcon
    after    x = norm1(x + attention(x));   x = norm2(x + mlp(x))                   BERT (post-LN, Vaswani et al. 2017, arXiv:1706.03762)
    cross    before, and between the two    x = x + cross(cross_norm(x), encoder)   the decoder of T5 (cross.py)

A norm's output is made again in the backward pass, not kept for it (remade.py). Proved in tests/models/test_transformer.py and tests/models/test_encoder.py."""

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.attention import Attention, Context
from minift.models.config import ModelConfig
from minift.models.cross import CrossAttention
from minift.models.mlp import MLP
from minift.models.norm import make_norm, normed


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
        if self.norm_after:                                                               # the stream itself is normed, twice
            attended = drop(self.attention(x, context))
            x = self.norm1(x + attended)
            x = self.norm2(x + drop(self.mlp(x)))
        elif self.parallel:                                                               # both read the same x
            with normed(self.norm1, x) as y:
                attended = drop(self.attention(y, context))
                beside = self.mlp(y) if self.norm2 is None else None
            x = x + attended + drop(self.mlp(self.norm2(x)) if beside is None else beside)
        else:
            with normed(self.norm1, x) as y:
                attended = drop(self.attention(y, context))
            x = x + attended
            if self.cross is not None:
                x = x + drop(self.cross(self.cross_norm(x), context.memory))
            with normed(self.norm2, x) as y:
                x = x + drop(self.mlp(y))
        if context.capture is not None:
            context.capture[f"blocks.{self.layer}.attention"] = attended
            context.capture[f"blocks.{self.layer}.hidden"] = x
        return x
