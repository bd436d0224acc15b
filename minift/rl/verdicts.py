"""From a judge's votes to preferences: every pair is shown in both orders, and only what survives the swap counts.

    shown (x, y): "A"    shown (y, x): "B"    -> x is better
    shown (x, y): "A"    shown (y, x): "A"    -> the judge likes the place, not the answer: dropped, and counted

    position bias = pairs with the same letter in both orders / pairs with a letter in both orders

A judge that flips a coin agrees with itself on half of the pairs, so half a bias is what no opinion looks like.
Every vote is written to a file as it comes. A run that was cut short asks only what is missing there; failed questions are asked again.
Proved in tests/rl/test_judge.py. Left out: votes of several judges, averages of both orders' probabilities (Lee et al., section 2)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minift.rl.judge import Judge, Pair, Vote

Outcome = Literal["agreed", "place", "tie", "failed"]


@dataclass(frozen=True)
class Decision:
    """What became of one pair."""

    outcome: Outcome
    votes: tuple[Vote | None, Vote | None]
    """As shown, and swapped."""
    winner: int | None = None
    """0: the pair's first answer, 1: its second; only if both orders agree."""


@dataclass(frozen=True)
class Tally:
    """How many pairs went which way."""

    agreed: int
    place: int
    tie: int
    failed: int
    first_votes: int
    """Votes for whichever answer was shown first ..."""
    votes: int
    """... of all votes that are no tie."""

    @property
    def pairs(self) -> int:
        return self.agreed + self.place + self.tie + self.failed

    @property
    def position_bias(self) -> float:
        """Share of the pairs with a letter in both orders that have the same letter; 0 if there are none."""
        return self.place / max(1, self.agreed + self.place)


def decide(judge: Judge, pairs: Sequence[Pair], log: Path | None = None, ask: bool = True) -> list[Decision]:
    """One Decision for each pair, in order. log: a file of votes, read first and added to. Judges' errors pass through.

    ask: False: nothing is asked, and what is not in the log counts as failed."""
    orders = [(pair, pair[::-1]) for pair in pairs]
    shown = {key(judge, order): order for both in orders for order in both}
    votes: dict[str, Vote | None] = known(log) if log else {}
    missing = [name for name in shown if ask and name not in votes]
    if missing:
        for number, vote in _written(judge, [shown[name] for name in missing], missing, log):
            votes[missing[number]] = vote
    return [decision(*(votes.get(key(judge, order)) for order in both)) for both in orders]


def decision(first: Vote | None, swapped: Vote | None) -> Decision:
    """From the votes on (x, y) and on (y, x)."""
    votes = first, swapped
    if None in votes:
        return Decision("failed", votes)
    if "tie" in votes:
        return Decision("tie", votes)
    if first == swapped:
        return Decision("place", votes)
    return Decision("agreed", votes, winner=0 if first == "A" else 1)


def tally(decisions: Sequence[Decision]) -> Tally:
    count = lambda outcome: sum(decision.outcome == outcome for decision in decisions)
    letters = [vote for decision in decisions for vote in decision.votes if vote in ("A", "B")]
    return Tally(count("agreed"), count("place"), count("tie"), count("failed"), letters.count("A"), len(letters))


def key(judge: Judge, shown: Pair) -> str:
    """One question to one judge, as the log names it: the same texts in the same order are the same question, wherever the judge is to be found."""
    first, second = shown
    return hashlib.sha256("\0".join([judge.what, first.row.question, first.text, second.text]).encode()).hexdigest()[:32]


def known(log: Path) -> dict[str, Vote]:
    """The votes in the log."""
    return {line["question"]: line["vote"] for line in map(json.loads, whole_lines(log))}


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that is added to as a run goes on; none if there is none. A last line that was cut short by a kill is cut off."""
    if not file.exists():
        return []
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with open(file, "r+b") as opened:
            opened.truncate(len(whole))
    return whole.split(b"\n")[:-1]


def _written(judge: Judge, pairs: Sequence[Pair], names: Sequence[str], log: Path | None) -> Iterator[tuple[int, Vote | None]]:
    """The judge's votes, each in the log before it is passed on; failures are not, so that they are asked again."""
    with closing(judge(pairs)) as voting:
        if log is None:
            yield from voting
            return
        with open(log, "a", encoding="utf-8") as file:
            for number, vote in voting:
                if vote is not None:
                    file.write(json.dumps({"question": names[number], "vote": vote}) + "\n")
                    file.flush()
                yield number, vote
