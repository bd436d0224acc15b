"""What a lesson looks at, as arrays: attention maps, rotations, the stream of vectors, which tokens count; the rank and the directions
of a change of weights, what of it survives rounding, what virtual tokens are near to, what a training step has to remember, and how far
a policy has moved.

Nothing here draws: a picture is ten lines of matplotlib in the notebook. Nothing here computes a second time what the model
computes: the numbers come through `capture`, from the very forward pass that makes the logits.
T tokens of one text, H heads, D head width, C model width, V vocabulary, L blocks; of a weight W (N, K), N outputs and K inputs.
Proved in tests/test_watch.py."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batches import Example
from minift.data.branches import Tree, rows_of
from minift.losses.kl import exact_kl
from minift.losses.logprobs import per_answer
from minift.models.config import ModelConfig
from minift.models.rope import rotate, rotation
from minift.models.transformer import Transformer
from minift.tokenizer import Tokenizer


def attention(model: Transformer, ids: Sequence[int], segments: Sequence[int] | None = None) -> Tensor:
    """Who looks where: (L, H, T, T) float32; row t of a head is what token t takes from tokens 0..t, and sums to 1."""
    seen = _captured(model, ids, segments)
    return torch.stack([seen[f"blocks.{layer}.attention.weights"][0] for layer in range(model.config.layers)])


def looking_back(weights: Tensor, back: int) -> Tensor:
    """weights (L, H, T, T) -> (L, H): the mean share that a token gives to the one `back` places before it."""
    return weights.diagonal(-back, dim1=-2, dim2=-1).mean(-1)


def reach(weights: Tensor) -> Tensor:
    """weights (L, H, T, T) -> (L, H): how many places back a head looks, a mean over its attention and over the tokens."""
    T = weights.shape[-1]
    back = torch.arange(T)[:, None] - torch.arange(T)                                            # (T, T)
    return (weights * back).sum(-1).mean(-1)


def stream(model: Transformer, ids: Sequence[int]) -> Tensor:
    """The vectors that the blocks read and write: (L + 1, T, C), after the embedding and after each block."""
    seen = _captured(model, ids, None)
    return torch.stack([seen["embed"][0], *(seen[f"blocks.{layer}.hidden"][0] for layer in range(model.config.layers))])


@torch.no_grad()
def lens(model: Transformer, ids: Sequence[int]) -> Tensor:
    """(L + 1, T - 1): nats of each next token if the last norm and the head read the stream at that depth already ("logit lens",
    nostalgebraist 2020). Its last row is the model's own loss."""
    targets = torch.tensor(ids)[1:]                                                              # (T-1,)
    logs = model.head(model.norm(stream(model, ids)[:, :-1])).float().log_softmax(-1)            # (L+1, T-1, V)
    return -logs[:, torch.arange(len(targets)), targets]


def rotated(config: ModelConfig, x: Tensor, positions: Sequence[int]) -> Tensor:
    """The vector x (D,) as it enters attention at each position: (P, D). RoPE pairs number i with number i + D/2."""
    cos, sin = rotation(config, torch.tensor(positions)[None])                                   # (1, 1, P, D/2)
    return rotate(x.expand(1, 1, len(positions), -1), cos, sin)[0, 0]


