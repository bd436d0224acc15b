"""What does each preference loss say of the same log-probabilities, and where does it push them?

    python -m benchmarks.preference_losses                                            prints the tables
    python -m benchmarks.preference_losses --markdown docs/preference_losses.md       and writes the page

One pair in some situations that training meets. Nothing is trained or timed: every number is a loss of minift/losses at its default
options, or its gradient, in float64. The page is written whole from here, and tests/benchmarks/test_preference_losses.py holds it to that."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minift.losses import preference, reference_free
from minift.losses.kto import kto
from minift.recipes.report import markdown_table

SMOOTHING = 0.1
"""Of cdpo and robust, which have no default."""


@dataclass(frozen=True)
class Pair:
    """One pair: log-probabilities summed over the answers' tokens."""

    name: str
    meaning: str
    policy: tuple[float, float]
    """Of the chosen and the rejected answer."""
    ref: tuple[float, float] = (-20.0, -30.0)
    tokens: tuple[int, int] = (10, 15)


PAIRS = [
    Pair("start", "the policy is still the reference", (-20, -30)),
    Pair("apart", "chosen up by 5 nats, rejected down by 5", (-15, -35)),
    Pair("both fell", "the same lead over the reference, but chosen down by 5 and rejected down by 15", (-25, -45)),
    Pair("backwards", "chosen down by 10, rejected up by 10: a hard pair, or one whose label is wrong", (-30, -20)),
    Pair("over-fit", "chosen up by 15, rejected down by 60", (-5, -90)),
    Pair("start, long", "as at the start, but the chosen answer has four times the tokens, each as likely as before", (-80, -30), (-80.0, -30.0), (40, 15)),
]


@dataclass(frozen=True)
class Loss:
    name: str
    call: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    """(policy chosen, policy rejected, reference chosen, reference rejected, tokens of chosen, tokens of rejected), (1,) each -> the loss."""
    formula: str
    paper: str
    assumes: str
    when: str


def against(function: Callable, **options) -> Callable:
    return lambda pc, pr, rc, rr, nc, nr: function(pc, pr, rc, rr, **options)[0]


def alone(function: Callable) -> Callable:
    return lambda pc, pr, rc, rr, nc, nr: function(pc, pr, nc, nr)[0]


