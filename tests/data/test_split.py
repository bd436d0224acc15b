import subprocess
import sys

import pytest

from minift.data.sources import Row
from minift.data.split import split_rows
from minift.errors import InputError


def pairs(questions):
    return [Row("prompt/completion", f"line {i}", prompt=q, completion=str(i)) for i, q in enumerate(questions)]


def test_no_question_stands_on_both_sides():
    rows = pairs([f"question {i % 40}" for i in range(120)])                 # each question three times
    for seed in range(5):
        train, held_out = split_rows(rows, fraction=0.3, seed=seed)
        assert not {row.prompt for row in train} & {row.prompt for row in held_out}
        assert sorted(row.where for row in train + held_out) == sorted(row.where for row in rows)
        assert len(train) % 3 == len(held_out) % 3 == 0


def test_the_held_out_share_is_about_the_fraction():                          # binomial: 1000 x 0.2 = 200, sigma 12.6; 5 sigma is 63
    for seed in range(5):
        assert abs(len(split_rows(pairs(map(str, range(1000))), fraction=0.2, seed=seed)[1]) - 200) < 63


def test_a_row_stays_on_its_side_when_others_move_or_come():
    rows = pairs([f"question {i}" for i in range(50)])
    held_out = {row.prompt for row in split_rows(rows, fraction=0.2)[1]}
    more = pairs([f"question {i}" for i in reversed(range(90))])
    assert {row.prompt for row in split_rows(more, fraction=0.2)[1] if int(row.prompt[9:]) < 50} == held_out
    assert [row.prompt for row in split_rows(rows, fraction=0.2)[0]] == [row.prompt for row in rows if row.prompt not in held_out]


def test_another_seed_holds_out_others_and_a_larger_fraction_holds_out_more():
    rows = pairs(map(str, range(100)))
    few, others, many = (
        {row.prompt for row in split_rows(rows, fraction=f, seed=s)[1]} for f, s in ((0.2, 0), (0.2, 1), (0.4, 0))
    )
    assert few != others and few < many


def test_the_split_is_the_same_in_every_process():                            # Python's hash() of a string is not
    code = "from minift.data.split import split_rows; print(*split_rows('abcdefghijklmnop', fraction=0.5, key=str)[1])"
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert outputs == {" ".join(split_rows("abcdefghijklmnop", fraction=0.5, key=str)[1]) + "\n"}


def test_any_key_can_be_what_must_not_straddle():
    train, held_out = split_rows([f"{letter}{i}" for letter in "abcdefgh" for i in range(3)], fraction=0.5, key=lambda text: text[0])
    assert len(train) + len(held_out) == 24 and not {t[0] for t in train} & {t[0] for t in held_out}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 10])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(InputError, match=f"must lie between 0 and 1, it is {fraction}"):
        split_rows(pairs("ab"), fraction=fraction)


def test_a_split_that_leaves_a_side_empty_is_refused():
    with pytest.raises(InputError, match=r"3 rows \(1 different\) cannot be split .* give more rows, another fraction, or held-out files"):
        split_rows(pairs(["same"] * 3), fraction=0.5)
