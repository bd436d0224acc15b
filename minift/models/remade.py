"""Tensors that cost less to make again than to keep: the outputs of norms and of gated activations.

    y = make()        with remade(y, make): z = f(y)        f's backward pass wants y; it gets make() once more

A block of a LLaMA kept six such rows of a token for its backward pass, two of width C and one of width M, beside those that they are made of. Making them again is
one pass over memory; recomputing whole blocks (Chen et al. 2016, arXiv:1604.06174; --checkpointing) repeats the matrix products too.
Whoever saves y for its backward pass, or a view of it, saves a recipe instead: several readers (the linears for q, k and v) share one, and the last lets go
of what was made. Hooks of this kind hide others: inside somebody else's (--checkpointing is one) nothing is remade, nor where a compiler decides what to keep.
make() must give the same bits: no dropout. Proved in tests/models/test_remade.py."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Recipe:
    """make(), once for all who ask, as often as there were who saved its result."""

    def __init__(self, make: Callable[[], Tensor]):
        self.make, self.readers = make, 0
        self.made: Tensor | None = None
        self.left = 0

    def tensor(self) -> Tensor:
        if self.made is None:
            with torch.no_grad():
                self.made, self.left = self.make(), self.readers
        made, self.left = self.made, self.left - 1
        if self.left == 0:
            self.made = None
        return made


@contextlib.contextmanager
def remade(y: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside the block y is kept as make(), which gives y's numbers in y's layout."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _somebody_elses():
        yield
        return
    recipe, memory, dtype = Recipe(make), y.untyped_storage().data_ptr(), y.dtype          # not y itself: pack outlives the block

    def pack(saved: Tensor):
        if saved.untyped_storage().data_ptr() != memory or saved.dtype != dtype:
            return saved
        recipe.readers += 1
        return recipe, saved.size(), saved.stride(), saved.storage_offset()

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


def _unpack(kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    recipe, *place = kept
    return recipe.tensor().as_strided(*place)


def _somebody_elses() -> bool:
    """Does another saved_tensors_hooks decide here what is kept? PyTorch asks the innermost alone."""
    innermost = torch._C._autograd._top_saved_tensors_default_hooks(True)             # they have no public name
    return innermost is not None and innermost[1] is not _unpack
