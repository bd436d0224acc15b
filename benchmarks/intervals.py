"""What a list of times says: its middle, its spread, and a ratio with the interval it may lie in.

    ratio = median over rounds of (their time / our time), both of one round; its interval is that of 2,000 lists drawn from the rounds
            with replacement (the bootstrap of Efron, 1979): the middle 95 % of their medians

A clock that sags or another program slows both sides of a round, so the ratio of a round is steadier than either time.
Proved in tests/benchmarks/test_kernels.py."""

from collections.abc import Sequence
from random import Random
from statistics import median

DRAWS, SHARE = 2000, 0.95


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, linear between neighbours: quantile([1, 2, 3], 0.25) = 1.5."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """In microseconds, three digits behind the point."""
    return {name: round(1e6 * quantile(seconds, share), 3) for name, share in (("median", 0.5), ("p20", 0.2), ("p80", 0.8))}


def faster(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times faster ours is, with an interval; below 1 it is slower. The lists hold one time per round, in the same order."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds: a ratio pairs the times of one round")
    each, draw = [their / our for our, their in zip(ours, theirs)], Random(0)
    medians = [median(draw.choices(each, k=len(each))) for _ in range(DRAWS)]
    low, high = (quantile(medians, share) for share in ((1 - SHARE) / 2, (1 + SHARE) / 2))
    return {"median": round(median(each), 4), "low": round(low, 4), "high": round(high, 4)}
