"""The one wrapper that adapters live in, and the surgery that puts it into a model's tree and takes it out.

    before:  parent.q = Linear                    after:  parent.q = Adapted(base=Linear, adapters={"default": LoRALinear, ...})

Paths are those of the bare model everywhere: "blocks.0.attention.q", adapted or not.
Proved in tests/peft/test_attach.py and test_targets.py."""

import torch
from torch import Tensor, nn

from minift.errors import InputError
from minift.models.attention import Context
from minift.models.linear import is_product


class Adapted(nn.Module):
    """Stands where `base` stood. Its call goes to the active small module, or straight to the base; with `rows`, row by row."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.rows: dict[str | None, Tensor] | None = None
        """Set's name (None: the base) -> the rows of the batch it answers; see attach.rows."""
        self.train(base.training)

    def forward(self, *inputs, **named):
        if self.rows is not None:
            return self._by_rows(inputs, named)
        if self.active is None:
            return self.base(*inputs, **named)
        return self.adapters[self.active](self.base, *inputs, **named)

    def _by_rows(self, inputs: tuple, named: dict):
        """Each set runs on its own rows. Where an input is more than a tensor (a block with its cache), the base runs once on all rows
        and a set gets its rows of the answer as "the base's answer": right for the methods that only change a module's output."""
        B = sum(len(rows) for rows in self.rows.values())
        if not inputs or any(isinstance(i, Tensor) and len(i) != B for i in inputs):
            found = f"a batch of {len(inputs[0])}" if inputs else "virtual tokens, which all rows of a batch share"
            raise InputError(f"peft.rows names the sets of {B} rows, but this is {found}")
        whole = None if all(isinstance(i, Tensor) for i in (*inputs, *named.values())) else self.base(*inputs, **named)
        answers = {}
        for name, rows in self.rows.items():
            pick = lambda value: self._rows_of(value, rows, B)
            mine, mine_named = [pick(i) for i in inputs], {key: pick(value) for key, value in named.items()}
            base = self.base if whole is None else lambda *_, rows=rows, **__: whole[rows]
            answers[name] = self.adapters[name](base, *mine, **mine_named) if name in self.adapters else base(*mine, **mine_named)
        order = torch.cat(list(self.rows.values()))
        return torch.cat(list(answers.values()))[order.argsort()]

    @staticmethod
    def _rows_of(value, rows: Tensor, B: int):
        """These rows of an input. What all rows share (position_ids of one row) is theirs too; of a context, a set gets its rows' positions."""
        if isinstance(value, Context):
            return value._replace(positions=value.positions[rows])
        return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == B else value

    def __getattr__(self, name: str):
        """`layer.weight`, `layer.in_features`: whatever the wrapper has not, the base is asked for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def plain_weight(module: nn.Module) -> Tensor | None:
    """The (N, K) weight, if calling `module` is x WT and nothing more: the loss may then take it without calling the module."""
    if isinstance(module, Adapted) and module.rows is None:
        if module.active is None:
            return plain_weight(module.base)
        small = module.adapters[module.active]
        return small.plain_weight(module.base) if hasattr(small, "plain_weight") else None
    return module.weight if is_product(module) else None


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module of the model as it was before any adapter; a module found under two paths is listed under the first."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(path: str, module: nn.Module) -> None:
        module = module.base if isinstance(module, Adapted) else module
        if id(module) in seen:
            return
        seen.add(id(module))
        found[path] = module
        for name, child in module.named_children():
            walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return found


def base_at(model: nn.Module, path: str) -> nn.Module:
    module = model.get_submodule(path) if path else model
    return module.base if isinstance(module, Adapted) else module


def swap(replacements: dict[nn.Module, nn.Module], model: nn.Module) -> None:
    """Put each value wherever its key stands in the tree; a module used in two places is replaced in both."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):        # named_children() would skip a second name of the same module
            if child in replacements:
                setattr(parent, name, replacements[child])
