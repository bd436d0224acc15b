"""Generation beside transformers' `generate`, and what it takes to begin: imports and help texts.

    python -m benchmarks.generation [--case 15m-b1 ...] [--rounds 5] [--missing]
    python -m benchmarks.generation --quick      tiny models, to see that it runs; nothing is stored unless --json names a file
    python -m benchmarks.generation --report     only the page and the picture, from the stored numbers

    15m-b1, 15m-b8, 110m-b1, 110m-b8     128 tokens behind prompts of 128, greedy, float32, 1 row or 8; LLaMA's form, vocabulary 32,000
    ...-first                            only the first of them: the time to the first token
    startup                              fresh processes: imports, `minift --help`, `minift sft --help`
    int8-loss                            what `--quantize int8`, a side of its own above, costs the bundled model

All sides read the same folders and prompts, each is a process of its own, and they take turns (benchmarks/turns.py). The tokens that were written are compared
before a speed is kept, and must be equal; int8 rounds weights, so its tokens may differ. What libraries print goes to --log.
Writes benchmarks/results/generation.json, docs/generation_speed.png and the tables in docs/generation_speed.md. Proved in tests/benchmarks/test_generation.py
and tests/parity/test_generation_speed.py."""

import sys
from functools import partial

from benchmarks import fresh, harness
from benchmarks.generation_case import CASES, FULL, QUICK, same_tokens, write_start
from benchmarks.generation_report import line, write_page
from benchmarks.harness import Bench, Run, beside, gains, main

HF, OURS, INT8 = "HF generate", "minift", "minift, int8"
SIDES = {HF: "peers.generate", "HF, static cache": "peers.static", "HF, compiled": "peers.compiled", OURS: "ours.write", INT8: "ours.write_int8"}
STEPS = {"15m-b1": 2, "15m-b1-first": 12, "15m-b8-first": 6, "110m-b1-first": 6, "110m-b8-first": 2}
"""Timed calls of a turn; 1 otherwise."""
TEXTS = 40
"""int8-loss: documents that are read."""
STARTUP = {
    "torch": "import torch",
    "transformers, peft, trl": "import transformers, peft, trl",
    "their trainers": "from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer; from peft import get_peft_model; from trl import SFTTrainer",
    "minift": "import minift",
    "minift, to generate": "from minift import generate, load",
    "minift, to train": "import minift.recipes.sft",
    "minift --help": "import sys; from minift.cli import main; sys.exit(main(['--help']))",
    "minift sft --help": "import sys; from minift.cli import main; sys.exit(main(['sft', '--help']))",
}
"""transformers and trl import most of their modules when they are first used, so what training takes is a line of its own, as minift's is."""
PACKAGES = ("transformers", "peft", "trl")


run_side = partial(harness.run_side, "generation")


def compare(run: Run, case: str, precision: str) -> dict:
    """One row."""
    if case == "startup":
        return startup(run)
    if case == "int8-loss":
        from benchmarks.generation_ours import cost_of_int8

        return cost_of_int8(2, ("python",)) if run.sizes == QUICK else cost_of_int8(TEXTS)
    check = lambda losses: same_tokens(run.folder, case, CASES[case].new(run.sizes))
    row = beside(run, run_side, SIDES, (run.folder, run.sizes, case, precision), STEPS.get(case, 1), check, lambda name: [OURS, INT8])
    return {"tokens": CASES[case].rows * CASES[case].new(run.sizes), "same_tokens": row.pop("apart", 0), **row}


def startup(run: Run) -> dict:
    commands = {name: [sys.executable, "-W", "ignore", "-c", code] for name, code in STARTUP.items() if run.only is None or name in run.only}
    found = fresh.in_turn(commands, run.rounds, run.log)
    versus = {"transformers, peft, trl": ["minift", "minift, to train"], "their trainers": ["minift, to train"]}
    return {"rounds": run.rounds, "sides": {name: side.summary() for name, side in found.items()}, "faster": gains(found, lambda name: versus.get(name, []))}


BENCH = Bench(
    "generation", __doc__, [*CASES, "startup", "int8-loss"], ["fp32"], compare, line, write_page, write_start, FULL, QUICK, PACKAGES, "generation_speed",
    rounds=5,
)  # fmt: skip

if __name__ == "__main__":
    main(BENCH)
