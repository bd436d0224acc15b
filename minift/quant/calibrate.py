"""Rounding a model with a look at what its linears read: block by block, over calibration texts (as GPTQ does, arXiv:2210.17323, section 4).

    xs = the inputs of the first block, for each batch
    for each block:  run xs through it and sum up, for each linear, H = 2 XT X and mean |X|        X: (tokens, K)
                     round the block's linears with the help of those
                     xs = the rounded block's outputs, so that later blocks see, and may make up for, what earlier ones lost

In memory are one block's inputs and the sums of its linears, never a layer's inputs themselves. Linears that read the very same tensor
(q, k and v) share their sums. How a weight is rounded is gptq.py's and awq.py's business.
Left out: rounding q, k, v before out sees its inputs (within a block all linears are measured before any is rounded); padded batches;
models that fill a cache when called (transformers': use_cache=False);
linears outside the blocks and those no text reaches, which are rounded to nearest.
Proved in tests/quant/test_gptq.py and tests/quant/test_awq.py."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.quant.errors import Error, error, output_error
from minift.quant.int4 import Int4
from minift.quant.linear import wrap
from minift.quant.model import put, to_quantize
from minift.quant.tensor import dequantize, quantize


@dataclasses.dataclass
class Inputs:
    """What is remembered of the inputs X (tokens, K) of a linear."""

    hessian: Tensor
    """(K, K) float32: 2 XT X, the second derivative of ‖X WT - X W^T‖^2 in each row of W^."""
    magnitude: Tensor
    """(K,) float32: the sum of |X| over the tokens."""
    tokens: int = 0

    @classmethod
    def none(cls, K: int, device: torch.device) -> "Inputs":
        return cls(torch.zeros(K, K, device=device), torch.zeros(K, device=device))

    def add(self, x: Tensor) -> None:                                                    # (..., K)
        x = x.reshape(-1, x.shape[-1]).float()                                           # (tokens, K)
        self.hessian.addmm_(x.T, x, alpha=2)
        self.magnitude += x.abs().sum(0)
        self.tokens += len(x)

    def divided(self, s: Tensor) -> "Inputs":
        """The same of X / s, s (K,)."""
        return Inputs(self.hessian / s / s[:, None], self.magnitude / s, self.tokens)


@torch.no_grad()
def quantize_blocks(
    model: nn.Module,
    batches: Sequence[Tensor],
    group_size: int,
    to_int4: Callable[[Tensor, Inputs], Int4],
    prepare: Callable[[nn.Module, dict[str, Inputs]], None] = lambda block, inputs: None,
) -> dict[str, Error]:
    """Replace each linear of the blocks in place; returns path -> error. batches: token ids (B, T) each, for model(batch).

    to_int4: the weight (N, K) and its inputs -> its int4. prepare may first change a block (not its function) and, with it, the inputs.
    Raises InputError for a model without blocks, no batches, and what quantize_model refuses."""
    linears, blocks = to_quantize(model), blocks_of(model)
    if not batches:
        raise InputError("there are no calibration texts: give at least one batch of token ids (B, T)")
    quantize(torch.zeros(1, 1), "int4", group_size)                                      # refuses a group size before anything is changed
    was_training, errors = model.training, {}
    model.eval()
    try:
        streams, others = first_inputs(model, list(blocks.values()), batches)
        for number, (at, block) in enumerate(blocks.items()):
            inside = {path.removeprefix(at + "."): m for path, m in linears.items() if path.startswith(at + ".")}
            run = lambda: (run_block(block, x, *rest[number]) for x, rest in zip(streams, others))
            inputs = measure(at, inside, run)
            nearest = {name: output_error(m.weight, dequantize(quantize(m.weight, "int4", group_size)), inputs[name].hessian)
                       for name, m in inside.items() if name in inputs}                  # fmt: skip
            prepare(block, inputs)
            for name in nearest:
                m = inside[name]
                q = to_int4(m.weight, inputs[name])
                after = output_error(m.weight, dequantize(q), inputs[name].hessian)
                errors[f"{at}.{name}"] = dataclasses.replace(error(m.weight, q), output=after, nearest=nearest[name])
                put(model, f"{at}.{name}", wrap(q, m.bias).eval())
            for batch, y in enumerate(run()):
                streams[batch] = y
        for path in linears.keys() - errors.keys():
            q = quantize(linears[path].weight, "int4", group_size)
            errors[path] = error(linears[path].weight, q)
            put(model, path, wrap(q, linears[path].bias).eval())
    finally:
        model.train(was_training)
    return {path: errors[path] for path in linears}


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> block: the longest list of modules that each hold a linear, the outermost of several."""
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    lists = [(path, m) for path, m in lists if all(any(isinstance(part, nn.Linear) for part in block.modules()) for block in m)]
    if not lists:
        raise InputError("this model has no list of blocks (an nn.ModuleList of modules with linears) to calibrate one by one: round to nearest")
    path, longest = max(lists, key=lambda found: len(found[1]))                          # of equals, max takes the first: the outermost
    return {f"{path}.{number}": block for number, block in enumerate(longest)}


def first_inputs(model: nn.Module, blocks: list[nn.Module], batches: Sequence[Tensor]) -> tuple[list[Tensor], list[list[tuple]]]:
    """For each batch: the first block's x (B, T, C), and of every block what else it is called with (masks and rotations, mostly shared)."""
    streams, others = [], []

    def remember(block, args, kwargs):
        if block is blocks[0]:
            streams.append(args[0])
        others[-1].append((args[1:], kwargs))

    hooks = [block.register_forward_pre_hook(remember, with_kwargs=True) for block in blocks]
    try:
        for batch in batches:
            others.append([])
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return streams, others


def run_block(block: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    y = block(x, *args, **kwargs)
    return y[0] if isinstance(y, tuple) else y


def measure(at: str, linears: dict[str, nn.Linear], run: Callable[[], Iterator[Tensor]]) -> dict[str, Inputs]:
    """Name -> what was seen of its inputs, for those that were called."""
    inputs: dict[str, Inputs] = {}
    seen: dict[int, tuple[Tensor, Inputs]] = {}                                          # this batch's tensors, held so that no id comes twice

    def look(name: str):
        def hook(linear, args):
            x = args[0]
            if id(x) in seen:                                                            # another linear has summed it up
                if inputs.setdefault(name, seen[id(x)][1]) is seen[id(x)][1]:
                    return
            sums = inputs.setdefault(name, Inputs.none(x.shape[-1], x.device))
            sums.add(x)
            seen[id(x)] = x, sums

        return hook

    hooks = [linear.register_forward_pre_hook(look(name)) for name, linear in linears.items()]
    try:
        for _ in run():
            seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    for name, sums in inputs.items():
        if not torch.isfinite(sums.magnitude).all():
            raise InputError(f"{at}.{name} reads NaN or infinite numbers on the calibration texts: load the model in float32 or bfloat16")
    return inputs
