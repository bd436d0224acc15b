"""Where rewards come from: what --rewards names, and several of them as one.

    --rewards pep257 1.0 my_rewards.py:polite 0.5          R = 1.0 R_pep257 + 0.5 R_polite

    pep257, length:N, regex:PATTERN, numeric    rules (builtin_rewards.py)
    file.py:function                            your own (function_rewards.py)
    a folder                                    a trained reward model (model_rewards.py)

The parts are kept beside their sum: a sum that rises may hide a part that falls. A weight of 0 only watches.
Proved in tests/rl/test_rewards.py. Left out: weights that change during a run, rewards normalised before they are added."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minift.errors import InputError
from minift.evaluate.scoring import load_scorer
from minift.rl.builtin_rewards import length, numeric, pep257, regex
from minift.rl.function_rewards import load_function
from minift.rl.model_rewards import LoadScorer, ModelReward
from minift.rl.reward_source import Answered, RewardError, Source, ask

__all__ = ["Answered", "Combined", "RewardError", "Source", "ask", "combined", "source"]

KNOWN = "pep257, length:N, regex:PATTERN, numeric, file.py:function, or the folder of a reward model"


class Combined:
    """The weighted sum of sources, itself a source. `parts` holds each source's own values of the last call, before weighting."""

    def __init__(self, sources: Sequence[tuple[Source, float]]):
        names = [source.name for source, _ in sources]
        if not names:
            raise InputError(f"no reward was named; known: {KNOWN}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"the reward {twice[0]} is named twice: name it once, with the sum of the weights")
        if odd := [(name, weight) for name, (_, weight) in zip(names, sources) if not math.isfinite(weight)]:
            raise InputError(f"the weight of the reward {odd[0][0]} is {odd[0][1]}; wanted a finite number")
        if not any(weight for _, weight in sources):
            raise InputError(f"every reward ({', '.join(names)}) has the weight 0: nothing would be rewarded")
        self.name, self.sources = " + ".join(names), tuple(sources)
        self.parts: dict[str, list[float]] = {}

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        self.parts = {source.name: ask(source, answers) for source, _ in self.sources}
        weights = [weight for _, weight in self.sources]
        return [sum(weight * value for weight, value in zip(weights, values)) for values in zip(*self.parts.values())]


def combined(specs: Mapping[str, float], load: LoadScorer = load_scorer) -> Combined:
    """What --rewards names, with weights. load: folder -> (Scorer, Tokenizer), for one on another device, say."""
    return Combined([(source(spec, load), weight) for spec, weight in specs.items()])


def source(spec: str, load: LoadScorer = load_scorer) -> Source:
    """The one source that `spec` names. Raises InputError if it names none."""
    kind, colon, rest = spec.partition(":")
    if kind == "regex" and colon:
        return regex(rest)
    if kind == "length" and colon:
        if not re.fullmatch(r"\d+", rest):
            raise InputError(f"the reward {spec} wants a number of tokens behind the colon, as in length:20")
        return length(int(rest))
    if spec in ("pep257", "numeric"):
        return pep257() if spec == "pep257" else numeric()
    if re.search(r"\.py:\w+$", spec):
        return load_function(spec)
    if Path(spec).is_dir():
        return ModelReward(spec, *load(spec))
    raise InputError(f"there is no reward {spec!r} (and no such folder); known: {KNOWN}")
