"""P-tuning v2: prompts at every depth of the model, not only at its input (Liu et al. 2021, arXiv:2110.07602).

    k = [Pk; x Wk]    v = [Pv; x Wv]        in every block, V rows of each: the arithmetic of prefix tuning (prefix.py)

What the paper adds is how to use it for understanding, from small models up: the table learns directly (the reparametrising network helps
on some tasks and hurts on others, section 3.2), V is 20 or less for simple classification and about 100 for hard sequence labelling, and a
head is trained beside it where there is one. In a file it is a prefix, and it loads as peft.Prefix.
Left out: multi-task pre-training of the prompts, dropout on the prompts (the authors' code has it), the trained head (use the base's).
Proved in tests/peft/test_ptuning_v2.py."""

from dataclasses import dataclass

from torch import Tensor, nn

from minift.peft.prefix import Prefix


@dataclass(frozen=True)
class PTuningV2:
    """How many deep prompts, and how they are learned."""

    length: int = 20
    """V: 20 for simple tasks, 100 for hard ones."""
    projection: bool = False
    """Learn through prefix tuning's network."""
    projection_size: int = 512
    """Its width."""

    peft_type = "PREFIX_TUNING"

    def __post_init__(self):
        self.prefix()

    def prefix(self) -> Prefix:
        """The same thing by its older name; its checks are ours."""
        return Prefix(self.length, self.projection, self.projection_size)

    def build(self, model: nn.Module) -> dict[str, nn.Module]:
        return self.prefix().build(model)

    def to_file(self, model: nn.Module, small: dict[str, nn.Module]) -> dict:
        return self.prefix().to_file(model, small)

    def file_tensors(self, model: nn.Module, small: dict[str, nn.Module]) -> dict[str, Tensor]:
        return self.prefix().file_tensors(model, small)
