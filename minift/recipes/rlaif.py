"""RLAIF: a model answers every prompt several times, a judge says which answer is better, and what it says becomes training data.

    prompts -> K answers each -> pairs -> judge, both orders -> preferences.jsonl -> dpo, or a reward model

In the run folder:
    answers.jsonl        the K answers of each prompt
    votes.jsonl          every vote of the judge, as it came
    preferences.jsonl    prompt, chosen, rejected, judge, votes: what `minift dpo --data` and `minift reward --data` read
    report.md            how many pairs were agreed on, dropped and why, and how often the judge is right by a rule (--check)
    dpo/ or reward/      the run that --then asks for
Everything is kept as it comes: with --resume no answer is drawn and no question is asked a second time, but for those that failed. Once the
training that --then asks for has begun, they are not asked either, and preferences.jsonl stays as it is: it is being trained on.
Papers: Bai et al. 2022 (arXiv:2212.08073), Lee et al. 2023 (arXiv:2309.00267). Proved in tests/recipes/test_rlaif.py.
Left out: answers that are revised before they are judged (the constitution's first half), rounds that go on with the trained model."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from minift import folder as folders
from minift.data.prompts import docstring_prompts, read_prompts
from minift.errors import InputError, RunError
from minift.evaluate.scoring import load_scorer
from minift.files import write_text
from minift.recipes.docstrings import spread
from minift.recipes.loading import load_base, use_template
from minift.recipes.objectives import ObjectiveConfig
from minift.recipes.report import markdown_table
from minift.recipes.tuning import RunConfig, loaded_in
from minift.rl.candidates import Asked, Drawing, different, draw, pairs_of
from minift.rl.endpoint import Endpoint
from minift.rl.judge import CRITERION, EndpointJudge, Judge, LikelihoodJudge, Pair, RuleJudge, VerdictJudge
from minift.rl.reward_source import Answered, Source, ask
from minift.rl.rewards import source
from minift.rl.verdicts import Decision, Tally, decide, tally
from minift.sampling import Sampling
from minift.train.run import open_run


@dataclass(frozen=True, kw_only=True)
class Config(ObjectiveConfig, RunConfig):
    """Let a judge compare a model's answers, and train on what it prefers."""

    data: tuple[str, ...]
    """Files or globs with prompts (answers in them are not looked at); or "pydocs": signatures of Python's own, numpy's and torch's functions."""
    judge: str
    """likelihood:MODEL or verdict:MODEL, a checkpoint folder or "base"; the URL of an OpenAI-compatible endpoint, as in
    http://127.0.0.1:8000/v1; or a reward: pep257, length:N, regex:PATTERN, numeric, file.py:function, a reward model's folder."""
    then: Literal["dpo", "reward", "none"] = "none"
    """What is trained on the preferences, with the options below; none: nothing, they are only written."""
    criterion: str = CRITERION
    """What the judge is told to look for, if it is a model."""
    check: str | None = None
    """A reward that says which answer is truly better: the report counts how often the judge agrees with it."""
    answers: int = 2
    """K, drawn for each prompt."""
    pairs: int | None = None
    """At most so many pairs of a prompt's answers are judged; none: all K (K - 1) / 2."""
    limit: int | None = None
    """Only so many prompts, evenly spread over all."""
    temperature: float = 1.0
    """Logits are divided by it before a token is drawn."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together hold probability p."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these strings."""
    new_tokens: int = 64
    """Longest answer; one that is cut off is not judged."""
    judge_model: str | None = None
    """Endpoint: the model's name there."""
    judge_key: str | None = None
    """Endpoint: the NAME of the environment variable that holds the key; none: no key is sent."""
    judge_timeout: float = 60.0
    """Endpoint: seconds for one attempt."""
    judge_retries: int = 4
    """Endpoint: attempts after the first, each after twice the wait."""
    judge_workers: int = 4
    """Endpoint: questions on their way at once."""
    judge_failures: int = 10
    """Endpoint: questions that may fail in all attempts; one more stops the run, which --resume goes on with."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns prompt question."""


@dataclass(frozen=True)
class Result:
    tally: Tally
    preferences: Path
    trained: Any = None
    """The Result of the run that --then asked for."""

    @property
    def interrupted(self) -> bool:
        return getattr(self.trained, "interrupted", False)


OWN = {field for field in vars(Config)["__annotations__"]} | {"out", "model", "template", "device", "dtype", "quantize", "seed", "overwrite", "resume"}
"""Options that rlaif itself reads; the others are for the run that follows."""


