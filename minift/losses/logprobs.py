"""Losses of the log-probabilities of answers, without the logits: the output head, some rows at a time.

    z = h WT / tau      log p_t = z[token_t] - logsumexp(z)      loss = L(log p_1, ..., log p_n)
    dz_t = (dL/dlog p_t) (onehot(token_t) - p) / tau  -  (dL/dH_t) p (log p + H_t) / tau      p = softmax(z_t)      H_t = - sum p log p
    dh = dz W      dW = dzT h

    h: (n, C), the stream where each answer token is predicted      W: (V, C), the head      z: (rows, V), never (n, V)

Logits kept for all tokens are three times the size of everything else in a small model: written by the head, read by the loss, written
again as a gradient. But every loss of this house that is made of log-probabilities (next tokens, DPO and its kin, PPO, GRPO) is a sum over
groups of tokens, a single one, an answer, a pair of answers, and knows its gradient as soon as the group's log-probabilities are there.
So head, loss and gradient are done some groups at a time: while a chunk's softmax is still in the cache it becomes dz, dh and its part of
dW, before any backward pass, which only multiplies by what comes from above. A frozen head gets no dW. A group larger than a chunk
is run twice, first for its log-probabilities and then for the gradients.

tau: the sampling temperature. `support`: which tokens could be drawn (top-k, top-p): the others get probability zero, on both sides of
a ratio, so that a ratio of equal policies is exactly 1 (traps 13, 14).
The plain version is `of_tokens`; equal to it by tests/losses/test_logprobs.py. Left out: a bias of the head, second derivatives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_BYTES, TILE_BYTES = 64 * 2**20, 2**21
"""Room for one chunk's z: larger chunks gain nothing, the products of much smaller ones are slow. And for the rows of it on which a CPU does softmax and
gradient at once, in float32: few enough to stay in its cache from one operation to the next."""

Loss = Callable[[Tensor, Tensor, slice], Tensor]
"""(log-probabilities (m,) of the tokens of some whole groups, entropies (m,), which of the n they are) -> the sum of these groups' losses.
The entropies are empty unless they were asked for."""


class Scored(NamedTuple):
    loss: Tensor
    """The sum of the groups' losses; differentiable with respect to the stream and the head."""
    logprobs: Tensor
    """(n,) float32, without a gradient."""
    entropy: Tensor
    """(n,) float32, of the distributions the tokens were drawn from, without a gradient; empty if it was not asked for."""


def of_tokens(logits: Tensor, tokens: Tensor, temperature: float = 1.0, support: Tensor | None = None) -> Tensor:
    """logits (n, V), tokens (n,) int64, support (n, V) bool -> log p of each token, (n,) float32. The definition."""
    z = logits.float() / temperature if logits.dtype != torch.float64 else logits / temperature
    z = z if support is None else z.masked_fill(~support, float("-inf"))
    return z.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def entropy_of(logits: Tensor, temperature: float = 1.0, support: Tensor | None = None) -> Tensor:
    """logits (n, V) -> H = - sum p log p, (n,) nats, of the distributions that `of_tokens` takes its probabilities from."""
    z = logits.float() / temperature if logits.dtype != torch.float64 else logits / temperature
    log_p = (z if support is None else z.masked_fill(~support, float("-inf"))).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0.0)).sum(-1)          # what cannot be drawn adds nothing


def per_answer(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """(n,) -> (A,): the SUM over each answer's tokens, answers one after another with lengths[a] tokens."""
    owner = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return torch.zeros(len(lengths), dtype=logprobs.dtype, device=logprobs.device).index_add(0, owner, logprobs)


def pack_support(support: Tensor) -> Tensor:
    """(n, V) bool -> (n, ceil(V / 8)) uint8: what a rollout keeps of the tokens it could have drawn."""
    bits = F.pad(support.to(torch.uint8), (0, -support.shape[1] % 8)).view(len(support), -1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=support.device)).sum(-1, dtype=torch.uint8)


