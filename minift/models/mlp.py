"""The MLP of a block, with or without a gate. x: (B, T, C), inside M numbers a token

    down(act(up(x)))                    the Transformer's (Vaswani et al. 2017, arXiv:1706.03762)
    down(act(gate(x)) * up(x))          SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202)

    h = silu(g) u          du = silu(g) dh          dg = silu'(g) u dh

Of a gated one only g and u are kept for the backward pass: h, which `down` wants to see, is made again (remade.py), and so is silu(g).
Proved in tests/models/test_mlp.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.config import ModelConfig
from minift.models.linear import Linear, gradients_by_formula
from minift.models.remade import remade

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


class MLP(nn.Module):
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
        gate, up = self.gate(x), self.up(x)                           # (B, T, M)
        h = self.gated(gate, up)
        with remade(h, lambda: self.gated(gate, up), gate, up):
            return self.down(h)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        by_hand = self.act is F.silu and gate.dtype == up.dtype and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return SwiGLU.apply(gate, up) if by_hand else self.act(gate) * up


class SwiGLU(torch.autograd.Function):
    """silu(g) u."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dh: Tensor):
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(gradients_by_formula(lambda gate, up: F.silu(gate) * up, (gate, up), dh))
        return torch.ops.aten.silu_backward(dh * up, gate), F.silu(gate).mul_(dh)