def two_answers(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    """KTO's loss of a good answer and a bad one, other answers not having moved (z = 0)."""
    return kto(torch.cat([pc, pr]), torch.cat([rc, rr]), torch.tensor([True, False]), torch.zeros(()))[0]


LOSSES = [
    Loss("dpo", against(preference.dpo), "-log σ(m)", "Rafailov et al. 2023, arXiv:2305.18290",
         "The answers were compared as Bradley and Terry say, by a reward that the policy itself implies, beta g.",
         "In doubt, it comes first. It never says that a lead is enough, and sees no difference between chosen up and rejected down."),
    Loss("cdpo", against(preference.cdpo, label_smoothing=SMOOTHING), "-(1 - e) log σ(m) - e log σ(-m)", "Mitchell 2023, a note on noisy preferences",
         "A share e of the labels is wrong.",
         "Labels come from people or judges that disagree: it stops at m = log((1 - e) / e) and turns back beyond."),
    Loss("robust", against(preference.robust, label_smoothing=SMOOTHING), "(-(1 - e) log σ(m) + e log σ(-m)) / (1 - 2e)", "Chowdhury et al. 2024, arXiv:2403.00409",
         "The same, and labels were flipped at random with a share e that is known.",
         "e was measured. On average over the flips it is DPO's loss on true labels; of one pair it may be below 0, and it never stops."),
    Loss("ipo", lambda pc, pr, rc, rr, nc, nr: preference.ipo(pc, pr, rc, rr, nc, nr)[0], "(g_c / |c| - g_r / |r| - 1 / (2 beta))²", "Azar et al. 2023, arXiv:2310.12036",
         "Nothing of a reward: a lead of 1 / (2 beta) nats a token is wanted, no less and no more.",
         "DPO over-fits few or clear-cut pairs. Its beta is another scale: the lead is per token, so 0.1 asks for 5 nats a token."),
    Loss("hinge", against(preference.hinge), "max(0, 1 - m)", "Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425",
         "Only the order of the two answers matters, once they are apart.",
         "Most pairs are easy: one with m > 1 costs nothing and teaches nothing."),
    Loss("apo-zero", against(preference.apo_zero), "1 - σ(beta g_c) + σ(beta g_r)", "D'Oosterlinck et al. 2024, arXiv:2408.06266",
         "The chosen answer is better than what the model would say.",
         "Chosen answers come from a stronger model or an editor: each answer is pushed by itself, and the chosen one up."),
    Loss("apo-down", against(preference.apo_down), "σ(beta g_c) + 1 - σ(m)", "the same",
         "The chosen answer is worse than what the model would say, the rejected one worse still.",
         "Both answers come from a weaker model."),
    Loss("kto", two_answers, "1 - σ(beta (g - z)) of a good answer, 1 - σ(beta (z - g)) of a bad one", "Ethayarajh et al. 2024, arXiv:2402.01306",
         "Answers were called good or bad one by one; people feel gains and losses from where they stand (z), less and less the larger they are.",
         "There are thumbs up and down and no pairs, or many more of one kind (weights). The row is the sum of both answers' losses at z = 0."),
    Loss("simpo", alone(reference_free.simpo), "-log σ(beta (log p_c / |c| - log p_r / |r|) - gamma)", "Meng et al. 2024, arXiv:2405.14734",
         "The mean log-probability, by which text is generated, is the reward; the lead should be gamma.",
         "Length bias hurts or a reference is too dear. Nothing holds the policy but a low learning rate."),
    Loss("cpo", alone(reference_free.cpo), "-log σ(beta (log p_c - log p_r)) - w log p_c / |c|", "Xu et al. 2024, arXiv:2401.08417",
         "DPO with a reference to which all answers are alike; the chosen answer's own loss holds the policy.",
         "Chosen answers are good enough to imitate and answers are about equally long: sums are compared, so the longer answer starts behind."),
    Loss("orpo", alone(reference_free.orpo), "-w log p_c / |c| - beta log σ(log odds_c - log odds_r)", "Hong et al. 2024, arXiv:2403.07691",
         "Imitation of chosen answers with a light push away from rejected ones.",
         "SFT and preferences in one pass, from a base model."),
]  # fmt: skip


def measure(loss: Loss, pair: Pair) -> tuple[float, float, float]:
    """(loss, its gradient with respect to log p of the chosen answer, and of the rejected one)."""
    one = lambda value: torch.tensor([value], dtype=torch.float64)
    policy = [one(value).requires_grad_() for value in pair.policy]
    value = loss.call(*policy, *map(one, pair.ref), *map(one, pair.tokens))
    pulls = torch.autograd.grad(value, policy)
    return value.item(), pulls[0].item(), pulls[1].item()


def tables() -> tuple[str, str]:
    """(values, gradients): a row for each loss, a column for each situation."""
    found = {loss.name: [measure(loss, pair) for pair in PAIRS] for loss in LOSSES}
    header = ["loss", *(pair.name for pair in PAIRS)]
    shown = lambda pull: f"{pull + 0.0:+.4f}" if abs(pull) >= 5e-5 else "0"
    values = [[name, *(f"{value:.3f}" for value, _, _ in cells)] for name, cells in found.items()]
    pulls = [[name, *(f"{shown(chosen)}, {shown(rejected)}" for _, chosen, rejected in cells)] for name, cells in found.items()]
    return markdown_table(header, values), markdown_table(header, pulls)


def page() -> str:
    values, pulls = tables()
    situations = [[p.name, p.meaning, f"{p.policy[0]:g}, {p.policy[1]:g}", f"{p.ref[0]:g}, {p.ref[1]:g}", f"{p.tokens[0]}, {p.tokens[1]}"] for p in PAIRS]
    met = markdown_table(["situation", "meaning", "policy: chosen, rejected", "reference", "tokens"], situations)
    told = "\n".join(f"- **{loss.name}**: `{loss.formula}` ({loss.paper}). Assumes: {loss.assumes} Take it when: {loss.when}" for loss in LOSSES)
    return TEXT.format(situations=met, values=values, pulls=pulls, losses=told, smoothing=SMOOTHING)


TEXT = """# Preference losses over the same log-probabilities

`minift dpo --loss NAME` learns from pairs (KTO: from single answers) with one of eleven losses. All of them see the same few numbers: log p of the chosen
and of the rejected answer, under the policy and, for some, under the reference. Here is what each makes of them.

    g_c = log p(chosen) - log p_ref(chosen)      g_r = log p(rejected) - log p_ref(rejected)      m = beta (g_c - g_r)
    |c|, |r|: tokens of the answers      e: label_smoothing      w: sft_weight      σ: sigmoid

Log p is a sum over the answer's tokens; where a mean is taken, the formula divides by the tokens. Options are the defaults (beta 0.1; SimPO's beta
2 and gamma 1; w 1), e is {smoothing}.

{losses}

## Six situations

{situations}

**The loss.** Losses of one row compare; those of different rows do not: each has its own scale and zero.

{values}

**The gradient** with respect to log p(chosen), log p(rejected). Training goes the other way: minus means that this answer is made likelier, plus that it
is made less likely. 0 is anything below 0.00005.

{pulls}

`python -m benchmarks.preference_losses --markdown docs/preference_losses.md` writes this page; nothing in the tables depends on the machine.

- *DPO does not see both answers fall.* "apart" and "both fell" are one column to it, and to cDPO, robust and hinge, which see only m. APO-zero and
  KTO see each answer by itself: where both fell they lose more, lift the chosen answer as hard as before, and press the rejected one less.
- *KTO is APO-zero here*, because z is 0 and the pair has one good and one bad answer. In training z grows with the policy's distance from its reference, and an answer
  must have gained more than z to count as better.
- *Who lets go?* Over-fit, DPO hardly pushes and hinge not at all (it stops at m = 1, which is "apart"). cDPO and IPO push back: the lead is past what they want.
  Robust goes on, below 0. APO-zero lets the rejected answer go and still lifts the chosen one.
- *A wrong label* ("backwards") is pushed hardest of all by DPO, cDPO and robust, and hardest by robust, which trusts its e to make up for it on average;
  by hinge as hard as any pair that is not apart; by APO-zero and KTO less than at the start, for they give up on answers that are far off.
- *APO-down leaves the chosen answer alone at the start*, then lets it fall with the rejected one ("apart").
- *A reference keeps length out of the loss, and so does a mean.* Only CPO's changes when the chosen answer is four times as long and no less likely per token:
  it compares sums, and the longer answer is behind by its length. Where means are taken, the push is shared by more tokens: IPO, SimPO and ORPO push the longer
  answer's log p a quarter as hard.
- *ORPO is mostly imitation*: nearly all of its push on the chosen answer is w / |c|, SFT's own.
- *IPO's gradients are the largest until its target is near* ("over-fit"): a learning rate that suits another loss does not suit it.

Conventions: DPO and its kin take sums, IPO means, as its authors do (tests/losses/test_preference.py); the chosen answer's own loss in CPO and ORPO is a
mean over its tokens, then over pairs, where trl takes all tokens of a batch, and for ORPO the prompt's too (tests/parity/test_trl_preference.py). trl's
`sigmoid` takes a label_smoothing and ignores it; here it is an option of cdpo and robust and refused by the others.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the page there")
    file = parser.parse_args().markdown
    print("\n\n".join(tables()))
    if file:
        file.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
