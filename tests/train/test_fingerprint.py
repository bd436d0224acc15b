"""Which data are other data."""

from collections import namedtuple

import pytest
import torch

from minift.data.batches import Batch, Example, pad
from minift.errors import InputError
from minift.train.fingerprint import compare, fingerprint

Pair = namedtuple("Pair", "one two")
ROWS = [Example([1, 2, 3], [False, True, True]), Example([4, 5], [False, True])]


def test_the_same_data_have_the_same_name_in_another_process_too():
    assert fingerprint([pad(ROWS)]) == fingerprint([pad(ROWS)]) == "090acfc68a152dd164448a0f5a9d674b"


@pytest.mark.parametrize("others", [
    [pad(ROWS[::-1])], [pad([one]) for one in ROWS], [pad(ROWS), pad(ROWS)],
    [pad([Example([1, 2, 3], [False, False, True]), ROWS[1]])], [pad([Example([1, 2, 6], [False, True, True]), ROWS[1]])],
], ids=["order", "batches", "more", "targets", "tokens"])    # fmt: skip
def test_other_data_have_another(others):
    assert fingerprint(others) != fingerprint([pad(ROWS)])


def test_pads_that_change_the_shape_are_other_batches():
    ids, mask = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.bool)
    assert fingerprint(Batch(ids, mask)) != fingerprint(Batch(ids.view(3, 4), mask.view(3, 4)))


def test_numbers_that_were_computed_do_not_count():
    assert fingerprint([torch.tensor([0.1]), 0.1]) == fingerprint([torch.tensor([0.2]), 0.2])
    assert fingerprint([torch.tensor([1])]) != fingerprint([torch.tensor([2])])


def test_whatever_batches_are_made_of_is_read():
    class Tree:
        def __init__(self, label):
            self.label, self.answers = label, [[1, 2], [3]]

    values = ["a", 1, True, None, [1, [2]], (1, "2"), {"a": 1}, {"b": 1}, Pair(1, 2), Tree("x"), Tree("y"), [[1], [2, 3]], [[1, 2], [3]]]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_run_of_an_earlier_version_has_none_and_goes_on():
    compare(None, "a")
    compare("a", "a")
    with pytest.raises(InputError, match="not those that this run was begun with, or are cut into other tokens: bring those back, or start again with --overwrite (.*)"):
        compare("b", "a")
