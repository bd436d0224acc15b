"""The three stages of InstructGPT in one command (Ouyang et al. 2022, arXiv:2203.02155, figure 2), and what each of them brought.

    1-sft        answers to learn from                 -> a model that answers                                    (sft.py, merged)
    2-reward     pairs of a better and a worse answer  -> a model of what is preferred                            (reward.py)
    3-ppo        prompts                               -> a model whose answers are preferred, and not far off    (ppo.py)

Without any file it runs on the docstring task, whose true reward is known: summaries of this machine's own functions, preferred if they keep
PEP 257's rules. The pairs are then drawn from the first stage's model and judged by the rule (rlaif.py), and the report says how many
answers of each stage really keep it. With your own files (--data, --preferences, --prompts) the report has rewards instead.
Each stage is a run of its own recipe in a folder of its own; --resume goes on with the stage that was cut short and passes over those that
are done; the folder may have been moved. Proved in tests/recipes/test_rlhf.py. Left out: several rounds, a value model that starts from the
reward model (see ppo)."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean

import torch

from minift import folder as folders
from minift import peft
from minift.data.examples import prompt_ids
from minift.data.pep257 import is_pep257
from minift.data.prompts import docstring_prompts
from minift.data.pydocs import pairs
from minift.errors import InputError
from minift.files import write_text
from minift.generate import generate
from minift.recipes import ppo, reward, rlaif, sft
from minift.recipes.docstrings import spread
from minift.recipes.merge import Config as MergeConfig
from minift.recipes.merge import run as merge
from minift.recipes.report import markdown_table
from minift.train.kept import Checkpoints
from minift.train.run import open_run

STAGES = ("1-sft", "2-reward", "3-ppo")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Supervised fine-tuning, a reward model, and PPO against it: the path of InstructGPT."""

    out: Path = Path("runs/rlhf")
    """The folder of the three runs and the report."""
    model: str = "base"
    """A Hugging Face checkpoint folder, or the bundled "base"."""
    data: tuple[str, ...] = ("pydocs",)
    """1: files with answers to learn from; pydocs: the functions of this machine's Python."""
    preferences: tuple[str, ...] = ()
    """2: files with chosen and rejected answers; none (pydocs only): drawn from the first stage's model, judged by PEP 257."""
    prompts: tuple[str, ...] = ()
    """3: files with prompts; none: those of --data."""
    rank: int = 16
    """r of LoRA, in all three stages."""
    alpha: float = 32.0
    """LoRA's change is scaled by alpha / r."""
    sft_steps: int = 200
    """1: optimizer steps."""
    sft_lr: float = 3e-3
    """1: peak learning rate."""
    drawn: int = 1500
    """2: prompts that pairs are drawn from, four answers to each."""
    reward_epochs: float = 2.0
    """2: passes over the pairs."""
    reward_lr: float = 1e-3
    """2: peak learning rate."""
    ppo_steps: int = 20
    """3: rounds of answers."""
    ppo_prompts: int = 96
    """3: prompts of a round."""
    ppo_lr: float = 1e-3
    """3: peak learning rate."""
    kl_coef: float = 0.05
    """3: what a nat of distance to the first stage's model costs."""
    temperature: float = 0.8
    """2 and 3: at which answers are drawn."""
    new_tokens: int = 40
    """2 and 3: longest answer."""
    judged: int = 250
    """Held-out functions that the report's numbers are of."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which of the files' fields is which of ours."""
    template: str | None = None
    """How messages become text; none: the tokenizer's own, else plain."""
    quick: bool = False
    """The whole path in a few minutes: 80 --sft-steps, 500 --drawn, 10 --ppo-steps, 64 --ppo-prompts and 100 --judged, wherever they are not given."""
    seed: int = 0
    """Of everything drawn."""
    device: str = "cpu"
    """Where it runs: cpu, or a GPU such as cuda."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: bool = False
    """Go on from where the folder's run was cut short."""


@dataclass(frozen=True)
class Result:
    numbers: dict[str, dict[str, float]]
    """Stage -> what it brought."""
    report: Path | None
    interrupted: bool = False


