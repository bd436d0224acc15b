"""Where the memory of training goes: weights, gradients, optimizer, activations. Foretold from shapes, and measured.

    weights      numbers x bytes of their dtype, buffers included, a tied matrix once
    gradients    the same for what trains
    optimizer    by its rule for each weight of N x K numbers (optim.py): AdamW 2 N K, Adafactor N + K ... x 4 bytes; with --ema its averages, N K more
    activations  everything else that is alive at once in the forward and backward passes, at its largest

A block of a LLaMA keeps for its backward pass, in bytes a token (w: of the stream's dtype, a: of the products', 2 under bf16, s: attention's own)

    2 norms        2 w C their inputs; their outputs are made again (models/remade.py; an RMSNorm's on a CPU only), but 5 a C if a < w and the linears behind them train: autocast
                   rounds an output anew for each that reads it (q, k, v; gate, up)
    attention      s (2 H D + 2 K D) for q, k, v and what comes out,  4 H for logsumexp,  a H D where it is rounded for `out`,  s T for a mask
    MLP            2 a M: gate and up, their product is made again; act(gate) too if it is not silu's; without a gate 2 a M
    weights        a N K for each linear where autocast rounds it, none where LoRA stands beside it on a CPU (peft/low_rank.py)

and what is alive at once is n = B T tokens times all blocks that learn (with checkpointing w C for each, their inputs) and the larger of two:
at the loss    the last norm's as above;  4 w C: the stream, its targets' rows, their gradients twice;  a V logits, at most logprobs.py's LOGIT_BYTES,
               and a tile of them in float32 if a < w;  4 V C bytes (not a token) for the head's gradient if it trains, and W rounded.
               A recipe that keeps all logits (pre-training) has (a + 8) V in place of these.
behind it      w C + 3 a M: the gradients of the stream and in one MLP, or what is made again there; with checkpointing one block in full
as if all tokens were targets.
Proved in tests/train/test_memory_kinds.py, to 15 % for LLaMA shapes, full and LoRA. Left out: what an adapter itself keeps (r a token and linear),
cross-attention, dropout's masks, virtual tokens, other losses; scratch memory inside kernels, which nobody tells us of."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from minift.losses.logprobs import LOGIT_BYTES, TILE_BYTES
from minift.models.attention import SHORT
from minift.models.transformer import Transformer
from minift.peft.lora import LoRALinear
from minift.train.adafactor import Adafactor
from minift.train.adamw8bit import SMALL, AdamW8bit
from minift.train.galore import GaLore, projected
from minift.train.lion import Lion
from minift.train.per_weight import wide

KINDS = ("weights", "gradients", "optimizer", "activations")


def size_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of the memory that these tensors lie in, each piece once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def state_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    return [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def foretold(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], averages: Sequence[Tensor] = ()) -> dict[str, int]:
    """The first three kinds, bytes; no step need have been taken. averages: of weights, held from the start (ema.py)."""
    held = [*model.parameters(), *model.buffers()]
    trained = [p for p in held if p.requires_grad]
    return {
        "weights": sum(t.numel() * t.itemsize for t in held),
        "gradients": sum(p.numel() * p.itemsize for p in trained),
        "optimizer": sum(remembered(o, p, group) for o in optimizers for group in o.param_groups for p in group["params"]) + size_of(averages),
    }


def remembered(optimizer: torch.optim.Optimizer, p: Tensor, group: dict) -> int:
    """Bytes that this optimizer will keep for the weight p."""
    each, n = wide(p).itemsize, p.numel()
    if isinstance(optimizer, AdamW8bit):
        return 8 * n if n < SMALL else 2 * (n + 4 * -(-n // 256))
    if isinstance(optimizer, Adafactor):
        return each * (n if p.ndim < 2 else n // p.shape[-1] + n // p.shape[-2])
    if isinstance(optimizer, GaLore) and projected(p, group["rank"]):
        return each * group["rank"] * (min(p.shape) + 2 * max(p.shape))
    if isinstance(optimizer, torch.optim.SGD) and not group["momentum"]:
        return 0
    if isinstance(optimizer, (Lion, torch.optim.SGD, torch.optim.Muon)):
        return n * (each if isinstance(optimizer, Lion) else p.itemsize)
    number = 4 if isinstance(optimizer, torch.optim.AdamW) else 0                    # of the step, a tensor
    return 2 * n * (each if isinstance(optimizer, GaLore) else p.itemsize) + number


@dataclass(frozen=True)
class Read:
    """What a transformer was called with: n tokens in texts or rows of length T."""

    model: Transformer
    tokens: float
    length: int
    masked: bool
    """Was there a mask, or the kernel's own causality?"""


