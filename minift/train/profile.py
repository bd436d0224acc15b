"""Where the time and the memory of a training go: `--profile`.

    steps 1 to 3   warm up, unmeasured
    steps 4 to 7   timed: data, forward, loss, backward, optimizer; nothing else is on
    step 8         every operation is looked at: its arithmetic (flops.py), what memory is alive (memory_kinds.py); slow
    step 9         torch.profiler's trace, for Perfetto (ui.perfetto.dev) or chrome://tracing; slow too

Then the run goes on as if nothing had been: what is computed is the same to the bit. A run of fewer steps has fewer of the first two kinds.
The loop calls lap(part) where a part ends, and the time since the last call is that part's; so the parts are the whole of the step, less what is
between two (evaluation, saving, the log). A GPU is waited for at each. Forward ends where the model's last norm does, which a hook tells; the rest
of the recipe's loss is "loss": the head, and where it goes through in chunks (losses/fused.py) its gradient too, which is made on the way.
Left out: several devices; --compile, around which no hook is. Proved in tests/train/test_profile.py."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minift.files import write_text
from minift.models.transformer import Transformer
from minift.train.ema import Averages
from minift.train.memory_kinds import Alive, Read, activations, foretold, size_of, state_tensors

PARTS = ("data", "forward", "loss", "backward", "optimizer")
WARM, TIMED = 3, 4
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear")
Lap = Callable[[str], None]
"""Called where a part ends, with its name; "between" where what is not a part of a step does."""


class Steps(NamedTuple):
    """Which optimizer steps, counted from 0."""

    timed: range
    counted: int
    traced: int


def chosen(first: int, steps: int) -> Steps | None:
    """Of the steps first ... steps - 1; None if they are too few."""
    left = steps - first
    timed = min(TIMED, left - 2)
    begin = first + min(WARM, left - 2 - timed)
    return Steps(range(begin, begin + timed), begin + timed, begin + timed + 1) if left >= 3 else None


@contextlib.contextmanager
def laps(
    wanted: bool, folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], averages: Averages | None, first: int, steps: int,
    bf16: bool, say: Callable[[str], None],
) -> Iterator[Lap]:  # fmt: skip
    """Yields the function that the loop calls; if no profile is wanted, one that does nothing. Leaves profile.json and trace.json.gz in `folder`."""
    if wanted and (which := chosen(first, steps)) is None:
        say(f"no profile: {steps - first} steps are too few, wanted 3 or more (to time, to count and to trace)")
    elif wanted:
        profile = Profile(folder, model, optimizers, averages, which, first, bf16)
        try:
            yield profile.lap
        finally:
            profile.close()
        return
    yield lambda part: None


class Profile:
    def __init__(self, folder, model, optimizers, averages, steps: Steps, first: int, bf16: bool):
        from minift.train import flops                          # here: torch's formulas import triton where there is one, and every run would wait

        self.folder, self.model, self.optimizers, self.steps, self.step, self.bf16 = folder, model, optimizers, steps, first, bf16
        self.averages = list(averages.averages.values()) if averages else []
        self.bodies = [module for module in model.modules() if isinstance(module, Transformer)]
        self.device = next(model.parameters()).device
        weights = next((body.embed.weight for body in self.bodies), next(model.parameters())).dtype
        dtype = torch.bfloat16 if bf16 else weights if weights.is_floating_point else torch.float32
        self.found = {
            "timed": [n + 1 for n in steps.timed], "counted": steps.counted + 1, "traced": steps.traced + 1, "bf16": bf16,
            "dtype": str(dtype).removeprefix("torch."), "checkpointing": getattr(model, "checkpointing", False), "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type, "torch": torch.__version__,
            "peak": flops.matmul_peak(dtype, self.device), "foretold": foretold(model, optimizers, self.averages),
        }  # fmt: skip
        self.new_counter = flops.Counter
        self.seconds, self.tokens = dict.fromkeys(PARTS, 0.0), {"timed": 0, "counted": 0}
        self.in_forward, self.gradients, self.calls, self.logits = False, 0, [], 0
        """What the counted step's micro-batches called the model with, and of how many tokens all logits were asked."""
        self.modes, self.alive, self.counter, self.trace, self.done = contextlib.ExitStack(), None, None, None, False
        self.hooks = [body.norm.register_forward_hook(self._body_ends) for body in self.bodies]
        self.hooks += [body.blocks[0].register_forward_pre_hook(partial(self._body_begins, body)) for body in self.bodies]
        heads = [getattr(module, "head", None) for module in dict.fromkeys([model, *self.bodies])]
        self.hooks += [head.register_forward_hook(self._head) for head in heads if head is not None]
        self.last = self._now()
        self._begin()

    def lap(self, part: str) -> None:
        if self.done:
            return
        now = self._now()
        if self.step in self.steps.timed and part != "between":
            self.seconds[part] += now - self.last
        self.in_forward = part == "data" or (part == "forward" and self.in_forward)          # a block run again in the backward pass is not forward
        if self.alive is not None:
            self.alive.watching = part in ("data", "forward", "loss")                        # what runs now is forward, loss or backward
            if part == "data":
                self.calls.append([])
            if part == "backward":
                self.gradients = size_of([p.grad for p in self.model.parameters() if p.grad is not None])
        if part == "optimizer" and self.step == self.steps.counted:
            self._counted()
        if part == "optimizer" and self.step == self.steps.traced:
            self._traced()
        if part == "between":
            self.step += 1
            self._begin()
        self.last = self._now()

    def close(self) -> None:
        """Take off whatever is still on: also where a run was stopped in the middle of its profile."""
        self.modes.close()
        self.alive, self.done = None, True
        for hook in self.hooks:
            hook.remove()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _begin(self) -> None:
        if self.step == self.steps.counted:
            self.alive, self.counter = Alive([*self.model.parameters(), *self.model.buffers(), *state_tensors(self.optimizers)]), self.new_counter()
            forget = lambda p: self.alive.forget(p.grad) if self.alive is not None else None
            self.hooks += [p.register_post_accumulate_grad_hook(forget) for p in self.model.parameters() if p.requires_grad]
            self.modes.enter_context(self.alive)
            self.modes.enter_context(self.counter)
        if self.step == self.steps.traced:
            kinds = torch.profiler.ProfilerActivity
            self.trace = torch.profiler.profile(activities=[kinds.CPU] + [kinds.CUDA] * (self.device.type == "cuda"))
            self.modes.enter_context(self.trace)

    def _body_begins(self, body: Transformer, block: nn.Module, inputs: tuple) -> None:
        x, context = inputs[0], inputs[1]                                                     # (B, T, C)
        tokens = x.shape[0] * x.shape[1]
        if self.in_forward and self.step in self.steps.timed:
            self.tokens["timed"] += tokens
        if self.in_forward and self.step == self.steps.counted:
            self.tokens["counted"] += tokens
            length = x.shape[1] if context.ragged is None else max(length for _, length in context.ragged.runs)
            if torch.is_grad_enabled():                                                       # a reference keeps nothing
                self.calls[-1].append(Read(body, tokens, length, context.bias is not None))

    def _body_ends(self, norm: nn.Module, inputs: tuple, stream: torch.Tensor) -> None:
        if self.in_forward:
            self.lap("forward")

    def _head(self, head: nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
        if self.in_forward and self.step == self.steps.counted and torch.is_grad_enabled():
            self.logits = max(self.logits, logits.shape[:-1].numel())

    def _counted(self) -> None:
        self.modes.close()
        held = [*self.model.parameters(), *self.model.buffers()]
        reads = [calls for calls in self.calls if calls]
        own = [activations(calls, self.logits, self.bf16, self.found["checkpointing"]) for calls in reads]
        self.found["foretold"]["activations"] = max(own, default=None)
        self.found["measured"] = {
            "weights": size_of(held), "gradients": self.gradients, "optimizer": size_of([*state_tensors(self.optimizers), *self.averages]), "activations": self.alive.most,
        }  # fmt: skip
        self.found |= {"flop": self.counter.total, "counted_tokens": self.tokens["counted"]}
        self.alive = None

    def _traced(self) -> None:
        self.modes.close()
        name = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        rows = [(event.key, event.count, getattr(event, name) / 1000) for event in self.trace.key_averages()]                    # ms
        rows = sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
        self.trace.export_chrome_trace(str(self.folder / "trace.json.gz"))
        steps = len(self.steps.timed)
        self.found |= {
            "ms": {part: 1000 * seconds / steps for part, seconds in self.seconds.items()}, "tokens": self.tokens["timed"] / steps,
            "operators": rows[:10], "traced_ms": sum(row[2] for row in rows), "products_ms": sum(row[2] for row in rows if is_product(row[0])),
        }  # fmt: skip
        write_text(self.folder / "profile.json", json.dumps(self.found, indent=2) + "\n")
        self.close()


def is_product(operator: str) -> bool:
    """Matrix products, attention's among them, by the names that the trace has for them."""
    return operator in PRODUCTS or any(word in operator for word in ("scaled_dot_product", "gemm", "flash_fwd", "flash_bwd", "fmha"))