QUICK = dict(sft_steps=80, drawn=500, ppo_steps=10, ppo_prompts=64, judged=100)


def run(config: Config, quiet: bool = False) -> Result:
    if config.data != ("pydocs",) and not config.preferences:
        raise InputError("--data of your own needs --preferences too: only for pydocs is there a rule that could judge answers")
    config = quickened(config) if config.quick else config
    folder, say = open_run(config.out, "rlhf", config, config.overwrite, config.resume), (lambda text: None) if quiet else print
    stages = Stages(config, folder, quiet)
    for name in STAGES[1:]:
        name_base(folder / name / "adapter", stages.answers)
    for name, stage in zip(STAGES, (stages.sft, stages.reward, stages.ppo)):
        if stages.done(name):
            say(f"{name}: done before")
            continue
        say(f"--- {name} " + "-" * 60)
        if not stage():
            say(f"interrupted in {name}: run the same command with --resume to go on")
            return Result(stages.numbers, None, interrupted=True)
    report = write_report(stages)
    say(f"report: {report}")
    return Result(stages.numbers, report)


def quickened(config: Config) -> Config:
    """QUICK's numbers where nothing else was asked for."""
    defaults = {each.name: each.default for each in fields(config)}
    return replace(config, **{name: few for name, few in QUICK.items() if getattr(config, name) == defaults[name]})


