"""Rewards that need no model: rules that a program can check, and that no policy can argue with.

    pep257          1 if the answer is a well-formed docstring summary (data/pep257.py), else 0
    length:N        1 - |n - N| / N       n: tokens of the answer without its end token; 1 at N, 0 at none and at 2 N, negative beyond
    regex:PATTERN   1 if the pattern is found anywhere in the answer (anchor it with ^ and $), else 0
    numeric         1 if the answer's number is the reference's, else 0

numeric follows GSM8K (Cobbe et al. 2021, arXiv:2110.14168), whose references end in "#### 72". The answer's number is the first one behind
"####", else the last one in it. The reference is the record's field `answer`, else the row's own answer. Numbers are compared exactly, as
fractions: 1,234.50 = 1234.5, 3/4 = 0.75, $5 = 5, and 50% = 50, for GSM8K writes percentages so.
Proved in tests/rl/test_rewards.py. Left out: number words, units, LaTeX's \\frac, 1e3, mixed numbers (1 1/2)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from minift.data.pep257 import is_pep257
from minift.errors import InputError
from minift.rl.reward_source import Answered, RewardError

MARK = "####"
DIGITS = 100
"""Longer numbers are no answers; a policy that repeats a digit writes them by the thousand."""

NUMBER = re.compile(
    r"""(?P<sign>(?<![\w).])[-+\u2212])?[$€£]?(?P<inner>(?<=[$€£])[-+\u2212])?          # -$5 and $-5; the - of 5-3 is no sign
        (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>(?:(?<=\d)|(?<!\w))\.\d+)?
        (?:/(?P<below>\d+(?:\.\d+)?))?""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Rule:
    """A reward that looks at one answer at a time."""

    name: str
    reward: Callable[[Answered], float]

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        return [self.reward(answer) for answer in answers]


def pep257() -> Rule:
    return Rule("pep257", lambda answer: float(is_pep257(answer.text)))


def length(wanted: int) -> Rule:
    if wanted < 1:
        raise InputError(f"the reward length:{wanted} has no length to come close to: give 1 token or more")
    return Rule(f"length:{wanted}", lambda answer: 1 - abs(len(answer.ids) - answer.ended - wanted) / wanted)


def regex(pattern: str) -> Rule:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"the reward regex:{pattern} is no regular expression: {error}") from None
    return Rule(f"regex:{pattern}", lambda answer: float(compiled.search(answer.text) is not None))


def numeric() -> Rule:
    def reward(answer: Answered) -> float:
        reference = answer.fields.get("answer", answer.row.answer)
        wanted = number_of(str(reference))
        if wanted is None:
            raise RewardError(f"{answer.row.where}: the reward numeric finds no number in the reference {reference!r:.60}; wanted a field `answer` "
                              "that ends in a number, or has one behind ####")
        return float(number_of(answer.text) == wanted)

    return Rule("numeric", reward)


def number_of(text: str) -> Fraction | None:
    """The number a text arrives at: the first behind "####", else the last. None if there is none, or if it is x/0 or endless."""
    _, mark, behind = text.partition(MARK)
    found = [match for match in NUMBER.finditer(behind if mark else text) if match["whole"] or match["decimals"]]
    return _value(found[0 if mark else -1]) if found else None


def _value(match: re.Match) -> Fraction | None:
    whole, decimals, below = (match["whole"] or "0").replace(",", ""), match["decimals"] or "", match["below"] or "1"
    if max(len(whole), len(decimals), len(below)) > DIGITS or not Fraction(below):
        return None
    negative = "+" not in (match["sign"] or match["inner"] or "+")
    return Fraction(whole + decimals) / Fraction(below) * (-1 if negative else 1)
