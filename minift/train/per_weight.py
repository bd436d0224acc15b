"""One weight at a time: what Lion, Adafactor and GaLore have in common.

    for every weight w with a gradient g:   w <- (1 - lr * weight_decay) w,   then the optimizer's own change of w

The decay is AdamW's: beside the step, in proportion to the rate. Averages and arithmetic are float32 whatever the weights are (float64 for
float64 weights), and stay so across a stop: torch's own load_state_dict would round them to the weights' dtype. A state holds tensors and
numbers only, so a checkpoint can be plain data.
Proved in tests/train/test_optimizers.py. Left out: closures, sparse gradients, one launch for many weights (AdamW has torch's fused one)."""

import torch
from torch import Tensor

from minift.errors import InputError
from minift.train.adamw import Uncompiled


def wide(p: Tensor) -> torch.dtype:
    """The dtype that a weight is stepped in."""
    return torch.promote_types(p.dtype, torch.float32)


class PerWeight(Uncompiled):
    """An optimizer that says what it remembers of a weight (`begin`) and how it changes one (`change`)."""

    def begin(self, w: Tensor, group: dict) -> dict:
        """The state before the first step."""
        raise NotImplementedError

    def change(self, w: Tensor, g: Tensor, state: dict, group: dict) -> None:
        """Step the weight w with its gradient g, both wide; g is not to be written to."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                w, g = p.to(wide(p)), p.grad.to(wide(p))                      # themselves, if they are wide already
                if not self.state[p]:
                    self.state[p] = self.begin(w, group)
                w.mul_(1 - group["lr"] * group["weight_decay"])
                self.change(w, g, self.state[p], group)
                if w is not p:
                    p.copy_(w)

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a saved state, to the bit. Raises InputError if it is another optimizer's, or another model's."""
        own = [(p, group) for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        pairs = [(p, group, state_dict["state"][number]) for (p, group), number in zip(own, numbers) if number in state_dict["state"]]
        for p, group, saved in pairs:                                         # before anything is replaced
            wanted = self.begin(p.detach().to(wide(p)), group)
            if saved.keys() != wanted.keys():
                raise InputError(f"the saved optimizer state holds {', '.join(sorted(saved))}, {type(self).__name__}'s {', '.join(sorted(wanted))}: "
                                 "another optimizer wrote it; go on with that one, or start anew")  # fmt: skip
            for name, value in wanted.items():
                if isinstance(value, Tensor) and saved[name].shape != value.shape:
                    raise InputError(f"the saved {name} is of shape {tuple(saved[name].shape)}, this run's of {tuple(value.shape)}: use the same model "
                                     "and settings")  # fmt: skip
        super().load_state_dict(state_dict)
        for p, _, saved in pairs:
            self.state[p] = {name: v.to(p.device, copy=True) if isinstance(v, Tensor) else v for name, v in saved.items()}
