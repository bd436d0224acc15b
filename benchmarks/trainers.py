"""Hugging Face's Trainer and its kin as sides of a benchmark: set so that they lose nothing by their defaults, and waiting for their turns.

    arguments(TrainingArguments, ...)     no logging, saving, evaluation or bars, no worker processes, fused AdamW at a constant rate, rows in order
    ticking(gate), train(gate, trainer)   a callback that does not return from a step until it is this side's turn again

bf16 is the trainer's own mixed precision (autocast). A step's loss is what compute_loss returned; it costs a step nothing but the wrapping call."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from benchmarks.turns import Gate


def arguments(config_class, out: Path, precision: str, rows: int, **own):
    """The settings of every trainer, and its own."""
    common = dict(
        output_dir=str(out), per_device_train_batch_size=rows, max_steps=100_000, lr_scheduler_type="constant", optim="adamw_torch_fused",
        weight_decay=0.0, max_grad_norm=1.0, bf16=precision == "bf16", use_cpu=True, gradient_checkpointing=False,
        train_sampling_strategy="sequential", dataloader_num_workers=0, save_strategy="no", eval_strategy="no", logging_strategy="no",
        report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    return config_class(**common | own)


def ticking(gate: Gate):
    """A callback that waits for its turn after each optimizer step; `loss` and `work` are set by `train`."""
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):
        loss, work = None, ()

        def on_step_end(self, args, state, control, **_):
            gate.tick(float("nan") if self.loss is None else self.loss.item(), *self.work)

    return Ticking()


def train(gate: Gate, trainer, work: Callable[[dict], float] | None = None) -> None:
    """Let it train; each step's loss is kept for the gate. work(inputs): of a step on this batch, if steps are not alike."""
    callback = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "Ticking")
    compute = trainer.compute_loss

    @wraps(compute)
    def compute_loss(model, inputs, *arguments, **named):
        if work is not None:
            callback.work = (work(inputs),)
        found = compute(model, inputs, *arguments, **named)
        callback.loss = (found[0] if isinstance(found, tuple) else found).detach()
        return found

    trainer.compute_loss = compute_loss
    gate.open()
    trainer.train()
