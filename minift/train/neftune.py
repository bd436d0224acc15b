"""NEFTune: noise on the embeddings while fine-tuning, so that answers follow their questions less literally (Jain et al. 2023, arXiv:2310.05914).

    x = embed[ids] + (alpha / sqrt(L C)) u          u: (T, C), each number uniform in -1 to 1        L: tokens of the text

So the noise of a text has a length of about alpha / sqrt(3), however long the text is: alpha 5 to 15 in the paper. L is what an example has of its
own, up to its last target: neither pads nor the other texts of its row count, so batching does not change how loud it is. (The paper's training code
counts without pads too. transformers' hook takes the row: pads quieten a short text, and so do the others of a packed row.)

It wraps a loss. The noise is there while the loss of a training batch is computed, and nothing of it stays on the model: an evaluation, which
calls the model itself, cannot meet it. Proved in tests/train/test_neftune.py and tests/parity/test_neftune.py.
Left out: encoder-decoders (whose prompts are laid end to end), noise on learned virtual tokens."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minift.data.batches import Batch


def noisy(loss: Callable, alpha: float) -> Callable:
    """The same loss, (model, batch) -> (sum, count), of noisy embeddings if the model is training."""

    def with_noise(model: nn.Module, batch: Batch):
        if not model.training:
            return loss(model, batch)
        hook = model.embed.register_forward_hook(partial(_add, lengths(batch), alpha))
        try:
            return loss(model, batch)
        finally:
            hook.remove()

    return with_noise


def lengths(batch: Batch) -> Tensor:
    """(B, T) int64: how many tokens the text of each token has, up to its last target; 1 where nothing is a target."""
    B, T = batch.token_ids.shape
    place = torch.arange(T, device=batch.token_ids.device).expand(B, T)
    text = torch.zeros_like(place) if batch.segments is None else batch.segments              # (B, T): its number in the row
    texts = place.new_zeros(B, int(text.max()) + 1)                                           # (B, S)
    first = texts.fill_(T).scatter_reduce(1, text, place, "amin")
    last = texts.fill_(-1).scatter_reduce(1, text, torch.where(batch.loss_mask, place, -1), "amax")
    return (last - first + 1).clamp(min=1).gather(1, text)


def _add(length: Tensor, alpha: float, module: nn.Module, given: tuple, embedded: Tensor) -> Tensor:
    """A forward hook: (B, T, C) with noise."""
    loud = alpha / (length * embedded.shape[-1]).to(torch.promote_types(embedded.dtype, torch.float32)).sqrt()      # (B, T)
    noise = torch.empty_like(embedded, dtype=loud.dtype).uniform_(-1, 1)
    return embedded + (loud[..., None] * noise).to(embedded.dtype)
