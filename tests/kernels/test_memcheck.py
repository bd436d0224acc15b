"""The memory checker sees what it is there to see."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.kernels.memcheck import MARGIN, poisoned, surrounded, watched


@triton.jit
def copy(x, out, n, READS: tl.constexpr, WRITES: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    there = place < n
    value = tl.load(x + place, mask=there | READS, other=0.0)
    tl.store(out + place, value, mask=there | WRITES)


def run(n=20, READS=False, WRITES=False, STEP=8, out=None):
    x = surrounded(torch.arange(float(n)))
    with poisoned() as given, watched() as launches:
        out = torch.empty_like(x) if out is None else out
        copy[(triton.cdiv(n, STEP),)](x, out, n, READS=READS, WRITES=WRITES, STEP=STEP, BLOCK=8)
    return x, out, launches, given


def test_a_kernel_in_order_passes_and_its_programs_are_counted():
    x, out, launches, given = run()
    assert torch.equal(x, out) and [len(launch.programs) for launch in launches] == [3] and len(given) == 1


def test_reading_past_the_end_is_an_error_at_the_address():
    said = r"copy, program \(2, 0, 0\), reads 4 addresses outside its tensors, the first 0 elements past the end of x"
    with pytest.raises(InterpreterError, match=said):
        run(READS=True)


def test_writing_past_the_end_is_an_error():
    with pytest.raises(InterpreterError, match="writes 4 addresses outside its tensors, the first 0 elements past the end of out"):
        run(WRITES=True)


def test_two_programs_that_write_one_address_are_a_race():
    with pytest.raises(AssertionError, match="two programs write the same address"):
        run(STEP=4)


def test_reading_what_another_program_writes_is_a_race():
    buffer = torch.arange(24.0)
    with pytest.raises(AssertionError, match="a program reads what another one writes"), watched():
        copy[(2,)](buffer, buffer[8:], 16, READS=False, WRITES=False, STEP=8, BLOCK=8)


def test_what_is_never_written_stays_poison_and_margins_are_watched():
    with poisoned() as given:
        assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(2, 2, dtype=torch.uint8).eq(255).all()
    assert [view.shape for _, view in given] == [(3,), (2, 2)]
    with pytest.raises(AssertionError, match="written past an output's end"), poisoned() as given:
        torch.empty(3)
        given[0][0][MARGIN + 3] = 0


def test_inputs_are_surrounded_between_their_rows_too():
    x = torch.arange(12.0).view(3, 4)[:, :3]
    view = surrounded(x)
    assert torch.equal(view, x) and view.stride() == (4, 1)
    around = view.as_strided((3, 4), (4, 1), MARGIN)[:, 3]
    assert around.isnan().all() and surrounded([x])[0].data_ptr() != x.data_ptr()
