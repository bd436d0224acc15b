"""The hand-written loop around another library's model and loss: nothing but the step.

    loss(batch) -> backward -> clip to norm 1 -> fused AdamW at a constant rate, without decay

Whoever has no trainer of their own, or is to be seen without it, is measured in this loop. bf16 is autocast."""

from collections.abc import Callable, Sequence

from benchmarks.turns import Gate


def bare_loop(gate: Gate, model, loss: Callable, batches: Sequence, precision: str, rate: float) -> None:
    """Again and again over the batches, whenever it is this side's turn. loss(batch) is a mean; what of the model wants a gradient trains."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    gate.open()
    while True:
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                mean = loss(batch)
            mean.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            gate.tick(mean.item())
