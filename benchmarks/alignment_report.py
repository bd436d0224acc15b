"""docs/alignment.md and docs/alignment.png from the stored numbers of benchmarks/alignment.py."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minift.recipes.report import markdown_table

WANTED_KL = 5
DOCS = Path(__file__).parents[1] / "docs"
COLORS = {"dpo": "#7a4fa3", "apo-zero": "#d08a2e", "ppo": "#2f5f8f", "grpo": "#2f7d4f", "hacked": "#c4472b"}
WORDS = {"dpo": "DPO, from pairs", "apo-zero": "APO-zero, from pairs", "ppo": "PPO, against the reward model", "grpo": "GRPO, against the rule", "hacked": "GRPO once more, no price for distance"}


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """"0.96 ± 0.01" over the seeds; the mean alone if there is one."""
    middle = format(fmean(values), form)
    return middle if len(values) == 1 else f"{middle} ± {format(stdev(values), form)}"


def rows(found: dict) -> list[list[str]]:
    start = found["sft"]
    table = [["sft, the start", f"{start['pep257']:.1%}", "0", f"{start['rouge_l']:.3f}", "", f"{start['different']:.0%}", f"{start['tokens']:.1f}", "", ""]]
    for n, own in found["best_of"].items():
        change = f"{own['rouge_l'] / start['rouge_l'] - 1:+.0%}"
        table.append([f"best of {n} by the reward model", f"{own['pep257']:.1%}", f"≤ {own['kl_at_most']:.2f}", f"{own['rouge_l']:.3f}", change, f"{own['different']:.0%}", "", "", ""])
    for name in WORDS:
        runs = [run for run in found["runs"] if run["method"] == name]
        if runs:
            each = lambda key: [run[key] for run in runs]
            change = f"{fmean(each('rouge_l')) / start['rouge_l'] - 1:+.0%}"
            table.append([WORDS[name], mean_and_spread(each("pep257"), ".1%"), mean_and_spread(each("kl"), ".2f"), mean_and_spread(each("rouge_l"), ".3f"), change,
                          mean_and_spread(each("different"), ".0%"), mean_and_spread(each("tokens"), ".1f"), mean_and_spread(each("minutes"), ".1f"), str(len(runs))])    # fmt: skip
    return table


def write_page(found: dict) -> None:
    draw(found)
    machine, reward = found["machine"], found["reward"]
    header = ["", "PEP 257", "KL, nats per answer", "ROUGE-L", "against sft", "different", "tokens", "minutes", "seeds"]
    last = {run["method"]: run for run in found["runs"]}
    samples = [[start, *(last[name]["examples"][i] for name in WORDS if name in last)] for i, start in enumerate(found["sft"]["examples"])]
    far = sorted({run["method"] for run in found["runs"] if run["kl"] > WANTED_KL and run["method"] != "hacked"})
    beyond = f"Wanted were at least 95 % at under {WANTED_KL} nats; farther off than that went, in at least one seed: {', '.join(far)}." if far else f"Wanted were at least 95 % at under {WANTED_KL} nats."
    settings = "\n".join(f"    {name:<8}{', '.join(f'{key} {value}' for key, value in own.items())}" for name, own in found["settings"].items() if name == "reward" or name in last)
    (DOCS / "alignment.md").write_text(f"""# Does it work? Reward models, DPO, PPO and GRPO on a reward we know

The task: summaries of Python functions that keep PEP 257's five rules, from the bundled model after supervised fine-tuning (quickstart's).
The rule is exact, so whatever a method claims can be checked. Numbers: means over the seeds of the last column (± standard deviation), 400 functions of modules that nothing was
trained on, one answer each, drawn at temperature {found["temperature"]}. Machine: {machine["cpu"]}, {machine["threads"]} threads, torch {machine["torch"]}, commit {machine["commit"]};
made by `python -m benchmarks.alignment`, which says how each column is measured.

{markdown_table(header, rows(found))}

{beyond} The minutes are of a busy machine. The methods' settings were chosen while looking at these numbers, one or
two tries each, so read them as what can be reached, not as a race between methods.

The reward model, from {found["pairs"]["pairs"]} pairs of the sft model's own answers in {reward["minutes"]:.1f} minutes, ranks {reward["accuracy"]:.1%} of {found["pairs"]["held_out"]} held-out pairs
right. On single answers to functions of the test modules its rank correlation with the rule is {reward["rank_correlation"]:.2f} (Spearman; the rule has two values, so about
0.87 is the most there is), and an answer that keeps the rules has the higher reward in {reward["auc"]:.1%} of comparisons.

![what each method pays for conformance](alignment.png)

## What the picture says

Every run starts at the left, at the sft model (the star). Dots are the models in the end, judged on the 400 test functions; a line is a run under way, judged on 64
others at each of its evaluations, so it neither begins nor ends exactly where its dot says. DPO's runs answer nothing while they learn. KL is what a method paid for its reward: how far its answers' probabilities moved. Best of n is the
yardstick: it trains nothing, and no method can get the same reward for much less; but it draws n answers for each one it gives.

## A hacked reward

The last row is the row above it once more, without the price for distance. It keeps the rules, and pays for it without measure: compare the distances,
and the columns "different" and "tokens"; the samples are below. The rule was never all that we wanted of a summary; it was a proxy, and
a policy that is free to move finds the shortest way to it. The KL term is what speaks for everything that the reward does not mention.

{markdown_table(["sft", *(name for name in WORDS if name in last)], samples)}

Settings:

{settings}
""", encoding="utf-8")


def draw(found: dict) -> None:
    figure, (axes, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    start = found["sft"]
    for run in found["runs"]:
        name, first = run["method"], run["seed"] == min(other["seed"] for other in found["runs"] if other["method"] == run["method"])
        label = WORDS[name] if first else None
        if run["path"]:
            axes.plot([kl for _, kl, _ in run["path"]], [reward for *_, reward in run["path"]], "-", color=COLORS[name], alpha=0.45, linewidth=1.2)
        for panel, value in ((axes, run["pep257"]), (right, run["rouge_l"])):
            panel.plot(run["kl"], value, "o", color=COLORS[name], markersize=6, label=label)
    best = list(found["best_of"].items())
    for panel, key in ((axes, "pep257"), (right, "rouge_l")):
        panel.plot([own["kl_at_most"] for _, own in best], [own[key] for _, own in best], "s--", color="#666666", markersize=4, linewidth=1, label="best of n (KL: at most)")
        for n, own in best:
            panel.annotate(n, (own["kl_at_most"], own[key]), xytext=(4, -11), textcoords="offset points", fontsize=8, color="#666666")
        panel.plot(0, start[key], "k*", markersize=9, label="sft")
        panel.set(xlabel="distance from sft, nats per answer")
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    axes.set(title="What does conformance cost?", ylabel="share of answers that keep PEP 257")
    right.set(title="Are they still summaries of the function?", ylabel="ROUGE-L with the true summary", ylim=(0, 1.2 * max(run["rouge_l"] for run in found["runs"])))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(DOCS / "alignment.png", dpi=130)
    plt.close(figure)
