"""One text or two as the tokens of a classifier: marks, types, cuts. That they are transformers' is tests/parity/test_classifiers.py."""

import dataclasses

import pytest

from minift.data.text_pairs import joined
from minift.errors import InputError
from tests.models.small import CONFIGS
from tests.models.test_encoder import ENCODERS

BERT, ROBERTA, DISTIL, LLAMA = ENCODERS["bert"], ENCODERS["roberta"], ENCODERS["distilbert"], CONFIGS["llama"]
T5 = dataclasses.replace(BERT, family="t5", token_types=0)
CLS, SEP = 101, 102


class Letters:
    """A token for each letter, its number in the alphabet; a line break is 0."""

    def __init__(self, bos: bool = True, eos: bool = True):
        self.bos_id, self.eos_id, self.adds_bos, self.adds_eos, self.asked = CLS, SEP, bos, eos, []

    def encode(self, text: str, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        self.asked.append((text, continues))
        ids = [0 if letter == "\n" else ord(letter) - 96 for letter in text.replace(" ", "")]
        return [CLS, *ids, SEP] if add_special_tokens else ids


@pytest.mark.parametrize("config, one, two, types", [
    (BERT, [CLS, 1, 2, SEP], [CLS, 1, 2, SEP, 3, SEP], [0, 0, 0, 0, 1, 1]),
    (DISTIL, [CLS, 1, 2, SEP], [CLS, 1, 2, SEP, 3, SEP], [0] * 6),
    (ROBERTA, [CLS, 1, 2, SEP], [CLS, 1, 2, SEP, SEP, 3, SEP], [0] * 7),
    (dataclasses.replace(ROBERTA, family="xlm-roberta"), [CLS, 1, 2, SEP], [CLS, 1, 2, SEP, SEP, 3, SEP], [0] * 7),
    (dataclasses.replace(BERT, token_types=1), [CLS, 1, 2, SEP], [CLS, 1, 2, SEP, 3, SEP], [0] * 6),
])    # fmt: skip
def test_marks_and_types_of_each_family_worked_by_hand(config, one, two, types):
    assert joined(Letters(), config, ["ab"], 50) == (one, [0] * len(one))
    assert joined(Letters(), config, ["ab", "c"], 50) == (two, types)


def test_t5_has_no_mark_before_and_one_behind_each_text():
    assert joined(Letters(bos=False), T5, ["ab"], 50)[0] == [1, 2, SEP]
    assert joined(Letters(bos=False), T5, ["ab", "c"], 50) == ([1, 2, SEP, 3, SEP], [0] * 5)


def test_a_decoders_second_text_begins_on_a_new_line_and_goes_on_with_the_first():
    tokenizer = Letters(eos=False)
    assert joined(tokenizer, LLAMA, ["ab", "c"], 50) == ([CLS, 1, 2, 0, 3], [0] * 5)
    assert tokenizer.asked == [("ab", False), ("\nc", True)]
    assert joined(Letters(), LLAMA, ["ab", "c"], 50)[0] == [CLS, 1, 2, 0, 3, SEP]      # an end behind the whole, none between
    tokenizer = Letters()
    joined(tokenizer, BERT, ["ab", "c"], 50)
    assert tokenizer.asked == [("ab", False), ("c", False)]                            # an encoder's second text is a text of its own


@pytest.mark.parametrize("first, second, room, kept", [
    ("abc", "def", 6, (3, 3)), ("abc", "def", 5, (3, 2)), ("abc", "def", 4, (2, 2)), ("abc", "def", 3, (2, 1)), ("abcdefg", "hi", 6, (4, 2)), ("abcdefg", "hi", 3, (2, 1)),
    ("ab", "cdefghi", 6, (2, 4)), ("ab", "cdefghi", 5, (2, 3)), ("ab", "cdefghi", 3, (2, 1)), ("a", "bcdefgh", 2, (1, 1)), ("abcdefg", "h", 2, (1, 1)),
])    # fmt: skip
def test_the_longer_text_loses_its_end_until_both_fit_and_of_equal_ones_the_second(first, second, room, kept):
    ids, types = joined(Letters(), BERT, [first, second], room + 3)
    numbers = lambda text: [ord(letter) - 96 for letter in text]
    assert ids == [CLS, *numbers(first)[: kept[0]], SEP, *numbers(second)[: kept[1]], SEP]
    assert types == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)


def test_a_cut_takes_one_token_after_the_other_from_the_longer_text():
    for first in range(1, 9):
        for second in range(1, 9):
            for room in range(2, 18):
                a, b = first, second
                while a + b > room:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                ids, _ = joined(Letters(), BERT, ["a" * first, "b" * second], room + 3)
                assert (ids.count(1), ids.count(2)) == (a, b) and len(ids) <= room + 3


@pytest.mark.parametrize("config, marks", [(BERT, 2), (ROBERTA, 2), (LLAMA, 2)])
def test_one_text_is_cut_and_keeps_its_marks(config, marks):
    assert joined(Letters(), config, ["abcde"], 5)[0] == [CLS, 1, 2, 3, SEP]
    assert joined(Letters(), config, ["abcde"], 7)[0] == [CLS, 1, 2, 3, 4, 5, SEP]


def test_what_cannot_be_read_is_refused():
    with pytest.raises(InputError, match="the text ' ' is empty: there is nothing to read"):
        joined(Letters(), BERT, ["ab", " "], 50)
    with pytest.raises(InputError, match="the text '' is empty"):
        joined(Letters(), BERT, [""], 50)
    assert len(joined(Letters(), ROBERTA, ["ab", "cd"], 6)[0]) == 6
    with pytest.raises(InputError, match="5 tokens leave no room for 2 texts and the marks around them: give more"):
        joined(Letters(), ROBERTA, ["ab", "cd"], 5)
    with pytest.raises(InputError, match="2 tokens leave no room for 1 texts"):
        joined(Letters(), BERT, ["ab"], 2)
