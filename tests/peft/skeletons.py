"""Famous models as skeletons of the right shapes on the meta device: they take no memory, and the papers' counts can be counted."""

import torch
from torch import nn

from minift.models.config import ModelConfig
from minift.models.transformer import Transformer


def decoder(**shape) -> Transformer:
    with torch.device("meta"):
        return Transformer(ModelConfig(**shape))


def gpt3() -> Transformer:
    """GPT-3 175B (Brown et al. 2020, table 2.1), with q, k and v as three linears, as the LoRA paper counts them."""
    return decoder(family="gpt2", vocab_size=50257, hidden_size=12288, layers=96, heads=96, kv_heads=96, head_dim=128, mlp_size=4 * 12288,
                   norm="layernorm", position="learned", activation="gelu_tanh", gated=False, qkv="separate", qkv_bias=True,
                   attention_out_bias=True, mlp_bias=True, max_positions=2048)  # fmt: skip


def llama_7b() -> Transformer:
    return decoder(vocab_size=32000, hidden_size=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_size=11008, tie_embeddings=False,
                   max_positions=2048)  # fmt: skip


def bert(layers: int, C: int, V: int = 30522) -> nn.Module:
    """BERT (and, with another vocabulary, RoBERTa) without a task's head: embeddings, blocks, pooler."""
    linear, norm = nn.Linear, nn.LayerNorm

    def block() -> nn.Module:
        return nn.ModuleDict(dict(query=linear(C, C), key=linear(C, C), value=linear(C, C), out=linear(C, C), norm1=norm(C),
                                  up=linear(C, 4 * C), down=linear(4 * C, C), norm2=norm(C)))  # fmt: skip

    with torch.device("meta"):
        return nn.ModuleDict(dict(words=nn.Embedding(V, C), places=nn.Embedding(512, C), types=nn.Embedding(2, C), norm=norm(C),
                                  layers=nn.ModuleList(block() for _ in range(layers)), pooler=linear(C, C)))  # fmt: skip


def t0_3b() -> nn.Module:
    """The linears of T5 v1.1 / T0 3B: 24 encoder and 24 decoder blocks, C = 2048, 32 heads of 64, d_ff = 5120."""
    C, M = 2048, 5120
    flat = lambda n, k: nn.Linear(k, n, bias=False)
    attention = lambda: nn.ModuleDict(dict(q=flat(C, C), k=flat(C, C), v=flat(C, C), o=flat(C, C)))
    feed = lambda: nn.ModuleDict(dict(wi_0=flat(M, C), wi_1=flat(M, C), wo=flat(C, M)))
    with torch.device("meta"):
        return nn.ModuleDict(dict(
            encoder=nn.ModuleList(nn.ModuleDict(dict(own=attention(), feed=feed())) for _ in range(24)),
            decoder=nn.ModuleList(nn.ModuleDict(dict(own=attention(), cross=attention(), feed=feed())) for _ in range(24)),
        ))  # fmt: skip
