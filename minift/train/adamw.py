"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101): a step as long as the gradient is steady, and a decay beside it.

    m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2        m' = m / (1 - beta1^t)        v' = v / (1 - beta2^t)
    w <- (1 - lr weight_decay) w - lr m' / (sqrt(v') + eps)

The arithmetic is PyTorch's fused kernel, one launch for all weights of a device and dtype. Why not torch.optim.AdamW, whose state and settings these are: its methods first
import torch.compile's compiler to say that they must not be compiled, which took a second of the three from a command to its first step.
Proved in tests/train/test_optim.py, equal to torch's bit by bit. Left out: AMSGrad, closures, sparse gradients."""

from inspect import unwrap

import torch


class Uncompiled(torch.optim.Optimizer):
    """PyTorch's optimizer without the decorators that ask for its compiler."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(Uncompiled, torch.optim.AdamW):
    """weights: float32, bfloat16 or float64; averages in the same dtype."""

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False                                       # a GradScaler divides the gradients itself, and skips a step

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list] = {}
            for w in group["params"]:
                if w.grad is not None:
                    alike.setdefault((w.device, w.dtype), []).append((w, w.grad, *self._remembered(w)))
            (beta1, beta2), options = group["betas"], {name: group[name] for name in ("lr", "weight_decay", "eps")}
            for weights in alike.values():
                w, g, m, v, t = map(list, zip(*weights))
                torch._foreach_add_(t, 1)
                torch._fused_adamw_(w, g, m, v, [], t, beta1=beta1, beta2=beta2, amsgrad=False, maximize=False, **options)

    def _remembered(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """m, v and t."""
        state = self.state[w]
        if not state:
            alike = lambda: torch.zeros_like(w, memory_format=torch.preserve_format)
            state.update(step=torch.zeros((), dtype=torch.float32, device=w.device), exp_avg=alike(), exp_avg_sq=alike())
        return state["exp_avg"], state["exp_avg_sq"], state["step"]
