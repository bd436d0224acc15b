"""AdamW that keeps its two averages in 8 bits a number: a quarter of the memory (Dettmers et al. 2021, arXiv:2110.02861).

    m, v: one byte a number, and a float32 absmax for every 256 numbers     2 (1 + 4/256) = 2.03 bytes a weight, where AdamW keeps 8

How a block becomes codes, and the step itself, stand in minift_kernels/averages.py: plain torch, which is what runs on a CPU. On a GPU one
Triton launch updates all tensors (minift_kernels/adamw8bit.py). Tensors under 4,096 numbers (norms, biases) keep float32 averages: there is
nothing to save, and no block to share an absmax with. All of it as bitsandbytes does.

`paged=True`, on a GPU: the codes live in pinned host memory and visit the GPU for their update only, a share at a time. It costs 4 bytes a
weight over the bus each step, and saves 2 bytes a weight of GPU memory.
Proved in tests/train/test_adamw8bit.py and tests/parity/test_bitsandbytes_optim.py. Left out: percentile clipping, sparse gradients."""

from collections.abc import Iterator

import torch
from torch import Tensor

from minift.errors import InputError
from minift.train.adamw import Uncompiled
from minift_kernels.averages import BLOCK, adamw8bit_reference, rates_of

SMALL = 4096
"""Tensors with fewer numbers than this keep float32 averages."""
VISIT = 2**26
"""Paged: numbers whose codes are on the GPU at a time, if no tensor is larger."""
CODED, PLAIN = {"step", "m", "m_absmax", "v", "v_absmax"}, {"step", "m", "v"}


class AdamW8bit(Uncompiled):
    """torch.optim.AdamW's arguments and meaning; weights of any floating-point dtype."""

    def __init__(
        self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
        paged: bool = False,
    ):  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.paged = paged
        for p in (p for group in self.param_groups for p in group["params"]):
            if paged and not p.is_cuda:
                raise InputError(f"paged averages stay in host memory while the weights are on a GPU, and these are on {p.device}: take plain adamw8bit")
            if not p.is_contiguous():
                raise InputError(f"AdamW8bit: a weight of shape {tuple(p.shape)} has strides {p.stride()}: its blocks need one piece of memory")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        coded, rates = [], []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p] or self._begin(p)
                state["step"] += 1
                if p.numel() < SMALL:
                    plain_step(p, p.grad, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])
                else:
                    coded.append(p)
                    rates.append(rates_of(state["step"], group["lr"], group["betas"], group["eps"], group["weight_decay"]))
        for part in self._visits(coded):
            self._coded_step([coded[i] for i in part], torch.tensor([rates[i] for i in part]))
        return loss

    def _begin(self, p: Tensor) -> dict:
        """Averages of zero. Code 0 is the map's lowest value, but times an absmax of zero it is zero too."""
        state = self.state[p]
        state["step"] = 0
        if p.numel() < SMALL:
            state["m"], state["v"] = torch.zeros_like(p, dtype=torch.float32), torch.zeros_like(p, dtype=torch.float32)
        else:
            home = dict(device="cpu", pin_memory=True) if self.paged else dict(device=p.device)
            for name in ("m", "v"):
                state[name] = torch.zeros(p.shape, dtype=torch.uint8, **home)
                state[f"{name}_absmax"] = torch.zeros(-(-p.numel() // BLOCK), dtype=torch.float32, **home)
        return state

    def _visits(self, params: list[Tensor]) -> Iterator[list[int]]:
        """Which tensors are updated together: all that share a device, or, paged, about VISIT numbers of them."""
        for device in dict.fromkeys(p.device for p in params):
            part, numbers = [], 0
            for i, p in enumerate(params):
                if p.device != device:
                    continue
                if self.paged and part and numbers + p.numel() > VISIT:
                    yield part
                    part, numbers = [], 0
                part, numbers = [*part, i], numbers + p.numel()
            yield part

    def _coded_step(self, params: list[Tensor], rates: Tensor) -> None:
        states, device = [self.state[p] for p in params], params[0].device
        names = ("m", "m_absmax", "v", "v_absmax")
        here = [[state[name].to(device, non_blocking=True) for state in states] for name in names]       # themselves, unless paged
        step = adamw8bit_reference
        if device.type == "cuda":
            from minift_kernels.adamw8bit import adamw8bit as step                    # imports triton, which a CPU need not have
        step(params, [p.grad.contiguous() for p in params], *here, rates.to(device))
        if self.paged:
            for name, updated in zip(names, here):
                for state, tensor in zip(states, updated):
                    state[name].copy_(tensor, non_blocking=True)
            torch.cuda.current_stream(device).synchronize()                           # before anyone reads them, or this share's memory is reused

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a saved state, to the bit. torch's own would turn codes and absmax into the weights' dtype."""
        own = [p for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        pairs = [(p, state_dict["state"][number]) for p, number in zip(own, numbers) if number in state_dict["state"]]
        for p, saved in pairs:                                                        # before anything is replaced
            wanted = PLAIN if p.numel() < SMALL else CODED
            if saved.keys() != wanted:
                raise InputError(f"the saved optimizer state holds {', '.join(sorted(saved))}, AdamW8bit's {', '.join(sorted(wanted))}: another "
                                 "optimizer wrote it; go on with that one, or start anew")  # fmt: skip
            if saved["m"].shape != p.shape:
                raise InputError(f"the saved averages are of shape {tuple(saved['m'].shape)}, the weight of {tuple(p.shape)}: use the same model")
        super().load_state_dict(state_dict)
        for p, saved in pairs:
            home = lambda t: t.cpu().pin_memory() if self.paged and p.numel() >= SMALL else t.to(p.device, copy=True)
            self.state[p] = {name: home(value) if isinstance(value, Tensor) else value for name, value in saved.items()}


def plain_step(p: Tensor, g: Tensor, state: dict, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """AdamW with averages in float32, its factors ordered as bitsandbytes orders them."""
    (beta1, beta2), step, g = betas, state["step"], g.float()
    m, v, correction = state["m"], state["v"], (1 - beta2**step) ** 0.5
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    wide = p.to(torch.float32, copy=True).mul_(1 - lr * weight_decay)
    p.copy_(wide.add_(m / (v.sqrt() + eps * correction), alpha=-lr * correction / (1 - beta1**step)))
