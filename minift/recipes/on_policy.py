"""The outer loop of reinforcement learning: answer prompts, have the answers rewarded, learn from them, look at what happened.

    for each step:
        prompts of the step -> rollout (rl/rollout.py) -> rewards (rl/rewards.py) -> learner.learn -> numbers for metrics.jsonl
        every --eval-every steps: answers to held-out prompts, their reward and their distance to the reference; samples; a checkpoint
        stop when the distance passes --kl-limit

grpo.py and ppo.py are learners: what they do with the rewards is theirs. Step s answers the same prompts with the same random numbers
whether the run was interrupted before or not. A reward source that fails stops the run with its state saved; an interruption waits for the
end of an update.
Proved in tests/recipes/test_on_policy.py. Left out: rollouts by another process, steps on answers of an older policy."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from minift.data.examples import prompt_ids
from minift.data.prompts import Prompt
from minift.errors import InputError, RunError
from minift.generate import end_ids
from minift.losses.logprobs import per_answer
from minift.models.transformer import Transformer
from minift.recipes.on_policy_plots import keep_samples
from minift.recipes.tuning import MethodConfig
from minift.rl.reference import Reference, logprobs_of
from minift.rl.reward_source import Answered, Source, ask
from minift.rl.rollout import Rollout, roll_out
from minift.sampling import Sampling
from minift.tokenizer import Tokenizer
from minift.train import checkpoint, fingerprint, memory, optim
from minift.train.alone import alone
from minift.train.checkpoint import Place, random_state
from minift.train.kept import Checkpoints
from minift.train.log import Log, read_metrics
from minift.train.optim import learning_rate_factor, set_learning_rate
from minift.train.unbroken import unbroken


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(MethodConfig):
    """What every recipe that learns from its own answers lets you choose."""

    data: tuple[str, ...]
    """Files or globs with prompts (JSONL, JSON, CSV): a prompt or messages; other columns go to the reward. Or pydocs: functions of this
    machine's Python, to be documented."""
    out: Path
    """The run folder."""
    rewards: dict[str, float]
    """What answers are rewarded for, with weights: --rewards pep257 1.0 file.py:function 0.5. Known: pep257, length:N, regex:PATTERN,
    numeric, file.py:function, the folder of a reward model."""
    model: str = "base"
    """A Hugging Face checkpoint folder, or the bundled "base"."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the file's fields is which of ours: --columns prompt question."""
    template: str | None = None
    """How messages become text: chatml, llama-2, llama-3, alpaca, plain; none: the tokenizer's own, else plain."""
    max_steps: int | None = None
    """Rounds of answers to --prompts prompts; has to be given. Each is one optimizer step, or --passes times --minibatches of them."""
    eval_every: int = 0
    """Rounds between evaluations on held-out prompts; 0: a fifth of the run."""
    prompts: int = 8
    """Prompts of a step."""
    new_tokens: int = 64
    """Longest answer."""
    temperature: float = 1.0
    """Of the answers: logits are divided by it, when they are drawn and when they are scored."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together hold probability p."""
    min_p: float | None = None
    """Draw from tokens at least min_p times as likely as the likeliest."""
    unfinished: float | None = None
    """Reward of an answer cut off at --new-tokens, whatever it says; none: as any other."""
    passes: int = 1
    """Times each step's answers are learned from."""
    minibatches: int = 1
    """Parts that a pass is cut into, an optimizer step for each."""
    clip_low: float = 0.2
    """The ratio to the policy that drew the answers stops counting below 1 - clip_low ..."""
    clip_high: float = 0.2
    """... and above 1 + clip_high (0.28: clip-higher, DAPO)."""
    entropy_coef: float = 0.0
    """Weight of the entropy, which keeps answers varied."""
    kl_limit: float | None = None
    """Stop when answers to held-out prompts are this far from the reference, nats per answer."""
    reference: str | None = None
    """Whom the policy is held to; none: the model before training. A checkpoint folder with the same tokenizer."""
    held_out: float = 0.1
    """Share of the prompts that are not trained on but measured."""
    judged: int = 64
    """Held-out prompts that are answered at each evaluation."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the loaded weights; trained ones need float32, a frozen base may be smaller."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True)
class Ask:
    """A prompt as the policy sees it."""

    prompt: Prompt
    ids: list[int]
    text: str


def asks(prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[Ask]:
    ids = [prompt_ids(prompt.row, tokenizer) for prompt in prompts]
    return [Ask(prompt, own, tokenizer.decode(own)) for prompt, own in zip(prompts, ids)]


class Learner(Protocol):
    """What a recipe adds to the loop."""

    optimizers: list[torch.optim.Optimizer]
    modules: nn.Module
    """All that trains, for checkpoints."""
    group: int
    """Answers to each prompt."""

    def learn(self, rollout: Rollout, scores: Tensor, reference: Tensor | None, step: int) -> dict[str, float]:
        """Learn from A answers with scores (A,) and, if it is watched, the reference's log-probabilities (n,); numbers for the log: "loss" at least,
        and "kl", nats per answer."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside weights and optimizers, of plain numbers."""

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    steps: int
    stopped: Literal["finished", "kl", "interrupted"]
    before: dict[str, float] | None
    after: dict[str, float] | None
    """On held-out prompts: reward, its parts, kl (nats per answer, from the reference), length, finished (share). None: interrupted before the first was known."""