def run(config: Config, quiet: bool = False) -> Result:
    say = (lambda text: None) if quiet else print
    following = _following(config)
    begun = following is not None and following.resume
    write = (lambda file, text: None) if begun else write_text
    asked = _asked(config)
    model, tokenizer = folders.decoder(config.model, getattr(torch, config.dtype), config.device, loaded_in(config))
    use_template(tokenizer, [row for row, _ in asked], config.template)
    judge, check = make_judge(config), reward(config.check, config) if config.check else None
    how = Drawing(config.answers, Sampling(config.temperature, config.top_k, config.top_p), config.new_tokens, config.stop, config.seed)
    how.check()
    folder = open_run(config.out, "rlaif", config, config.overwrite, config.resume)

    answers = draw(model, tokenizer, asked, how, folder / "answers.jsonl")
    pairs = [pair for drawn in answers for pair in pairs_of(drawn, config.pairs)]
    cut = sum(not answer.ended for drawn in answers for answer in drawn)
    say(f"{len(asked)} prompts, {config.answers} answers each, {cut} of them cut off at {config.new_tokens} tokens: {len(pairs)} pairs to judge")
    if not pairs:
        raise RunError(f"there is no pair to judge: {cut} of {len(asked) * config.answers} answers were cut off (raise --new-tokens, or give --stop), "
                       "the others to a prompt are the same or empty (raise --temperature or --answers)")
    decisions = decide(judge, pairs, folder / "votes.jsonl", ask=not begun)
    kept = [(pair, decision) for pair, decision in zip(pairs, decisions) if decision.winner is not None]
    file, counts = folder / "preferences.jsonl", tally(decisions)
    write(file, "".join(json.dumps(preference(pair, decision, judge.name), ensure_ascii=False) + "\n" for pair, decision in kept))
    faults = dict(judge.endpoint.counts) if isinstance(judge, EndpointJudge) else {}
    lines = [["prompts", str(len(asked))], ["answers drawn", str(sum(map(len, answers)))], ["cut off at --new-tokens: not judged", str(cut)],
             ["empty or said before: not judged", str(sum(len(drawn) - len(different(drawn)) for drawn in answers) - cut)]]    # fmt: skip
    lines += report(counts, faults, checked(check, kept) if check and kept else None, config.check)
    shown = [[str(pair[d.winner].row.where), pair[d.winner].text.strip(), pair[1 - d.winner].text.strip()] for pair, d in kept[:10]]
    table = markdown_table(["what", "count"], lines)
    write(folder / "report.md", f"# Preferences of {judge.name}\n\n{table}\n\n{markdown_table(['prompt', 'chosen', 'rejected'], shown)}\n")
    say("\n".join(f"  {name:<46}{value}" for name, value in lines) + f"\n{'kept' if begun else 'written'}: {file}")
    if not kept and not begun:
        raise RunError(f"none of {len(pairs)} pairs has a winner by the judge {judge.name} ({counts.place} the same place in both orders, {counts.tie} ties, "
                       f"{counts.failed} without a vote), see {folder / 'report.md'}: there is nothing to train on")
    if following is None:
        return Result(counts, file)
    del model
    return Result(counts, file, importlib.import_module(f"minift.recipes.{config.then}").run(following, quiet))


def make_judge(config: Config) -> Judge:
    """What --judge names. Raises InputError for options of another kind of judge: they would be without effect."""
    kind, colon, name = config.judge.partition(":")
    remote, local = kind in ("http", "https"), kind in ("likelihood", "verdict") and bool(colon)
    changed = [option for option in ("judge_model", "judge_key", "judge_timeout", "judge_retries", "judge_workers", "judge_failures") if _given(config, option)]
    if changed and not remote:
        raise InputError(f"--{changed[0].replace('_', '-')} is for endpoints, and --judge {config.judge} is none: leave it out")
    if config.criterion != CRITERION and not (remote or local):
        raise InputError(f"--criterion is told to models, and --judge {config.judge} is a reward: leave it out")
    if remote:
        if not config.judge_model:
            raise InputError(f"--judge {config.judge} wants --judge-model too: the name of the model there")
        return EndpointJudge(Endpoint(
            config.judge, config.judge_model, config.judge_key, timeout=config.judge_timeout, retries=config.judge_retries,
            workers=config.judge_workers, max_failures=config.judge_failures), config.criterion)    # fmt: skip
    if local:
        made = LikelihoodJudge if kind == "likelihood" else VerdictJudge
        return made(config.judge, *load_base(name, None, config.dtype, config.device), config.criterion)
    try:
        return RuleJudge(reward(config.judge, config))
    except InputError as error:
        raise InputError(f"--judge: {error}. A judge may also be likelihood:MODEL, verdict:MODEL, or the URL of an endpoint") from None