def activations(reads: Sequence[Read], logits: int, bf16: bool, checkpointing: bool) -> int:
    """Bytes, by the formula above, of one micro-batch's calls; logits: of how many tokens they were all kept."""
    kept = again = work = ends = 0
    for read in reads:
        c, n, w = read.model.config, read.tokens, 4 if bf16 else read.model.embed.weight.itemsize
        a, V, stream = 2 if bf16 else w, c.vocab_size, n * w * c.hidden_size
        learn = [any(p.requires_grad for p in block.parameters()) for block in read.model.blocks]
        first = 0 if any(p.requires_grad for p in read.model.embed.parameters()) else learn.index(True) if True in learn else len(learn)
        blocks = len(learn) - first
        one = block(read, w, a, checkpointing) if blocks else 0
        kept += blocks * (stream if checkpointing else one)
        ends += stream * (2 if c.norm_offset and _gains(read.model) else 1)                # the last norm
        again = max(again, one - stream if checkpointing and blocks else 0)                      # its input is kept already
        work = max(work, stream + 3 * n * a * c.mlp_size)
    head = getattr(read.model, "head", None)
    if logits:
        ends += logits * V * (a + 8)
    elif head is not None:
        trains, cpu = any(p.requires_grad for p in head.parameters()), head.weight.device.type == "cpu"
        ends += 4 * stream + 4 * V * c.hidden_size * trains + min(a * n * V, LOGIT_BYTES)
        if a < w:
            ends += min(4 * n * V, TILE_BYTES if cpu else 2 * LOGIT_BYTES) + a * V * c.hidden_size * (1 + trains)
    return round(kept + max(ends, again + work))


def block(read: Read, w: int, a: int, whole: bool) -> float:
    """Bytes that one block keeps. whole: while it is recomputed, when nothing in it is made again."""
    c, T, one = read.model.config, read.length, read.model.blocks[-1]
    C, HD, KD = c.hidden_size, c.heads * c.head_dim, c.kv_heads * c.head_dim
    s = 4 if a < w and T * c.head_dim <= SHORT else a
    linears = [m._parameters["weight"] for m in one.modules() if isinstance(m, nn.Linear) and "weight" in m._parameters]      # quantized ones have none
    cpu, low_rank = read.model.embed.weight.device.type == "cpu", [m for m in one.modules() if type(m) is LoRALinear]
    train, together = any(W.requires_grad for W in linears), bool(low_rank) and cpu and not any(m.dropout for m in low_rank)
    kept = whole or c.norm_offset or (c.norm == "rmsnorm" and not cpu)                # the norms' outputs, by whoever learns from them
    norms = 2 * w * C + (2 * w * C if c.norm_offset and _gains(read.model) else 0)
    norms += (4 + c.gated) * a * C if a < w and (train or low_rank) and not together else 2 * w * C if kept and (train or low_rank) else 0
    attention = s * 2 * (HD + KD) + 4 * c.heads + (a * HD if s != a else 0) + (s * T if read.masked else 0)
    mlp = a * c.mlp_size * (2 + c.gated * ((c.activation != "silu") + whole))
    rounded = a * sum(W.numel() for W in linears) if a < w and not together else 0
    return read.tokens * (norms + attention + mlp) + rounded


def _gains(model: Transformer) -> bool:
    return model.config.norm == "rmsnorm" and any(p.requires_grad for p in model.blocks[-1].norm1.parameters())


class Alive(TorchDispatchMode):
    """While it is entered: how many bytes of tensors are alive that were made since, and at most were (`most`) while `watching`."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.now, self.most, self.watching, self.seen = 0, 0, False, WeakIdKeyDictionary()
        for tensor in known:
            self.seen[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, operator, types, args=(), named=None):
        out = operator(*args, **(named or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (memory := tensor.untyped_storage()) not in self.seen:
                self.now += memory.nbytes()
                self.seen[memory] = weakref.finalize(memory, self._freed, memory.nbytes())
                self.seen[memory].atexit = False
                if self.watching:
                    self.most = max(self.most, self.now)
        return out

    def forget(self, tensor: Tensor) -> None:
        """This one is of another kind: a gradient."""
        freed = self.seen.get(tensor.untyped_storage())
        if freed is not None:
            freed()

    def _freed(self, size: int) -> None:
        self.now -= size