class Loop:
    """The loop above."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, source: Source, reference: Reference, config: OnPolicyConfig, folder: Path):
        self.model, self.tokenizer, self.source, self.reference, self.config, self.folder = model, tokenizer, source, reference, config, folder
        self.ends = end_ids(model, tokenizer)
        self.how = (config.temperature, config.batch_tokens, config.precision)
        """How a rollout's tokens are scored."""

    def run(self, train: Sequence[Ask], judged: Sequence[Ask], learner: Learner, steps: int, quiet: bool = False) -> Outcome:
        config, device = self.config, self.model.norm.weight.device
        torch.manual_seed(config.seed)
        every, step, stopped, said = config.eval_every or max(1, steps // 5), 0, "finished", []
        data = fingerprint.fingerprint([prompt.ids for prompt in train])
        with alone(self.folder):
            kept = Checkpoints(self.folder, config.keep_last)
            if config.resume:
                place, extra = kept.restore(learner.modules, learner.optimizers, said.append)
                fingerprint.compare(extra.pop("data", None), data)
                if extra:
                    learner.restore(extra)
                step = place.step
            else:
                kept.begin()
        before = after = self._kept(0)
        random = random_state(device)                                                   # of the next round's start
        too_far = lambda found: config.kl_limit is not None and found["kl"] > config.kl_limit
        due = lambda: step % every == 0 or step == steps

        def save() -> Path:
            return kept.write(checkpoint.state_of(learner.modules, learner.optimizers, Place(step), random, {**learner.state(), "data": data}))

        with alone(self.folder), Log(self.folder, steps, step, config.tensorboard, quiet) as log:
            for text in said:
                log.say(text)
            try:
                if before is None:
                    before = after = self.evaluate(judged, learner, 0)
                    log.evaluation(0, before)
                if step:
                    found = self._kept(step)
                    if found is None and due():                                         # cut short just before or in an evaluation
                        found = self.evaluate(judged, learner, step)
                        log.evaluation(step, found)
                    if found is not None:
                        after, stopped = found, "kl" if too_far(found) else stopped
                while step < steps and stopped == "finished":
                    factor = learning_rate_factor(step, steps, round(config.warmup * steps), config.schedule, max(1, round(config.cooldown * steps)))
                    set_learning_rate(learner.optimizers, factor)
                    answered = self.answer(train, learner.group, step)
                    with unbroken():
                        numbers, tokens = self.learn(learner, answered, step)
                        step += 1
                        random = random_state(device)
                        log.step(step, numbers.pop("loss"), config.lr * factor, numbers.pop("grad_norm", 0.0), tokens, numbers)
                    memory.give_back()
                    if due():
                        after = self.evaluate(judged, learner, step)
                        log.evaluation(step, after)
                        random = random_state(device)
                        save()
                        stopped = "kl" if too_far(after) else stopped
                    elif config.save_every and step % config.save_every == 0:
                        save()
                if stopped == "kl":
                    log.say(f"held-out answers are {after['kl']:.2f} nats from the reference, more than --kl-limit {config.kl_limit:g}: stopped at step {step}")
            except KeyboardInterrupt:
                stopped = "interrupted"
                log.say(f"interrupted after step {step} of {steps}; saved to {save()}. Run the same command with --resume to go on")
            except RunError as error:
                text = f"{error}\nStopped after step {step} of {steps}; saved to {save()}: mend the reward and run the same command with --resume"
                raise RunError(text) from error
        return Outcome(step, stopped, before, after)

    def step(self, train: Sequence[Ask], learner: Learner, step: int) -> tuple[dict[str, float], int]:
        """One round of answers, rewards and learning; returns numbers for the log and the tokens that were learned from."""
        return self.learn(learner, self.answer(train, learner.group, step), step)

    def answer(self, train: Sequence[Ask], group: int, step: int) -> tuple[Rollout, Tensor, dict[str, float]]:
        """The step's answers, their rewards (A,), and numbers for the log."""
        began, config = time.perf_counter(), self.config
        chosen = [train[i] for i in prompts_of(len(train), config.prompts, step, config.seed)]
        rollout = roll_out(self.model, [a.ids for a in chosen], group, config.sampling, config.new_tokens, config.seed + 1 + step, self.ends)
        rolled = time.perf_counter()
        scores, parts = self.score(rollout, chosen)
        numbers = {f"reward_{name}": fmean(values) for name, values in parts.items() if len(parts) > 1}
        numbers |= {"reward": scores.mean().item(), "reward_std": pstdev(scores.tolist()), "length": rollout.lengths.float().mean().item()}
        numbers |= {"finished": fmean(rollout.ended), "rollout_s": rolled - began, "reward_s": time.perf_counter() - rolled}
        return rollout, scores, numbers

    def learn(self, learner: Learner, answered: tuple[Rollout, Tensor, dict[str, float]], step: int) -> tuple[dict[str, float], int]:
        began, (rollout, scores, numbers) = time.perf_counter(), answered
        learned = learner.learn(rollout, scores, self.reference.logprobs(self.model, rollout, *self.how), step)
        return learned | numbers | {"learn_s": time.perf_counter() - began}, int(rollout.lengths.sum())

    def score(self, rollout: Rollout, asked: Sequence[Ask]) -> tuple[Tensor, dict[str, list[float]]]:
        """(A,) rewards of the answers, and each source's own."""
        G, found = rollout.group, []
        for i, (ids, ended) in enumerate(zip(rollout.answers, rollout.ended)):
            own = asked[i // G]
            text = self.tokenizer.decode([token for token in ids if token not in self.ends], continues=True)
            found.append(Answered(own.text, text, own.prompt.row, own.prompt.fields, ids, ended))
        scores = torch.tensor(ask(self.source, found))
        if self.config.unfinished is not None:
            scores = torch.where(torch.tensor(rollout.ended), scores, self.config.unfinished)
        return scores, getattr(self.source, "parts", {})

    @torch.no_grad()
    def evaluate(self, judged: Sequence[Ask], learner: Learner, step: int) -> dict[str, float]:
        """One answer to each held-out prompt, always with the same random numbers; a few of them are kept in samples.jsonl."""
        config = self.config
        rollout = roll_out(self.model, [a.ids for a in judged], 1, config.sampling, config.new_tokens, config.seed, self.ends)
        scores, parts = self.score(rollout, judged)
        found = {"reward": scores.mean().item(), **{name: fmean(values) for name, values in parts.items() if len(parts) > 1}}
        found |= {"length": rollout.lengths.float().mean().item(), "finished": fmean(rollout.ended)}
        reference = self.reference.logprobs(self.model, rollout, *self.how)
        if reference is not None:
            found["kl"] = per_answer(logprobs_of(self.model, rollout, *self.how) - reference, rollout.lengths).mean().item()
        texts = [self.tokenizer.decode(ids, continues=True) for ids in rollout.answers[:8]]
        lines = [{"step": step, "prompt": a.text, "answer": text, "reward": score} for a, text, score in zip(judged, texts, scores.tolist())]
        keep_samples(self.folder, step, lines)
        return found

    def _kept(self, step: int) -> dict[str, float] | None:
        """What was measured after `step`, if the run goes on and was not cut short before."""
        lines = read_metrics(self.folder) if self.config.resume and (self.folder / "metrics.jsonl").exists() else []
        return next((values_of(line) for line in lines if line["step"] == step and "eval_reward" in line), None)


def prompts_of(rows: int, count: int, step: int, seed: int) -> list[int]:
    """Which of the rows step `step` answers: epoch after epoch, each in another order."""
    places = range(step * count, (step + 1) * count)
    order: dict[int, list[int]] = {}
    for epoch in {place // rows for place in places}:
        order[epoch] = random.Random(seed * 1_000_003 + epoch).sample(range(rows), rows)
    return [order[place // rows][place % rows] for place in places]


def values_of(line: dict[str, float]) -> dict[str, float]:
    """An evaluation, from its line in metrics.jsonl."""
    return {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}


def optimizers_of(module: nn.Module, config: OnPolicyConfig) -> list[torch.optim.Optimizer]:
    return optim.optimizers_of(config.optimizer, module, config.lr, config.weight_decay, config.betas)