class Stages:
    """The three runs; each says whether it came to its end, and then leaves its numbers in stages.json."""

    def __init__(self, config: Config, folder: Path, quiet: bool):
        self.config, self.folder, self.quiet = config, folder, quiet
        self.file, self.answers = folder / "stages.json", folder / "1-sft" / "merged"
        self.numbers: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.known = config.data == ("pydocs",)
        """Whether there is a rule that says which answers are good."""

    def done(self, name: str) -> bool:
        return name in self.numbers

    def sft(self) -> bool:
        config, out = self.config, self.folder / "1-sft"
        data = self.docstrings() if self.known else dict(data=config.data, columns=config.columns, template=config.template)
        shared = dict(max_length=256, batch_tokens=2048, epochs=1000.0, max_steps=config.sft_steps, eval_every=max(1, config.sft_steps // 2))
        result = sft.run(sft.Config(model=config.model, out=out, lr=config.sft_lr, **data, **shared, **self.shared(out)), self.quiet)
        if result.interrupted:
            return False
        merge(MergeConfig(model=config.model, adapter=result.written, out=self.answers, overwrite=True, device=config.device))
        return self.keep("1-sft", {"held-out loss before": result.before.nats_per_token, "held-out loss": result.after.nats_per_token}, None)

    def reward(self) -> bool:
        config, out, given = self.config, self.folder / "2-reward", self.config.preferences
        if not given:
            pairs_folder = self.folder / "2-pairs"
            drawing = dict(answers=4, pairs=3, limit=config.drawn, temperature=config.temperature, new_tokens=config.new_tokens)
            judged = rlaif.run(rlaif.Config(
                data=("pydocs",), model=str(self.answers), out=pairs_folder, judge="pep257", stop=("\n",), seed=config.seed, device=config.device,
                resume=(pairs_folder / "config.json").exists(), **drawing,
            ), self.quiet)  # fmt: skip
            given = (str(judged.preferences),)
        how = dict(lr=config.reward_lr, epochs=config.reward_epochs, center=0.01, template=config.template)
        result = reward.run(reward.Config(data=given, model=str(self.answers), out=out, **how, **self.shared(out)), self.quiet)
        return not result.interrupted and self.keep("2-reward", {"held-out pairs ranked right": result.after["accuracy"]}, None)

    def ppo(self) -> bool:
        config, out = self.config, self.folder / "3-ppo"
        prompts = config.prompts or config.data
        rewards = {str(self.folder / "2-reward"): 1.0, **({"pep257": 0.0} if self.known else {})}
        how = dict(max_steps=config.ppo_steps, prompts=config.ppo_prompts, lr=config.ppo_lr, kl_coef=config.kl_coef, schedule="constant",
                   temperature=config.temperature, new_tokens=config.new_tokens, columns=config.columns, template=config.template)    # fmt: skip
        result = ppo.run(ppo.Config(data=prompts, model=str(self.answers), out=out, rewards=rewards, **how, **self.shared(out)), self.quiet)
        if result.interrupted:
            return False
        after = result.outcome.after
        found = {"held-out reward before": result.outcome.before["reward"], "held-out reward": after["reward"], "nats from 1-sft, an answer": after["kl"]}
        return self.keep("3-ppo", found, result.written)

    def shared(self, out: Path) -> dict:
        """What all three take; a stage that was begun is gone on with."""
        config, begun = self.config, bool(Checkpoints(out))
        return dict(rank=config.rank, alpha=config.alpha, seed=config.seed, device=config.device, resume=begun, overwrite=not begun)

    def docstrings(self) -> dict:
        """The docstring task as files, training and held-out modules apart."""
        files = {}
        for split in ("train", "valid"):
            files[split] = self.folder / f"docstrings-{split}.jsonl"
            rows = [{"prompt": pair.prompt, "completion": pair.summary} for pair in pairs(split, ("python", "numpy", "torch"))]
            write_text(files[split], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return dict(data=(str(files["train"]),), eval_data=(str(files["valid"]),))

    def keep(self, name: str, found: dict[str, float], adapter: Path | None) -> bool:
        """Write a stage's numbers; on the docstring task with the true share of held-out answers that keep the rules."""
        if self.known and name != "2-reward":
            found |= {"PEP 257 summaries": self.conformance(adapter)}
        self.numbers[name] = found
        write_text(self.file, json.dumps(self.numbers, indent=2) + "\n")
        return True

    @torch.no_grad()
    def conformance(self, adapter: Path | None) -> float:
        config = self.config
        model, tokenizer = folders.decoder(self.answers, device=config.device)
        if adapter is not None:
            peft.load(model, adapter)
        ids = [prompt_ids(prompt.row, tokenizer) for prompt in spread(docstring_prompts("test"), config.judged)]
        texts = generate(model, tokenizer, ids, max_new_tokens=config.new_tokens, temperature=config.temperature, seed=config.seed)
        return fmean(is_pep257(text) for text in texts)


def name_base(adapter: Path, answers: Path) -> None:
    """Let a later stage's adapter say that its base lies in `answers`. After a move it says where that was before: by now there is nothing, or
    another run. A base from outside the run stays what it is."""
    file = adapter / "adapter_config.json"
    fields = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if Path(fields.get("base_model_name_or_path") or "").parts[-2:] == answers.parts[-2:]:
        write_text(file, json.dumps({**fields, "base_model_name_or_path": str(answers)}, indent=2) + "\n")


def write_report(stages: Stages) -> Path:
    config, numbers = stages.config, stages.numbers
    say = lambda name, value: f"{value:.0%}" if name in ("PEP 257 summaries", "held-out pairs ranked right") else f"{value:.3f}"
    rows = [[stage, name, say(name, value)] for stage in STAGES for name, value in numbers[stage].items()]
    what = f"{config.judged} functions of modules that no stage has seen, one answer each, drawn at temperature {config.temperature:g}" if stages.known else "held out"
    use = f"minift chat --model {stages.answers} --adapter {stages.folder / '3-ppo' / 'adapter'}"
    write_text(stages.folder / "report.md", f"""# Three stages: answer, judge, learn from the judgement

{markdown_table(["stage", "what", "value"], rows)}

PEP 257 summaries: {what}. Distance: how far the answers' probabilities have moved from the first stage's model.

![what the reward cost](3-ppo/rewards.png)

- [1-sft](1-sft): a LoRA adapter, merged into [1-sft/merged](1-sft/merged), which the other two start from.
- [2-reward](2-reward): the reward model, and [its rewards of held-out pairs](2-reward/rewards.png).
- [3-ppo](3-ppo): the policy, an adapter on 1-sft/merged, and [the same prompts step by step](3-ppo/samples.md).

Try it: `{use}`
""")
    return stages.folder / "report.md"
