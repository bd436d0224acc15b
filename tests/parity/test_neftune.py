"""Our noise beside the hook of transformers (which trl uses too), from the same random numbers."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
from transformers.integrations.neftune import neftune_post_forward_hook

from minift.data.batches import Example, pack, pad
from minift.train.neftune import noisy


def both(batch, alpha=7.0):
    """(ours, theirs): the embeddings of a batch."""
    model = nn.Module()
    model.embed = nn.Embedding(9, 32, dtype=torch.float64)
    seen = []
    torch.manual_seed(0)
    noisy(lambda model, batch: seen.append(model.embed(batch.token_ids)), alpha)(model, batch)
    model.embed.neftune_noise_alpha = alpha
    model.embed.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(0)
    return seen[0] - model.embed.weight[batch.token_ids], model.embed(batch.token_ids) - model.embed.weight[batch.token_ids]


def example(size):
    return Example(list(range(1, size + 1)), [False] + [True] * (size - 1))


def test_of_rows_without_pads_the_noise_is_equal():
    ours, theirs = both(pad([example(6), example(6)]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)                     # they take the root of a whole number, in float32
    assert ours.abs().max() > 0.3                                                  # 7 / sqrt(6 * 32) = 0.505


@pytest.mark.parametrize("batch, sizes", [(pad([example(2), example(8)]), [[2], [8]]), (pack([example(5), example(3)], 8), [[5, 3]])])
def test_padded_and_packed_texts_are_louder_here_by_the_root_of_row_over_text(batch, sizes):
    ours, theirs = both(batch)
    for row, texts in enumerate(sizes):
        start = 0
        for size in texts:
            part = slice(start, start + size)
            torch.testing.assert_close(ours[row, part], theirs[row, part] * (8 / size) ** 0.5, rtol=0, atol=1e-7)
            start += size
