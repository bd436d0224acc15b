"""Accumulation, packing and checkpointing, in every combination, leave the gradient what it is (traps 1, 2, 7, 8, 32, 33): a loop over single texts,
in float64. llama turns its positions in float32 (eps 6e-8), so there gradients of size 1 agree to 1e-6; gpt2 is float64 all through."""

import pytest
import torch
import torch.nn.functional as F

from minift import peft
from minift.data.batches import Example, micro_batches, pack, pad
from minift.train.loop import LoopConfig, fit
from tests.models.small import model

LENGTHS = (2, 9, 3, 5, 12, 2, 7, 4, 6)
TOLERANCE = {"gpt2": 1e-12, "llama": 1e-6}
METHODS = {"full": None, "lora": peft.LoRA(rank=2, alpha=4), "prefix": peft.PTuningV2(length=3), "dora": peft.DoRA(rank=2, alpha=4)}


def texts():
    dice = torch.Generator().manual_seed(1)
    return [Example(torch.randint(31, (n,), generator=dice).tolist(), [False] + [i % 3 != 1 for i in range(1, n)]) for n in LENGTHS]


def ready(family, method):
    """A float64 model with trained parameters that are not zero."""
    own = model(family).double()
    if METHODS[method] is not None:
        torch.manual_seed(0)
        peft.attach(own, METHODS[method])
        with torch.no_grad():
            for p in own.parameters():
                if p.requires_grad:
                    p.data = p.double() + 0.1 * torch.randn(p.shape, dtype=torch.float64)
    return own


def exact(own, batch):
    logits, counted = own(batch.token_ids, segments=batch.segments)[:, :-1], batch.loss_mask[:, 1:]
    nats = F.cross_entropy(logits.transpose(1, 2), batch.token_ids[:, 1:], reduction="none")
    return (nats * counted).sum(), counted.sum()


def longhand(own):
    """One text at a time, divided by the targets of all."""
    total = sum(exact(own, pad([text]))[0] for text in texts()) / sum(sum(text.loss_mask) for text in texts())
    names = [name for name, p in own.named_parameters() if p.requires_grad]
    return dict(zip(names, torch.autograd.grad(total, [p for p in own.parameters() if p.requires_grad])))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("accumulate", [1, 2, 9])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TOLERANCE)
def test_trap01_02_07_32_33_one_step_has_one_gradient(tmp_path, family, method, accumulate, packed, checkpointing):
    """Three rows of 18 tokens hold the nine texts; cut in 2 the micro-batches are of unequal size, and in 9 there are fewer than may be accumulated."""
    own = ready(family, method)
    expected, found = longhand(own), {}
    if packed:
        batches = micro_batches(pack(texts(), 18), {1: 9, 2: 2, 9: 1}[accumulate])
    else:
        size = {1: 9, 2: 5, 9: 1}[accumulate]
        batches = [pad(texts()[i : i + size]) for i in range(0, 9, size)]
    assert len(batches) == {1: 1, 2: 2, 9: 3 if packed else 9}[accumulate]
    tell = lambda step, steps: found.update({name: p.grad.clone() for name, p in own.named_parameters() if p.requires_grad})
    config = LoopConfig(lr=0.0, epochs=1, accumulate=accumulate, clip=0, precision="fp32", checkpointing=checkpointing)
    assert fit(own, lambda epoch: batches, exact, config, tmp_path, quiet=True, after_step=tell).steps == 1
    assert found.keys() == expected.keys() and all(g.abs().max() > 0 for g in found.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=TOLERANCE[family] * max(1.0, gradient.abs().max().item()))
