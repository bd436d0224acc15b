"""A reward source: whatever says how good finished answers are.

    [answer 1, ..., answer n]  ->  [reward 1, ..., reward n]          finite numbers, larger is better

A source is a callable with a name. It gets many answers at once (a model scores them in batches) and each with all that is known of it: its
text, its tokens, the row it answers, the record's other fields. What comes back is checked by `ask`, since a single NaN in a
batch's rewards reaches every weight, and an error without a row cannot be mended.
Proved in tests/rl/test_rewards.py. Left out: rewards inside an answer (per token, per step)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from torch import Tensor

from minift.data.sources import Row
from minift.errors import RunError


class RewardError(RunError):
    """A reward source failed, or gave something that is no reward. Names the source and the row."""


@dataclass(frozen=True)
class Answered:
    """A prompt and one answer to it."""

    prompt: str
    """What was asked, as text; see `request`."""
    text: str
    """The answer, without its end token."""
    row: Row
    """What was asked."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The record's other columns, a reference answer for one."""
    ids: Sequence[int] = ()
    """The answer's tokens as they were sampled, with the one that ended it, if it ended."""
    ended: bool = True
    """False: it was cut off at the limit."""


class Source(Protocol):
    """Answers -> their rewards. `name` is what it is called in logs and errors."""

    name: str

    def __call__(self, answers: Sequence[Answered]) -> Sequence[float]: ...


def ask(source: Source, answers: Sequence[Answered]) -> list[float]:
    """The rewards as plain floats (True is 1.0). Raises RewardError, naming source and row, if there is not one finite number for each answer."""
    found = source(answers)
    if isinstance(found, Tensor) or hasattr(found, "tolist"):
        found = found.tolist()
    if not isinstance(found, (list, tuple)):
        raise RewardError(f"the reward {source.name} returned a {type(found).__name__} for {rows(answers)}; wanted a list with a number for each answer")
    if len(found) != len(answers):
        raise RewardError(f"the reward {source.name} returned {len(found)} numbers for {len(answers)} answers ({rows(answers)}); wanted one for each")
    return [_number(value, answer, source.name) for value, answer in zip(found, answers)]


def rows(answers: Sequence[Answered]) -> str:
    """Which rows these answers belong to, for an error: the first few of them, in the order in which they were asked."""
    places = list(dict.fromkeys(answer.row.where for answer in answers))
    return (", ".join(places[:4]) + (f" and {len(places) - 4} more rows" if len(places) > 4 else "")) if places else "no answers"


def request(row: Row) -> str:
    """What was asked, without any template; of a longer conversation every turn with its role."""
    if not row.messages:
        return row.prompt
    asked = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    text = asked[0]["content"] if len(asked) == 1 else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
    return f"{text}\n\n{row.input}" if row.input else text


def _number(value: Any, answer: Answered, name: str) -> float:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, Real):
        raise RewardError(f"{answer.row.where}: the reward {name} is {value!r:.60}, a {type(value).__name__}, for the answer {answer.text!r:.60}; "
                          "wanted a number: return 0.0 where there is nothing to reward")
    if not math.isfinite(value):
        raise RewardError(f"{answer.row.where}: the reward {name} is {float(value)} for the answer {answer.text!r:.60}; wanted a finite number")
    return float(value)