def unpack_support(packed: Tensor, vocab: int) -> Tensor:
    """What pack_support packed, (n, V) bool."""
    bits = (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(1)[:, :vocab].bool()


def loss_from_hidden(
    hidden: Tensor,
    head: Tensor,
    tokens: Tensor,
    groups: Tensor | Sequence[int],
    loss: Loss,
    temperature: float = 1.0,
    support: Tensor | None = None,
    entropy: bool = False,
    logit_bytes: int = LOGIT_BYTES,
) -> Scored:
    """hidden (n, C) where each token is predicted, head (V, C), tokens (n,) int64, groups: tokens of each group, in order, sum n.

    loss is called once for each chunk of whole groups. support: (n, ceil(V / 8)) from pack_support. Under autocast the products run in its
    dtype, everything else in float32 (float64 for float64 inputs). Only once differentiable."""
    groups = torch.as_tensor(groups).tolist()
    if sum(groups) != len(tokens):
        raise ValueError(f"groups hold {sum(groups)} tokens, {len(tokens)} were given: each token belongs to one group")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, logit_bytes // (dtype.itemsize * head.shape[0]))
    learn = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    return Scored(*HeadAndLoss.apply(hidden, head, tokens, _chunks(groups, rows), rows, loss, temperature, support, entropy, dtype, learn))


def _chunks(groups: list[int], rows: int) -> list[slice]:
    """Whole groups, as many as fit into `rows`, at least one."""
    chunks, start, end = [], 0, 0
    for size in groups:
        if end > start and end + size - start > rows:
            chunks.append(slice(start, end))
            start = end
        end += size
    return [*chunks, slice(start, end)] if end > start else chunks


class HeadAndLoss(torch.autograd.Function):
    """The sum of the groups' losses; the gradients are made on the way forward."""

    @staticmethod
    def forward(ctx, hidden, head, tokens, chunks, rows, loss, temperature, support, entropy, dtype, learn):
        wide, n = torch.promote_types(dtype, torch.float32), len(tokens)
        W = head.to(dtype)                                                             # (V, C)
        dhidden = torch.empty_like(hidden) if learn and ctx.needs_input_grad[0] else None
        dhead = torch.zeros(head.shape, dtype=wide, device=head.device) if learn and ctx.needs_input_grad[1] else None
        logprobs, spread = hidden.new_empty(n, dtype=wide), hidden.new_empty(n if entropy else 0, dtype=wide)
        most = min(rows, max((part.stop - part.start for part in chunks), default=0))
        z_buffer = torch.empty(most, len(W), dtype=dtype, device=head.device)          # one for all chunks: fresh memory is slow
        few = most if head.device.type != "cpu" else min(most, max(1, TILE_BYTES // (wide.itemsize * len(W))))
        tile = None if dtype == wide else torch.empty(few, len(W), dtype=wide, device=head.device)
        shift = hidden.new_empty(most, 1, dtype=wide)                                  # logsumexp(z)
        part_of_dW = None if dhead is None or dtype == wide else torch.empty_like(W)
        total = torch.zeros((), dtype=wide, device=head.device)

        def tiles(part: slice):
            """(places among the n, rows of z) of some rows at a time."""
            return [(slice(a, min(a + few, part.stop)), slice(a - part.start, min(a + few, part.stop) - part.start)) for a in range(part.start, part.stop, few)]

        def logits(place: slice, own: slice) -> Tensor:
            """z of a tile, (m, V); its rows of z_buffer themselves if those are float32."""
            z = z_buffer[own] if tile is None else tile[: own.stop - own.start].copy_(z_buffer[own])
            z = z if temperature == 1.0 else z.div_(temperature)
            return z if support is None else z.masked_fill_(~unpack_support(support[place], len(W)), float("-inf"))

        def log_softmax(part: slice) -> None:
            """`logprobs` of a chunk, which is in z_buffer afterwards: as z, or where that is float32 as log p."""
            torch.mm(hidden[part].to(dtype), W.T, out=z_buffer[: part.stop - part.start])
            for place, own in tiles(part):
                z = logits(place, own)
                column = tokens[place, None] if support is None else z.argmax(1, keepdim=True)           # one that is not -inf
                shift[own] = z.gather(1, column)
                log_p = torch.log_softmax(z, 1, out=z)                                 # in place
                shift[own] -= log_p.gather(1, column)
                logprobs[place] = log_p.gather(1, tokens[place, None])[:, 0]
                if entropy:
                    p = log_p.exp()
                    spread[place] = -torch.xlogy(p, p).sum(1)

        def gradients(part: slice, slope: Tensor, slope_entropy: Tensor | None) -> None:
            """Add the chunk's dh and dW; slope: dL/dlog p / tau, slope_entropy: dL/dH / tau, (m, 1). What is in z_buffer is used up."""
            for place, own in tiles(part):
                p = (z_buffer[own] if tile is None else logits(place, own).sub_(shift[own])).exp_()
                from_entropy = None if slope_entropy is None else torch.xlogy(p, p).addcmul_(p, spread[place, None]).mul_(slope_entropy[own])
                dz = p.mul_(-slope[own]).scatter_add_(1, tokens[place, None], slope[own])                # (m, V)
                dz = dz if from_entropy is None else dz.sub_(from_entropy)
                if tile is not None:
                    z_buffer[own] = dz
            dz = z_buffer[: part.stop - part.start]
            if dhidden is not None:
                dhidden[part] = torch.mm(dz, W).to(dhidden.dtype)
            if dhead is not None:
                h = hidden[part].to(dtype)
                dhead.addmm_(dz.T, h) if tile is None else dhead.add_(torch.mm(dz.T, h, out=part_of_dW))

        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks:
                pieces = [slice(i, min(i + rows, part.stop)) for i in range(part.start, part.stop, rows)]
                for piece in pieces:
                    log_softmax(piece)
                value, slopes = _slopes(loss, logprobs[part], spread[part], part, learn)
                total += value
                if dhidden is None and dhead is None:
                    continue
                for piece in pieces:
                    if len(pieces) > 1:                                                # the only piece is still there
                        log_softmax(piece)
                    own = slice(piece.start - part.start, piece.stop - part.start)
                    gradients(piece, *(None if slope is None else slope[own, None] / temperature for slope in slopes))
        ctx.save_for_backward(dhidden, dhead)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(logprobs, spread)
        return total, logprobs, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, above: Tensor, *_):
        dhidden, dhead = ctx.saved_tensors
        dhidden = None if dhidden is None else dhidden * above
        return dhidden, None if dhead is None else (dhead * above).to(ctx.head_dtype), *[None] * 9


def _slopes(loss: Loss, logprobs: Tensor, entropy: Tensor, part: slice, learn: bool) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """L of some groups, and (dL/dlog p (m,), dL/dH (m,) or None where L does not ask for it)."""
    with torch.set_grad_enabled(learn):
        found, spread = logprobs.clone().requires_grad_(learn), entropy.clone().requires_grad_(learn)
        value = loss(found, spread, part)
        slopes = torch.autograd.grad(value, (found, spread), allow_unused=True) if value.requires_grad else (None, None)
    return value.detach(), (torch.zeros_like(logprobs) if learn and slopes[0] is None else slopes[0], slopes[1])
