"""The next-token loss without the logits: the output head and the cross-entropy, some rows at a time.

    z = h WT      p = softmax(z)      loss = sum over targets of (logsumexp(z) - z_target)
    dh = (p - onehot(target)) W       dW = (p - onehot(target))T h

    h: (n, C), the stream where a target is predicted      W: (V, C), the head      z, p: (rows, V), never (n, V)

losses/sft.py's next_token keeps the logits of all B T positions, three times the size of everything else in a small model: written by
the head, read by the loss, written again as a gradient. Here each chunk of rows is multiplied, turned into p in place, and into its part
of dh while it is still in the cache (the loss is a sum, so its gradient with respect to h is known before any backward pass: backward
only multiplies by what came from above). Positions that are no target never meet the head, and a frozen head gets no dW.
Left out: the same for log-probabilities of tokens (preference losses), a bias of the head.
The plain version is next_token; equal to it, in value and gradients, by tests/losses/test_fused.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_BYTES = 64 * 2**20
"""Room for one chunk's z, float32. Larger chunks gain nothing; the products of much smaller ones are slow."""


def next_token_from_hidden(
    hidden: Tensor, head: Tensor, token_ids: Tensor, loss_mask: Tensor, logit_bytes: int = LOGIT_BYTES
) -> tuple[Tensor, Tensor]:
    """hidden (B, T, C), head (V, C), token_ids (B, T) int64, loss_mask (B, T) bool -> next_token(hidden headT, token_ids, loss_mask):
    (sum of nats over the targets, number of targets), the sum in float32 (float64 for float64 inputs).

    Under autocast the two products run in its dtype. Only once differentiable."""
    counted = loss_mask[:, 1:]
    places = F.pad(counted, (0, 1)).flatten().nonzero()[:, 0]                          # (n,): the positions that predict a target
    targets = token_ids[:, 1:][counted]                                                # (n,)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = max(1, logit_bytes // (4 * head.shape[0]))
    learn = torch.is_grad_enabled()
    return HeadAndLoss.apply(hidden, head, places, targets, dtype, rows, learn), counted.sum()


class HeadAndLoss(torch.autograd.Function):
    """Sum of nats; the gradients are made on the way forward."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, places: Tensor, targets: Tensor, dtype: torch.dtype, rows: int, learn: bool) -> Tensor:
        device, wide = hidden.device, torch.promote_types(dtype, torch.float32)
        stream, W = hidden.flatten(0, 1), head.to(dtype)                               # (B T, C), (V, C)
        dhidden = torch.zeros_like(stream) if learn and ctx.needs_input_grad[0] else None
        dhead = torch.zeros(head.shape, dtype=wide, device=device) if learn and ctx.needs_input_grad[1] else None
        z_buffer = torch.empty(min(rows, len(places)), len(W), dtype=dtype, device=device)       # one for all chunks: fresh memory is slow
        nats = []
        with torch.autocast(device.type, enabled=False):
            for place, target in zip(places.split(rows), targets.split(rows)):
                n, target = len(place), target[:, None]                                # (n, 1)
                h = stream[place].to(dtype)                                            # (n, C)
                z = torch.mm(h, W.T, out=z_buffer[:n]).to(wide)                        # (n, V)
                aim, top = z.gather(1, target), z.amax(1, keepdim=True)                # (n, 1)
                p = torch.softmax(z, 1, out=z)                                         # in place
                nats.append(top - p.amax(1, keepdim=True).log() - aim)                 # logsumexp(z) = max z - log max p
                dz = p.scatter_add_(1, target, torch.full_like(aim, -1.0)).to(dtype)   # (n, V)
                if dhidden is not None:
                    dhidden.index_copy_(0, place, torch.mm(dz, W).to(dhidden.dtype))
                if dhead is not None:
                    dhead.addmm_(dz.T, h) if dtype == wide else dhead.add_(dz.T @ h)
        ctx.save_for_backward(dhidden, dhead)
        ctx.shape, ctx.head_dtype = hidden.shape, head.dtype
        return torch.cat(nats).sum() if nats else torch.zeros((), dtype=wide, device=device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, above: Tensor):
        dhidden, dhead = ctx.saved_tensors
        dhidden = None if dhidden is None else (dhidden * above).view(ctx.shape)
        return dhidden, None if dhead is None else (dhead * above).to(ctx.head_dtype), None, None, None, None, None
