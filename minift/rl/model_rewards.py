"""A trained reward model as a source of rewards: its scores, read at the last token of each answer (models/scorer.py).

    (row, text)  --the scorer's own tokenizer and template-->  prompt | answer, end token  -->  score

The policy's token ids are never looked at: a scorer with another tokenizer would read other words in them. So text and row are
tokenised anew, exactly as in the scorer's training. The end token is there even if the policy was cut off before it, since that is
where the scorer learned to be read; recipes punish unfinished answers themselves. Answers to one prompt share its tokens (evaluate/scoring.py).
Proved in tests/rl/test_rewards.py. Left out: a scorer of several models."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from minift.data.branches import Tree
from minift.data.chat import render
from minift.data.examples import prompt_ids
from minift.data.sources import Row
from minift.evaluate.scoring import rewards
from minift.generate import position_limit
from minift.models.scorer import Scorer
from minift.rl.reward_source import Answered, RewardError
from minift.tokenizer import Tokenizer

LoadScorer = Callable[[str], tuple[Scorer, Tokenizer]]


class ModelReward:
    """A source that asks `scorer`. batch_tokens: about how many tokens go through it at once."""

    def __init__(self, name: str, scorer: Scorer, tokenizer: Tokenizer, batch_tokens: int = 8192):
        self.name, self.scorer, self.tokenizer, self.batch_tokens = name, scorer, tokenizer, batch_tokens

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        limit, branches = position_limit(self.scorer), {}
        for number, answer in enumerate(answers):
            prompt, ids = tokens_of(answer.row, answer.text, self.tokenizer)
            if len(prompt) + len(ids) > limit:
                raise RewardError(f"{answer.row.where}: with its answer this is {len(prompt) + len(ids)} tokens for the reward model {self.name}, "
                                  f"which has {limit} positions: shorten the prompt, or allow fewer new tokens")
            branches.setdefault(tuple(prompt), []).append((number, ids))
        trees = [Tree(list(prompt), [ids for _, ids in found]) for prompt, found in branches.items()]
        numbers = [number for found in branches.values() for number, _ in found]
        scores = dict(zip(numbers, rewards(self.scorer, trees, self.batch_tokens).tolist()))
        return [scores[number] for number in range(len(answers))]


def tokens_of(row: Row, text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(prompt, answer with its end token) of `row` answered by `text`, as training sees them; the answer may be empty."""
    prompt = prompt_ids(row, tokenizer)
    if not row.messages:
        return prompt, [*tokenizer.encode(text, add_special_tokens=False, continues=True), tokenizer.eos_id]
    template = "plain" if tokenizer.chat_template is None else None
    ids, _ = tokenizer.encode_segments(render(with_answer(row, text).messages, tokenizer, template, input=row.input))
    return prompt, ids[len(prompt) :]


def with_answer(row: Row, text: str) -> Row:
    """The row answered by `text`, whether or not it had an answer."""
    if row.messages and row.messages[-1]["role"] != "assistant":
        return replace(row, messages=(*row.messages, {"role": "assistant", "content": text}))
    return row.with_answer(text)
