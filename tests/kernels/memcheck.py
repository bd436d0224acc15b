"""A memory checker for Triton's interpreter: which addresses does each program touch, and may it?

    with watched() as launches:
        op(...)

Every load, store and atomic of every launch inside is compared with the memory of the launch's own tensors: a mask forgotten at an edge is
an error at the address it touches, though the interpreter itself would read what happens to lie there. Two programs of a launch that
write the same address, or of which one reads what another writes, are a race on a GPU, though the interpreter runs them in order: an
error too. Atomics may meet.
`surrounded` and `poisoned` do what needs no interpreter: NaN (0xFF for integers) around every input, and in and around every tensor that
the op allocates. Proved in tests/kernels/test_memcheck.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

MARGIN = 4096
"""Elements of poison on each side: 16-byte alignment stays, and a kernel's block lies within."""


class Launch:
    """What the programs of one launch touched."""

    def __init__(self, name: str, tensors: list[tuple[str, Tensor]]):
        self.name, self.programs = name, set()
        self.written: list[tuple[tuple, np.ndarray]] = []
        self.read: list[tuple[tuple, np.ndarray]] = []
        spans = sorted((t.data_ptr(), t.data_ptr() + extent(t) * t.element_size(), name) for name, t in tensors if t.numel())
        merged: list[list] = []
        for start, end, name in spans:
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end, name])
        self.starts, self.ends = (np.array([span[i] for span in merged] or [0], dtype=np.uint64) for i in (0, 1))
        self.names = [span[2] for span in merged]

    def check(self, verb: str, addresses: np.ndarray, size: int, seen: list | None) -> None:
        program = tuple(interpreter.interpreter_builder.grid_idx)
        self.programs.add(program)
        addresses = np.unique(addresses)
        if not addresses.size:
            return
        at = np.searchsorted(self.starts, addresses, side="right").astype(int) - 1
        bad = addresses[(at < 0) | (addresses + np.uint64(size) > self.ends[at])]
        if bad.size:
            first, place = int(bad[0]), max(int(np.searchsorted(self.starts, bad[0], side="right")) - 1, 0)
            beyond = (first - int(self.ends[place])) // size
            raise AssertionError(f"{self.name}, program {program}, {verb} {bad.size} addresses outside its tensors, "
                                 f"the first {beyond} elements past the end of {self.names[place]}")  # fmt: skip
        if seen is not None:
            seen.append((program, addresses))

    def races(self) -> None:
        if len(self.programs) < 2 or not self.written:
            return
        owner_of = {program: number for number, program in enumerate(sorted(self.programs))}
        flat = lambda seen: (np.concatenate([a for _, a in seen]), np.concatenate([np.full(len(a), owner_of[p]) for p, a in seen]))
        addresses, owners = flat(self.written)
        order = np.lexsort((owners, addresses))
        addresses, owners = addresses[order], owners[order]
        assert not ((addresses[1:] == addresses[:-1]) & (owners[1:] != owners[:-1])).any(), f"{self.name}: two programs write the same address"
        near = [(p, a[(a >= addresses[0]) & (a <= addresses[-1])]) for p, a in self.read]
        if any(len(a) for _, a in near):
            looked, lookers = flat(near)
            at = np.minimum(np.searchsorted(addresses, looked), len(addresses) - 1)
            assert not ((addresses[at] == looked) & (owners[at] != lookers)).any(), f"{self.name}: a program reads what another one writes"


class Watch:
    """Stands where the interpreter looks for its loads and stores."""

    def __init__(self, real):
        self.real, self.launch = real, None

    def __getattr__(self, name):
        return getattr(self.real, name)

    def load(self, pointers, mask, other, dtype):
        self.launch.check("reads", pointers[mask], np.dtype(dtype).itemsize, self.launch.read)
        return self.real.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.launch.check("writes", pointers[mask], value.dtype.itemsize, self.launch.written)
        return self.real.store(pointers, value, mask)

    def atomic_rmw(self, op, pointers, value, mask, order):
        self.launch.check("updates", pointers[mask], value.dtype.itemsize, None)
        return self.real.atomic_rmw(op, pointers, value, mask, order)


def extent(t: Tensor) -> int:
    """Elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))


@contextmanager
def watched(*others: Tensor) -> Iterator[list[Launch]]:
    """Check every launch inside. `others`: tensors that a kernel reaches through addresses stored in a tensor."""
    launches, call, watch = [], interpreter.GridExecutor.__call__, Watch(interpreter._interpreter)

    def launched(self, *args, **kwargs):
        named = [*zip(self.arg_names, args), *kwargs.items()]
        tensors = [(name, value) for name, value in named if isinstance(value, Tensor)]
        watch.launch = Launch(self.fn.__name__, tensors + [("what is pointed to", t) for t in others])
        launches.append(watch.launch)
        call(self, *args, **kwargs)
        watch.launch.races()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", watch)
        patch.setattr(interpreter.GridExecutor, "__call__", launched)
        yield launches


def poison(size: int, dtype: torch.dtype, device="cpu") -> Tensor:
    if dtype.is_floating_point:
        return torch.full((size,), torch.nan, dtype=dtype, device=device)
    return torch.full((size,), 1 if dtype == torch.bool else 255 if dtype == torch.uint8 else -1, dtype=dtype, device=device)


def surrounded(value):
    """The same tensor (or list of them) as a view into poison; gaps between its rows are poisoned too."""
    if isinstance(value, list | tuple):
        return type(value)(map(surrounded, value))
    if not isinstance(value, Tensor) or 0 in value.stride() and value.numel() > 1:
        return value
    buffer = poison(extent(value) + 2 * MARGIN, value.dtype, value.device)
    view = buffer.as_strided(value.shape, value.stride(), MARGIN)
    return view.copy_(value) if value.numel() else view


@contextmanager
def poisoned() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """torch.empty and its kin give views into poison. On leaving, the margins must still be poison. Yields the (buffer, view) pairs."""
    given, real_empty, real_empty_like, real_new_empty = [], torch.empty, torch.empty_like, Tensor.new_empty

    def guarded(shape, dtype, device):
        shape = torch.Size(shape)
        buffer = poison(shape.numel() + 2 * MARGIN, dtype or torch.get_default_dtype(), device or "cpu")
        given.append((buffer, buffer[MARGIN : MARGIN + shape.numel()].view(shape)))
        return given[-1][1]

    def empty(*shape, dtype=None, device=None, **others):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return real_empty(shape, dtype=dtype, device=device, **others) if others else guarded(shape, dtype, device)

    def empty_like(t, dtype=None, **others):
        plain = not others and t.is_contiguous()
        return guarded(t.shape, dtype or t.dtype, t.device) if plain else real_empty_like(t, dtype=dtype, **others)

    def new_empty(t, *shape, dtype=None, device=None):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        nothing = torch.Size(shape).numel() == 0                                          # the interpreter's own: a handle for a storage
        return real_new_empty(t, shape, dtype=dtype, device=device) if nothing else guarded(shape, dtype or t.dtype, device or t.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        patch.setattr(Tensor, "new_empty", new_empty)
        yield given
    for buffer, view in given:
        clean = poison(MARGIN, buffer.dtype, buffer.device)
        for margin in (buffer[:MARGIN], buffer[MARGIN + view.numel() :]):
            same = torch.equal(margin.isnan(), clean.isnan()) if buffer.is_floating_point() else torch.equal(margin, clean)
            assert same, "written past an output's end"