def marks(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """[(piece, does it count in the loss), ...], one for each of the T tokens."""
    return [(tokenizer.piece(i), counts) for i, counts in zip(example.ids, example.loss_mask, strict=True)]


# -- changes of weights ------------------------------------------------------------------------------------------------------------


def spectra(changes: Sequence[Tensor]) -> Tensor:
    """M matrices (N, K) -> (M, R): the singular values of each, the largest first; zeros where a matrix has fewer than R of them."""
    values = [torch.linalg.svdvals(change) for change in changes]
    R = max(map(len, values))
    return torch.stack([F.pad(v, (0, R - len(v))) for v in values])


def size_by_rank(singular_values: Tensor) -> Tensor:
    """(..., R) -> (..., R): the share of ‖ΔW‖² that the nearest matrix of rank 1, 2, ..., R holds."""
    squares = singular_values.square().cumsum(-1)
    return squares / squares[..., -1:]


def of_rank(change: Tensor, ranks: Sequence[int]) -> Tensor:
    """(N, K) -> (len(ranks), N, K): no matrices of these ranks are nearer to `change` (Eckart and Young 1936)."""
    U, S, Vt = torch.linalg.svd(change, full_matrices=False)
    return torch.stack([U[:, :rank] * S[:rank] @ Vt[:rank] for rank in ranks])


def agreement(one: Tensor, other: Tensor, most: int) -> Tensor:
    """Two changes (N, K) -> (2, most): how much of the space of the first k directions of one is in that of the other, for k = 1..most.

    Row 0: the directions they write to (the left singular vectors); row 1: those they read from (the right ones). 1 is the same space;
    chance is k / N, or k / K. Eq. 4 of arXiv:2106.09685 with i = j = k."""
    (U, _, Vt), (U_other, _, Vt_other) = (torch.linalg.svd(change, full_matrices=False) for change in (one, other))
    meet = torch.stack([U[:, :most].T @ U_other[:, :most], Vt[:most] @ Vt_other[:most].T]).square()      # (2, most, most)
    return meet.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1) / torch.arange(1, most + 1)


def survived(changes: Sequence[Tensor], arrived: Sequence[Tensor]) -> tuple[float, float]:
    """What was to be added to some weights, and what their values moved by: (share, cosine), over all of them together.

    share = ⟨arrived, change⟩ / ‖change‖²: how far the weights went along the change. cosine: how much of what happened to them is that."""
    wanted, found = (torch.cat([tensor.flatten() for tensor in side]).double() for side in (changes, arrived))
    along = wanted @ found
    return (along / wanted.square().sum()).item(), (along / (wanted.norm() * found.norm())).item() if found.any() else 0.0


# -- virtual tokens ----------------------------------------------------------------------------------------------------------------


def to_virtual(weights: Tensor, virtual: int) -> Tensor:
    """What `attention` gives for a model with virtual tokens in front -> (L, H, T): the share that each real token gives to all of them."""
    T = weights.shape[-1] - virtual
    return weights[..., -T:, :virtual].sum(-1)


def nearest(vectors: Tensor, table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """vectors (n, C), an embedding table (V, C) -> cosines and ids, (n, count) both, the nearest row first. Cosine: length does not count."""
    found = (F.normalize(vectors, dim=-1) @ F.normalize(table, dim=-1).T).topk(count)
    return found.values, found.indices


# -- memory ------------------------------------------------------------------------------------------------------------------------


def kept_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass while forward() runs: each stretch of memory once, the model's own weights not."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}                                                    # held here, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()                                                      # itself, it would hold the graph that holds it

    keep.only_looks = keep                                                          # to models/remade.py: go on as without us
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()                                                          # held too: what it kept must not be freed yet
    del result
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


# -- policies ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def distance(policy: Transformer, reference: Transformer, trees: Sequence[Tree], temperature: float, at_once: int = 16) -> Tensor:
    """(A,) nats, one for each answer of the trees: the exact KL(policy || reference) of the next-token distributions at this temperature,
    added up over the answer's tokens. Its mean over answers drawn from the policy is the divergence of the two as writers of answers, with
    less noise than log p - log q of the drawn tokens has. Both models are run as they are: put them into eval mode."""
    found = []
    for start in range(0, len(trees), at_once):
        batch = rows_of(trees[start : start + at_once])
        read = lambda model: model.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches).flatten(0, 1)[batch.places]    # (n, C)
        logits = [model.head(read(model)).float() / temperature for model in (policy, reference)]
        found.append(per_answer(exact_kl(*logits), batch.lengths))
    return torch.cat(found)


@torch.no_grad()
def _captured(model: Transformer, ids: Sequence[int], segments: Sequence[int] | None) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        model(torch.tensor([ids]), segments=None if segments is None else torch.tensor([segments]), capture=seen)
    finally:
        model.train(was_training)
    return seen
