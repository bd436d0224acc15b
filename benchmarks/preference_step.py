"""One step of learning from preferences or rewards: minift beside trl, and beside a bare loop on transformers' models.

    python -m benchmarks.preference_step [--case dpo reward grpo rloo ppo] [--precision fp32 bf16] [--rounds 3] [--missing]
    python -m benchmarks.preference_step --quick     a tiny model, to see that it runs; nothing is stored unless --json names a file
    python -m benchmarks.preference_step --report    only the page, from the stored numbers

    dpo      8 pairs, 128 + 128 tokens; the reference in every step, or its log-probabilities computed once before training, on both sides
    reward   the same pairs, a reward model
    grpo     2 prompts x 8 answers, 64 + 64 tokens, no KL term, no reference
    rloo     8 prompts x 2 answers, KL to a reference
    ppo      16 prompts, policy, values of their own, reference and reward model, 4 passes over one minibatch

A model of 15 million parameters (LLaMA's form, 288 wide, 6 blocks, vocabulary 32,000), full weights, fused AdamW, no dropout. All sides
read the same folders, see the same rows in the same order, and each is a process of its own (benchmarks/turns.py). Where answers are given,
the losses of the first steps are compared first: if they differ by more than AGREE, no speed is stored.
The first step is not timed. A ratio is of two sides in one dtype, always.
trl's PPO lives in .venv/trl-ppo, which `make parity` makes: it left trl after 1.0.0. What libraries print goes to --log.
Writes benchmarks/results/preference_step.json and the table in docs/preference_speed.md. Proved in tests/benchmarks/test_preference_step.py and
tests/parity/test_preference_step.py."""

from functools import partial

from benchmarks import harness
from benchmarks.harness import Bench, Run, agreed, beside, main
from benchmarks.preference_step_case import FULL, QUICK, write_start
from benchmarks.preference_step_report import line, own, write_page

CASES = {
    "dpo": {"trl": "peers.trl_dpo", "trl, once": "peers.trl_dpo_once", "loop": "peers.loop_dpo", "minift": "ours.learn_dpo", "minift, once": "ours.learn_dpo_once"},
    "reward": {"trl": "peers.trl_reward", "loop": "peers.loop_reward", "minift": "ours.learn_reward"},
    "grpo": {"trl": "peers.trl_grpo", "minift": "ours.learn_grpo"},
    "rloo": {"trl": "peers.trl_rloo", "minift": "ours.learn_rloo"},
    "ppo": {"trl": "peers.trl_ppo", "minift": "ours.learn_ppo"},
}
"""The sides of each case: functions of preference_step_peers.py and preference_step_ours.py, by name, so that a side's process imports its own
libraries only. once: the reference's log-probabilities are computed before training."""
GIVEN = ("dpo", "reward")
"""Here every side learns from the same answers, so the losses must be the same."""
AGREE = {"fp32": 1e-4, "bf16": 2e-2}
"""How far two losses of the first steps may lie apart, in nats."""
STEPS = 2
"""Timed steps of a turn."""
PACKAGES = ("transformers", "trl")


run_side = partial(harness.run_side, "preference_step")


def compare(run: Run, case: str, precision: str) -> dict:
    """One row."""
    first = (lambda losses: agreed({name: found[:3] for name, found in losses.items()}, AGREE[precision])) if case in GIVEN else None
    return beside(run, run_side, CASES[case], (run.folder, run.sizes, precision), STEPS, first, lambda name: [own(name)])


BENCH = Bench("preference_step", __doc__, list(CASES), list(AGREE), compare, line, write_page, write_start, FULL, QUICK, PACKAGES, "preference_speed")

if __name__ == "__main__":
    main(BENCH)