def reward(spec: str, config: Config) -> Source:
    return source(spec, lambda name: load_scorer(name, device=config.device))


def preference(pair: Pair, decision: Decision, judge: str) -> dict:
    """One line of preferences.jsonl; a chat's prompt and answers are lists of messages."""
    chosen, rejected = pair[decision.winner], pair[1 - decision.winner]
    row, said = chosen.row, {"judge": judge, "votes": decision.votes}
    if not row.messages:
        return {"prompt": row.prompt, "chosen": chosen.text, "rejected": rejected.text, **said}
    asked = [dict(turn) for turn in (row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages)]
    if row.input:
        asked[-1]["content"] += f"\n\n{row.input}"
    turn = lambda answer: [{"role": "assistant", "content": answer.text}]
    return {"prompt": asked, "chosen": turn(chosen), "rejected": turn(rejected), **said}


def checked(check: Source, kept: Sequence[tuple[Pair, Decision]]) -> tuple[int, int, int]:
    """(right, wrong, no difference): the judge's winners by the reward `check`."""
    answers: list[Answered] = [answer for pair, decision in kept for answer in (pair[decision.winner], pair[1 - decision.winner])]
    values = ask(check, answers)
    gains = [better - worse for better, worse in zip(values[::2], values[1::2])]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)


def report(counts: Tally, faults: dict[str, int], right: tuple[int, int, int] | None, check: str | None) -> list[list[str]]:
    """What became of the pairs, as (what, count) lines; nothing that was dropped goes unsaid."""
    lines = [
        ["pairs judged, in both orders", counts.pairs], ["agreed: kept", counts.agreed], ["the same place in both orders: dropped", counts.place],
        ["ties: dropped", counts.tie], ["no vote to be had: dropped", counts.failed], ["position bias (half: no opinion)", f"{counts.position_bias:.1%}"],
        ["votes for the answer shown first", f"{counts.first_votes} of {counts.votes}"],
    ]  # fmt: skip
    lines += [[f"faults: {kind}", number] for kind, number in sorted(faults.items())]
    if right:
        lines += [[f"by {check}: the judge is right", right[0]], [f"by {check}: the judge is wrong", right[1]], [f"by {check}: no difference", right[2]]]
    return [[name, str(value)] for name, value in lines]


def _asked(config: Config) -> list[Asked]:
    prompts = docstring_prompts("train") if config.data == ("pydocs",) else read_prompts(config.data, columns=config.columns)
    found = [Asked(prompt.row, prompt.fields) for prompt in prompts]
    if not found or (config.limit is not None and config.limit < 1):
        raise InputError(f"--limit {config.limit} leaves no prompt")
    return found if config.limit is None else spread(found, config.limit)


def _following(config: Config):
    """The Config of the run that --then asks for, or None. Raises InputError for options that it does not have."""
    changed = [entry.name for entry in fields(config) if entry.name not in OWN and _given(config, entry.name)]
    if config.then == "none":
        if changed:
            raise InputError(f"--{changed[0].replace('_', '-')} is for training, and nothing is trained: leave it out, or say --then dpo or --then reward")
        return None
    theirs = importlib.import_module(f"minift.recipes.{config.then}").Config
    known = {entry.name for entry in fields(theirs)}
    if unknown := [name for name in changed if name not in known]:
        raise InputError(f"--{unknown[0].replace('_', '-')} is no option of {config.then}, which --then asks for: leave it out")
    shared = known & {entry.name for entry in fields(config)} - set(vars(Config)["__annotations__"]) - {"out", "overwrite", "resume"}
    out = config.out / config.then
    begun = config.resume and (out / "config.json").exists()
    return theirs(data=(str(config.out / "preferences.jsonl"),), out=out, resume=begun, overwrite=False, **{name: getattr(config, name) for name in shared})


def _given(config: Config, name: str) -> bool:
    [entry] = [entry for entry in fields(config) if entry.name == name]
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return getattr(config, name) != default
