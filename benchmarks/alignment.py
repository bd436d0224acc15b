"""Do reward models, DPO, PPO and GRPO do what they are for? On a task whose true reward is known: summaries that keep PEP 257's rules.

    python -m benchmarks.alignment [--seeds 0 1 2] [--work FOLDER] [--only dpo ...]        about an hour on 2 CPU cores
    python -m benchmarks.alignment --report                                                only the page, from the stored numbers

    sft       quickstart's task: the bundled base, taught to summarise functions from their signatures; the start of all that follows
    pairs     four answers to each training prompt, drawn from the sft model at TEMPERATURE; one that keeps the rules against one that does not
    reward    a reward model from these pairs; held-out accuracy, and rank correlation with the rule on single answers
    best of n the sft model's answer that the reward model likes best among n
    dpo       from the same pairs; apo-zero: the same with another loss; ppo: against the reward model (the rule only watches); grpo: against the rule itself
    hacked    the same run of grpo without any price for distance: what the rule rewards is not all that we want of a summary

Judged on JUDGED functions of modules that no training has seen, one answer each, drawn at TEMPERATURE:
    PEP 257       share of answers that keep all five rules (data/pep257.py)
    KL            nats per answer from the sft model: the sum over an answer's tokens of the exact divergence of the two next-token
                  distributions, as they are drawn from; the mean over answers
    ROUGE-L       words in common with the true summary, in order
    different     share of answers that no other function got
Writes benchmarks/results/alignment.json, docs/alignment.md and docs/alignment.png."""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.alignment_report import write_page
from benchmarks.measure import RESULTS, machine
from minift import folder as folders
from minift import peft
from minift.data.branches import rows_of
from minift.data.examples import prompt_ids
from minift.data.pep257 import is_pep257
from minift.data.prompts import docstring_prompts
from minift.evaluate.generation import rouge_l
from minift.evaluate.scoring import load_scorer
from minift.generate import end_ids
from minift.losses.kl import exact_kl
from minift.recipes import dpo, grpo, merge, ppo, quickstart, reward
from minift.recipes.docstrings import spread
from minift.rl.model_rewards import ModelReward
from minift.rl.reward_source import Answered
from minift.rl.rollout import roll_out
from minift.sampling import Sampling
from minift.train.log import read_metrics

TEMPERATURE, NEW_TOKENS, JUDGED = 0.8, 40, 400
PROMPTS, DRAWN = 3000, 4
"""Training prompts that pairs are drawn from, and answers to each."""
BEST_OF = (2, 4, 8)
LORA = dict(method="lora", rank=16, alpha=32.0)
STEPS = dict(**LORA, data=("pydocs",), temperature=TEMPERATURE, new_tokens=NEW_TOKENS, warmup=0.1, schedule="constant")
GRPO = dict(**{**STEPS, "schedule": "cosine"}, lr=1e-3, max_steps=40, prompts=32, group=8)
SETTINGS = {
    "reward": dict(**LORA, lr=1e-3, epochs=3.0, center=0.01),
    "dpo": dict(**LORA, lr=5e-4, epochs=2.0, beta=0.5),
    "apo-zero": dict(**LORA, loss="apo-zero", lr=5e-4, epochs=2.0, beta=0.3),
    "ppo": dict(**STEPS, lr=1e-3, max_steps=16, prompts=64, kl_coef=0.15, passes=3),
    "grpo": dict(**GRPO, kl_coef=0.02),
    "hacked": dict(**GRPO, kl_coef=0.0),
}


PAIRED = ("dpo", "apo-zero")


