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

import argparse
import importlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import RESULTS
from benchmarks.preference_step_case import FULL, QUICK, Sizes, write_start
from benchmarks.preference_step_report import line, own, write_page
from benchmarks.turns import QUIET, Gate, Side, add, faster, read, turns

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


def compare(spawn, folder: Path, case: str, precision: str, sizes: Sizes, rounds: int, log: Path, chosen: list[str] | None = None) -> dict:
    """One row: every side's medians, and how many times faster than each other side ours is. RuntimeError if a side fails or losses differ."""
    targets = {name: target for name, target in CASES[case].items() if chosen is None or name in chosen}
    sides: dict[str, Side] = {}
    try:
        for name, target in targets.items():
            (folder / name).mkdir(exist_ok=True)
            sides[name] = Side(spawn, run_side, target, folder, sizes, precision, log=log)
            sides[name].loaded()                                                # one after another: loading is not contended
        for side in sides.values():
            side.steps(1, timed=False)
        turns(sides, 1, STEPS)
        row: dict = {"rounds": rounds}
        if case in GIVEN and len(sides) > 1:
            row["apart"] = agreed({name: side.losses[:3] for name, side in sides.items()}, AGREE[precision])
        turns(sides, rounds - 1, STEPS, start=1)
        row["sides"] = {name: side.summary() for name, side in sides.items()}
        row["faster"] = {
            name: {kind: faster(side, sides[own(name)], kind) for kind in ("wall", "cpu")}
            for name, side in sides.items() if own(name) in sides and not name.startswith("minift")
        }  # fmt: skip
        return row
    finally:
        for side in sides.values():
            side.stop()


def run_side(gate: Gate, target: str, folder: Path, sizes: Sizes, precision: str) -> None:
    """In the side's process."""
    module, function = target.split(".")
    getattr(importlib.import_module(f"benchmarks.preference_step_{module}"), function)(gate, folder, sizes, precision)


def agreed(losses: dict[str, list[float]], allowed: float) -> float:
    """How far the sides' losses lie apart. RuntimeError if that is too far."""
    apart = max(max(found) - min(found) for found in zip(*losses.values()))
    if not apart <= allowed:
        raise RuntimeError(f"the losses differ by {apart:.1e}, allowed are {allowed:.0e}: {losses}")
    return apart


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--precision", nargs="+", choices=list(AGREE), default=list(AGREE))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--sides", nargs="+", help="only these, to look at them; nothing is stored")
    options.add_argument("--missing", action="store_true", help="only the rows that are not stored yet")
    options.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options.add_argument("--json", type=Path, help="where the numbers are kept")
    options.add_argument("--markdown", type=Path, default=RESULTS.parents[1] / "docs" / "preference_speed.md", help="the page with the table")
    options.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "preference_step.log", help="what the sides' libraries print is added to it")
    options.add_argument("--report", action="store_true", help="only the page")
    chosen = options.parse_args()
    stored = chosen.json or (None if chosen.quick or chosen.sides else RESULTS / "preference_step.json")
    whole = chosen.report or measure(chosen, stored)
    if stored is not None and stored.exists() and not (chosen.quick and chosen.markdown == options.get_default("markdown")):
        write_page(chosen.markdown, read(stored))
    if not whole:
        sys.exit("some rows could not be measured; see above")


def measure(chosen: argparse.Namespace, stored: Path | None) -> bool:
    """Measure and store row after row; False if one failed."""
    os.environ.update(QUIET)
    spawn, sizes, whole = multiprocessing.get_context("spawn"), QUICK if chosen.quick else FULL, True
    with tempfile.TemporaryDirectory() as temporary:
        writer = spawn.Process(target=write_start, args=(Path(temporary), sizes))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the models to compare could not be written")
        for precision in chosen.precision:
            for case in chosen.case:
                key = f"{case} {precision}"
                if chosen.missing and stored is not None and key in read(stored)["rows"]:
                    continue
                try:
                    row = compare(spawn, Path(temporary), case, precision, sizes, 1 if chosen.quick else chosen.rounds, chosen.log, chosen.sides)
                except RuntimeError as error:
                    print(f"{key}: {error} (more in {chosen.log})", flush=True)
                    whole = False
                    continue
                if stored is not None:
                    add(stored, {"rows": {key: row}}, PACKAGES)
                print(line(key, row), flush=True)
    return whole


if __name__ == "__main__":
    main()
