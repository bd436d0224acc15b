"""Answers for a judge to compare: K to each prompt, drawn from the policy, and the pairs that are worth a question.

    prompt -> K answers -> those that ended by themselves, each text once -> up to K (K - 1) / 2 pairs

An answer that was cut off at the limit teaches a model to stop in the middle of a sentence, two equal ones teach nothing: neither is judged.
Each answer has a random stream of its own, by the prompt's number and its own. They are kept in a file as they come, and a run that was
cut short draws only the missing ones. Proved in tests/recipes/test_rlaif.py. Left out: answers of several policies."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minift.data.examples import prompt_ids
from minift.data.sources import Row
from minift.errors import InputError
from minift.generate import Answer, generate_ids, position_limit
from minift.models.transformer import Transformer
from minift.rl.judge import Pair
from minift.rl.reward_source import Answered, request
from minift.rl.verdicts import whole_lines
from minift.sampling import Sampling, row_seeds
from minift.tokenizer import Tokenizer

PROMPTS = 32
"""Prompts that are answered between two writes."""


class Asked(NamedTuple):
    """A row to be answered, and the other fields of its record."""

    row: Row
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn."""

    count: int
    """K."""
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """An answer ends before any of these, and has then ended by itself."""
    seed: int = 0

    def check(self) -> None:
        """Raise InputError if no two answers to a prompt can differ."""
        if self.count < 2:
            raise InputError(f"{self.count} answer to a prompt leaves nothing to compare: draw at least 2")
        if self.sampling.temperature == 0:
            raise InputError("at temperature 0 all answers to a prompt are the same: take 1.0, say")


def draw(model: Transformer, tokenizer: Tokenizer, asked: Sequence[Asked], how: Drawing, file: Path) -> list[list[Answered]]:
    """K answers to each prompt, in order; `file` has those of an earlier run, and gets the new ones. Raises InputError for a prompt
    that is too long for the model."""
    how.check()
    prompts = [prompt_ids(row, tokenizer) for row, _ in asked]
    for (row, _), ids in zip(asked, prompts):
        if len(ids) >= position_limit(model):
            raise InputError(f"{row.where}: the prompt has {len(ids)} tokens, and this model has {position_limit(model)} positions: shorten it")
    found = [json.loads(line) for line in whole_lines(file)]
    seeds = row_seeds(how.seed, len(asked) * how.count)
    with open(file, "a", encoding="utf-8") as out:
        for start in range(len(found), len(asked), PROMPTS):
            some = range(start, min(start + PROMPTS, len(asked)))
            mine = [seeds[number * how.count + k] for number in some for k in range(how.count)]
            drawn = _draw(model, tokenizer, [prompts[number] for number in some for _ in range(how.count)], mine, how)
            for place, number in enumerate(some):
                found.append(drawn[place * how.count : (place + 1) * how.count])
                out.write(json.dumps(found[-1]) + "\n")
            out.flush()
    return [[Answered(request(row), line["text"], row, fields, line["ids"], line["ended"]) for line in lines] for (row, fields), lines in zip(asked, found)]


def _draw(model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], seeds: list[int], how: Drawing) -> list[dict]:
    eos = model.config.eos_token_id
    ends = tokenizer.end_ids | ({eos} if isinstance(eos, int) else set(eos or ()))
    answers = [Answer(tokenizer, prompt, how.stop) for prompt in prompts]
    finish = lambda row, token: token not in ends and answers[row].add(token)
    drawn = generate_ids(model, prompts, how.sampling, max_new_tokens=how.max_new_tokens, seed=seeds, eos_ids=sorted(ends), finish=finish)
    return [{"text": a.finish().replace("\0", "\ufffd"), "ids": ids, "ended": ids[-1] in ends or a.stopped} for a, ids in zip(answers, drawn)]


def different(answers: Sequence[Answered]) -> list[Answered]:
    """The finished answers with some text in them, each text once, in the order drawn."""
    return list({answer.text.strip(): answer for answer in reversed(answers) if answer.ended and answer.text.strip()}.values())[::-1]


def pairs_of(answers: Sequence[Answered], most: int | None = None) -> list[Pair]:
    """At most `most` pairs of different answers."""
    return list(itertools.islice(itertools.combinations(different(answers), 2), most))
