"""What a reward model's run leaves for people: the rewards of chosen against rejected answers as a picture, and the pairs it is surest of.

    rewards.png    two histograms, before and after: the more they part, the better pairs are told apart; their middle is nobody's business
                   but the centring's
    samples.md     held-out pairs ranked right and wrong, those with the largest difference first: the wrong ones are worth reading, some
                   are labels that people would not repeat

Proved in tests/recipes/test_reward.py."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minift.data.branches import Tree
from minift.files import write_text
from minift.recipes.report import HELD_OUT, INK, markdown_table, pyplot
from minift.tokenizer import Tokenizer

LONG = 400
"""Characters of a text in samples.md."""


def draw_rewards(folder: Path, before: Tensor, after: Tensor, accuracy: tuple[float, float]) -> Path:
    """before, after (pairs, 2): rewards of the held-out chosen and rejected answers -> folder/rewards.png."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained", sharey=True)
    for axes, scores, name, share in zip(panels, (before, after), ("before", "after"), accuracy):
        low, high = scores.min().item(), scores.max().item()
        edges = torch.linspace(low, high if high > low else low + 1.0, min(40, 10 + len(scores) // 4)).tolist()
        for side, label, colour in ((0, "chosen", "#2f5f8f"), (1, "rejected", HELD_OUT)):
            axes.hist(scores[:, side].tolist(), bins=edges, color=colour, alpha=0.55, label=label)
            axes.axvline(scores[:, side].mean().item(), color=colour, linewidth=1.2)
        axes.axvline(0.0, color=INK, linewidth=0.8, linestyle=":")
        axes.set(title=f"{name} training: {share:.0%} of pairs ranked right", xlabel="reward")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out answers")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(folder / "rewards.png", dpi=130)
    plt.close(figure)
    return folder / "rewards.png"


def write_disagreements(folder: Path, trees: Sequence[Tree], scores: Tensor, tokenizer: Tokenizer, count: int) -> None:
    """samples.md: `count` pairs ranked wrong and as many ranked right, the clearest first."""
    margins = scores[:, 0] - scores[:, 1]                                                               # (pairs,)
    order = margins.argsort().tolist()
    wrong = [i for i in order if margins[i] <= 0][:count]
    right = [i for i in reversed(order) if margins[i] > 0][:count]
    said = lambda ids: shortened(tokenizer.decode(ids))

    def rows(chosen: list[int]) -> list[list[str]]:
        return [
            [said(trees[i].prompt), said(trees[i].answers[0]), f"{scores[i, 0]:.2f}", said(trees[i].answers[1]), f"{scores[i, 1]:.2f}"]
            for i in chosen
        ]

    header = ["prompt", "chosen", "reward", "rejected", "reward"]
    part = lambda title, some: f"## {title}\n\n{markdown_table(header, rows(some)) if some else 'None.'}\n"
    text = [f"# Held-out pairs\n\n{int((margins > 0).sum())} of {len(margins)} are ranked as people ranked them.\n",
            part("Ranked the other way, the clearest first", wrong), part("Ranked as people did, the clearest first", right)]
    write_text(folder / "samples.md", "\n".join(text))


def shortened(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG // 2] + " ... " + text[-LONG // 2 :]
