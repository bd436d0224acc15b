"""Tensors that cost less to make again than to keep: the outputs of norms and of gated activations.

    y = make()        with remade(y, make): z = f(y)        f's backward pass wants y; it gets make() once more

A block of a LLaMA would keep three of them for its backward pass, two of width C and one of width M a token, beside those that they are made of. Making them again is
a pass or two over memory; recomputing whole blocks (Chen et al. 2016, arXiv:1604.06174; --checkpointing) repeats the matrix products too.
Whoever saves y for its backward pass, or a view of it, saves a recipe instead: several readers (the linears for q, k and v) share one, and the last lets go
of what was made. Hooks of this kind hide others: inside somebody else's (--checkpointing is one) nothing is remade, nor where a compiler decides what to keep; hooks that only look
(watch.kept_bytes) have `only_looks`, a function that is told of each tensor that is kept after all.
make() must give the same bits: no dropout, nothing that changes in between (an input written to in place is an error, as ever). Proved in tests/models/test_remade.py."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class Recipe:
    """make(), once for all who ask, as often as there were who saved its result. inputs: what make() reads."""

    def __init__(self, make: Callable[[], Tensor], inputs: Sequence[Tensor]):
        self.make, self.readers = make, 0
        self.made: Tensor | None = None
        self.left = 0
        self.inputs = [(x.detach(), x._version) for x in inputs]                      # a detached tensor shares its version

    def tensor(self) -> Tensor:
        if any(x._version != version for x, version in self.inputs):
            raise RuntimeError("a tensor that is needed to compute a gradient was modified in place after the forward pass")
        if self.made is None:
            with torch.no_grad():
                self.made, self.left = self.make(), self.readers
        made, self.left = self.made, self.left - 1
        if self.left == 0:
            self.made = None
        return made


@contextlib.contextmanager
def remade(y: Tensor, make: Callable[[], Tensor], *inputs: Tensor) -> Iterator[None]:
    """Inside the block y is kept as make(), which reads `inputs` and gives y's numbers in y's layout."""
    around = torch._C._autograd._top_saved_tensors_default_hooks(True)                # the innermost hooks; they have no public name
    looks = getattr(around[0], "only_looks", None) if around is not None else None
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or (around is not None and looks is None):
        yield
        return
    recipe, memory, dtype = Recipe(make, inputs), y.untyped_storage().data_ptr(), y.dtype             # not y itself: pack outlives the block

    def pack(saved: Tensor):
        if saved.untyped_storage().data_ptr() != memory or saved.dtype != dtype:
            if looks is not None:
                looks(saved)
            return saved.detach()                                                     # itself, it would hold the graph that holds it
        recipe.readers += 1
        return recipe, saved.size(), saved.stride(), saved.storage_offset()

    pack.only_looks = looks or (lambda saved: None)
    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


def _unpack(kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    recipe, *place = kept
    return recipe.tensor().as_strided(*place)