class Task:
    """Prompts, the model that all start from, and the judgement."""

    def __init__(self, work: Path):
        self.work = work
        self.base, self.tokenizer = folders.load(work / "sft" / "model")
        self.ends = end_ids(self.base, self.tokenizer)
        self.test = spread(docstring_prompts("test"), JUDGED)

    def drawn(self, model, prompts, group: int, seed: int):
        """(rollout, texts) of `group` answers to each prompt."""
        ids = [prompt_ids(prompt.row, self.tokenizer) for prompt in prompts]
        rollout = roll_out(model, ids, group, Sampling(TEMPERATURE), NEW_TOKENS, seed, self.ends)
        return rollout, [self.tokenizer.decode([t for t in answer if t not in self.ends]).strip() for answer in rollout.answers]

    def judge(self, model, seed: int = 7) -> dict[str, float]:
        rollout, texts = self.drawn(model, self.test, 1, seed)
        return {**self.of_texts(texts), "kl": self.distance(model, rollout), "tokens": rollout.lengths.float().mean().item(), "examples": texts[::80]}

    def of_texts(self, texts) -> dict[str, float]:
        return {
            "pep257": fmean(map(is_pep257, texts)), "different": len(set(texts)) / len(texts),
            "rouge_l": fmean(rouge_l(text, prompt.fields["answer"]) for text, prompt in zip(texts, self.test)),
        }  # fmt: skip

    @torch.no_grad()
    def distance(self, model, rollout) -> float:
        """The exact KL of the two next-token distributions at TEMPERATURE, summed over each answer."""
        total, trees = 0.0, rollout.trees
        for start in range(0, len(trees), 16):
            batch = rows_of(trees[start : start + 16])
            logits = [
                own.head(own.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches).flatten(0, 1)[batch.places]) / TEMPERATURE
                for own in (model, self.base)
            ]
            total += exact_kl(*logits).sum().item()
        return total / len(rollout.answers)

    def tuned(self, adapter: Path):
        model, _ = folders.load(self.work / "sft" / "model")
        peft.load(model, adapter)
        return model.eval()


def sft(work: Path) -> None:
    """quickstart, merged into a checkpoint; kept if it is there."""
    if (work / "sft" / "model").exists():
        return
    quickstart.run(quickstart.Config(out=work / "sft"), quiet=True)
    merge.run(merge.Config(adapter=work / "sft" / "adapter", out=work / "sft" / "model"))


