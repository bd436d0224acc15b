"""Judges: who says which of two answers is better (RLAIF: Bai et al. 2022, arXiv:2212.08073; Lee et al. 2023, arXiv:2309.00267).

    likelihood:MODEL   a local model reads request and answers A and B, and is asked nothing more: A if log p(" A") > log p(" B")
    verdict:MODEL      a local model writes a verdict, greedily, and an A or a B is looked for in it
    http://...         the same of a model behind an OpenAI-compatible endpoint (endpoint.py)
    a reward           the answer with the larger reward; equal rewards are a tie (rewards.py)

A judge gives votes in the order in which it is shown the answers: "A" for the first. Models have a taste for a place, so every pair is shown
in both orders, see verdicts.py. A local model needs no text parsed with `likelihood`, and is never at a loss for a vote.
Proved in tests/rl/test_judge.py. Left out: chains of thought before the verdict, grades, defence against answers that address the judge."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch

from minift.data.examples import ask as as_row
from minift.data.examples import prompt_ids
from minift.generate import generate, position_limit
from minift.models.transformer import Transformer
from minift.rl.endpoint import Endpoint
from minift.rl.reward_source import Answered, Source, ask, request
from minift.tokenizer import Tokenizer

Vote = Literal["A", "B", "tie"]
Pair = tuple[Answered, Answered]

CRITERION = "Compare two answers to a request. The better one is more helpful, more correct and clearer."

QUESTION = """\
{criterion}

The request:
{request}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with A or B only."""

PLAIN_LEAD = "\n\nThe better answer is"
"""A model without a chat template goes on from here, with " A" or " B"."""


class Judge(Protocol):
    """Pairs -> (number of the pair, vote), in any order; None: no vote could be had."""

    name: str
    """For people: what it is, and where."""
    what: str
    """What it is, without where: its votes are kept under this, and hold wherever it is moved to."""

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Vote | None]]: ...


class RuleJudge:
    """The larger reward wins."""

    def __init__(self, source: Source):
        self.name, self.what, self.source = source.name, placeless(source.name), source

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Vote]]:
        rewards = ask(self.source, [answer for pair in pairs for answer in pair])
        for number, (first, second) in enumerate(zip(rewards[::2], rewards[1::2])):
            yield number, "A" if first > second else "B" if second > first else "tie"


class LikelihoodJudge:
    """The likelier label wins. Labels may begin with the same tokens (" " "A", " " "B"): those are given, and the next one decides."""

    def __init__(self, name: str, model: Transformer, tokenizer: Tokenizer, criterion: str = CRITERION, batch_size: int = 16):
        self.name, self.what, self.model, self.tokenizer = name, placeless(name), model, tokenizer
        self.criterion, self.batch_size = criterion, batch_size

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Vote | None]]:
        lead = "" if self.tokenizer.chat_template else " "
        a, b = (self.tokenizer.encode(f"{lead}{label}", add_special_tokens=False, continues=True) for label in "AB")
        shared = next(place for place, (x, y) in enumerate(zip(a, b)) if x != y)
        prompts = [[*question_ids(pair, self.criterion, self.tokenizer), *a[:shared]] for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda number: len(prompts[number]))
        self.model.eval()
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            fitting = [number for number in some if len(prompts[number]) <= position_limit(self.model)]
            yield from ((number, None) for number in some if number not in fitting)
            if fitting:
                gains = self._gains([prompts[number] for number in fitting], a[shared], b[shared])
                yield from ((number, "A" if gain > 0 else "B" if gain < 0 else "tie") for number, gain in zip(fitting, gains))

    def _gains(self, prompts: Sequence[list[int]], a: int, b: int) -> list[float]:
        """log p(a) - log p(b) behind each prompt: the difference of two logits, since both share the sum below the fraction."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        token_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)              # (B, T), pads on the right
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.tensor(prompt)
        device = self.model.norm.weight.device
        hidden = self.model.hidden(token_ids.to(device))                                          # (B, T, C)
        logits = self.model.head(hidden[torch.arange(len(prompts)), lengths - 1]).float()         # (B, V)
        return (logits[:, a] - logits[:, b]).tolist()


class VerdictJudge:
    """What a local model writes is read by `read_verdict`."""

    def __init__(self, name: str, model: Transformer, tokenizer: Tokenizer, criterion: str = CRITERION, max_new_tokens: int = 16, batch_size: int = 16):
        self.name, self.what, self.model, self.tokenizer = name, placeless(name), model, tokenizer
        self.criterion, self.max_new_tokens, self.batch_size = criterion, max_new_tokens, batch_size

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Vote | None]]:
        prompts = [question_ids(pair, self.criterion, self.tokenizer) for pair in pairs]
        for start in range(0, len(pairs), self.batch_size):
            some = range(start, min(start + self.batch_size, len(pairs)))
            fitting = [number for number in some if len(prompts[number]) <= position_limit(self.model)]
            yield from ((number, None) for number in some if number not in fitting)
            if fitting:
                said = generate(self.model, self.tokenizer, [prompts[number] for number in fitting], max_new_tokens=self.max_new_tokens)
                yield from zip(fitting, map(read_verdict, said))


class EndpointJudge:
    """What a model behind an endpoint writes is read by `read_verdict`; nonsense is asked again."""

    def __init__(self, endpoint: Endpoint, criterion: str = CRITERION):
        self.name, self.what, self.endpoint, self.criterion = f"{endpoint.model} at {endpoint.url}", endpoint.model, endpoint, criterion

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Vote | None]]:
        yield from self.endpoint.ask_all([question(pair, self.criterion) for pair in pairs], read_verdict)


def placeless(name: str) -> str:
    """A judge's name with the last part only of each path in it: likelihood:runs/one/model -> likelihood:model."""
    return ":".join(os.path.basename(os.path.realpath(part)) if os.path.exists(part) else part for part in name.split(":"))


def question(pair: Pair, criterion: str = CRITERION) -> str:
    """What a model is asked."""
    first, second = pair
    return QUESTION.format(criterion=criterion, request=request(first.row), first=first.text.strip(), second=second.text.strip())


def question_ids(pair: Pair, criterion: str, tokenizer: Tokenizer) -> list[int]:
    text = question(pair, criterion)
    if tokenizer.chat_template:
        return prompt_ids(as_row(text), tokenizer)
    return tokenizer.encode_segments([(text + PLAIN_LEAD, False)])[0]


def read_verdict(text: str) -> Vote | None:
    """The A or B that a verdict begins with ("B", "**A**: since ...") or puts in [[ ]], or the only one it names; None if that says nothing."""
    marked = set(re.findall(r"\[\[([AB])\]\]", text))
    opening = re.match(r"\W*(?:[Tt]he better )?(?:[Aa]nswer(?: is)?\W*)?([AB])(?=\W*$|\s*[^\w\s]|\s+(?:is|because|since)\b)", text)
    if opening and not marked:
        return opening[1]
    named = marked or set(re.findall(r"\b([AB])\b", text))
    return named.pop() if len(named) == 1 else None