def write_pairs(task: Task) -> dict[str, int]:
    """pairs.jsonl from training modules, held_out.jsonl from the ones between: one kept and one broken answer to a prompt. Files that are
    there are kept."""
    counts = {}
    if all((task.work / f"{name}.jsonl").exists() for name in ("pairs", "held_out")):
        return {name: len((task.work / f"{name}.jsonl").read_text().splitlines()) for name in ("pairs", "held_out")}
    for name, split, count in (("pairs", "train", PROMPTS), ("held_out", "valid", 400)):
        prompts = spread(docstring_prompts(split), count)
        _, texts = task.drawn(task.base, prompts, DRAWN, seed=1)
        dice, lines = random.Random(0), []
        for i, prompt in enumerate(prompts):
            own = texts[i * DRAWN : (i + 1) * DRAWN]
            good, bad = ([text for text in own if text and is_pep257(text) == kept] for kept in (True, False))
            if good and bad:
                lines.append({"prompt": prompt.row.prompt, "chosen": dice.choice(good), "rejected": dice.choice(bad)})
        (task.work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        counts[name] = len(lines)
    return counts


def train_reward(task: Task) -> dict[str, float]:
    out, began = task.work / "reward", time.perf_counter()
    result = reward.run(reward.Config(**paths(task, out), **SETTINGS["reward"]), quiet=True)
    minutes = (time.perf_counter() - began) / 60
    _, texts = task.drawn(task.base, task.test, 1, seed=8)
    scores = reward_source(task)(answered(task, texts))
    true = [float(is_pep257(text)) for text in texts]
    return {"accuracy": result.after["accuracy"], "rank_correlation": correlation(ranks(scores), ranks(true)), "auc": auc(scores, true), "minutes": minutes}


def best_of(task: Task, n: int) -> dict[str, float]:
    """KL: at most log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879)."""
    _, texts = task.drawn(task.base, task.test, n, seed=9)
    scores = reward_source(task)(answered(task, texts, n))
    chosen = [max(range(i * n, (i + 1) * n), key=scores.__getitem__) for i in range(len(task.test))]
    return {**task.of_texts([texts[i] for i in chosen]), "kl_at_most": torch.tensor(float(n)).log().item() - (n - 1) / n}


def learn(task: Task, name: str, seed: int) -> dict:
    """One run of a recipe, judged."""
    out, began = task.work / f"{name}-{seed}", time.perf_counter()
    model = str(task.work / "sft" / "model")
    if name in PAIRED:
        dpo.run(dpo.Config(**paths(task, out), seed=seed, **SETTINGS[name]), quiet=True)
    elif name == "ppo":
        rewards = {str(task.work / "reward"): 1.0, "pep257": 0.0}
        ppo.run(ppo.Config(model=model, out=out, rewards=rewards, overwrite=True, seed=seed, **SETTINGS["ppo"]), quiet=True)
    else:
        grpo.run(grpo.Config(model=model, out=out, rewards={"pep257": 1.0}, overwrite=True, seed=seed, **SETTINGS[name]), quiet=True)
    minutes = (time.perf_counter() - began) / 60
    path = [] if name in PAIRED else [(line["step"], line["eval_kl"], line.get("eval_pep257", line["eval_reward"])) for line in read_metrics(out) if "eval_kl" in line]
    return {"method": name, "seed": seed, "minutes": minutes, "path": path, **task.judge(task.tuned(out / "adapter"))}


def paths(task: Task, out: Path) -> dict:
    data = dict(data=(str(task.work / "pairs.jsonl"),), eval_data=(str(task.work / "held_out.jsonl"),))
    return dict(model=str(task.work / "sft" / "model"), out=out, overwrite=True, **data)


def reward_source(task: Task) -> ModelReward:
    return ModelReward("reward", *load_scorer(task.work / "reward"))


def answered(task: Task, texts, group: int = 1) -> list[Answered]:
    return [Answered(task.test[i // group].row.prompt, text, task.test[i // group].row) for i, text in enumerate(texts)]


def ranks(values) -> torch.Tensor:
    """Ranks from 0, equal values sharing the mean of theirs."""
    values = torch.tensor(values, dtype=torch.float64)
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


def auc(scores, true) -> float:
    """How often an answer that keeps the rules has a higher score than one that does not."""
    good, bad = ([score for score, kept in zip(scores, true) if kept == wanted] for wanted in (1.0, 0.0))
    return fmean(float(g > b) + 0.5 * float(g == b) for g in good for b in bad)


def keep(file: Path, found: dict) -> None:
    file.write_text(json.dumps({**found, "machine": machine(), "settings": SETTINGS, "temperature": TEMPERATURE}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/alignment"))
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS)[1:], default=list(SETTINGS)[1:])
    parser.add_argument("--fresh", action="store_true", help="train the sft model and the reward model again")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "alignment.json"
    if not options.report:
        found = json.loads(file.read_text()) if file.exists() else {"runs": []}
        if options.fresh:
            shutil.rmtree(options.work, ignore_errors=True)
        options.work.mkdir(parents=True, exist_ok=True)
        sft(options.work)
        task = Task(options.work)
        if not (options.work / "reward" / "adapter").exists():
            found |= {"pairs": write_pairs(task), "reward": train_reward(task), "sft": task.judge(task.base)}
            found["best_of"] = {str(n): best_of(task, n) for n in BEST_OF}
            print(found["pairs"], found["reward"], found["sft"], found["best_of"], sep="\n", flush=True)
            keep(file, found)
        for name in options.only:
            for seed in options.seeds[:1] if name == "hacked" else options.seeds:
                run = learn(task, name, seed)
                found = json.loads(file.read_text()) if file.exists() else found          # another process may have added to it
                found["runs"] = [other for other in found["runs"] if (other["method"], other["seed"]) != (name, seed)] + [run]
                print({key: value for key, value in run.items() if key != "path"}, flush=True)
                keep(file, found)
    write_page(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
