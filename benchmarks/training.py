"""Fine-tuning beside transformers' Trainer (with peft), trl's SFTTrainer, a bare loop on transformers' models, litgpt and torchtune.

    python -m benchmarks.training [--case full lora ...] [--precision fp32 bf16 auto] [--rounds 5] [--missing]
    python -m benchmarks.training --quick     tiny models, to see that it runs; nothing is stored unless --json names a file
    python -m benchmarks.training --report    only the page and the picture, from the stored numbers

    full, lora               8 x 256 random tokens, 15 million parameters (LLaMA's form, 288 wide, 6 blocks), vocabulary 32,000; LoRA of rank 8 on all linears
    qlora                    the same LoRA on a base in nf4, 320 wide (training_case.py says why)
    full-110m, lora-110m     the same of 110 million (768 wide, 12 blocks)
    full-v4096, lora-v4096   the 15 million shape with a vocabulary of 4,096
    real                     rows of real lengths, each library's ways to batch them; speed is of real tokens, pads do not count
    defaults                 the same rows, full weights, no option set: what a user gets without flags (precision auto)
    start                    lora-v4096 from the start of a process to the end of its first optimizer step

All sides read the same folders and, where batches are given, see the same ones in the same order; fused AdamW at a constant rate, gradients clipped to norm 1, no
dropout. Each is a process of its own (benchmarks/turns.py; `start`: benchmarks/fresh.py). The losses of the first steps are compared first: if they differ by
more than AGREE, no speed is stored. In `real` and `defaults` this holds of the sides that pad the rows as they come; the others make other batches.
litgpt and torchtune are brought by `make peers`; a row says why a side is absent. What libraries print goes to --log.
Writes benchmarks/results/training.json, docs/training_speed.png and the tables in docs/training_speed.md. Proved in tests/benchmarks/test_training.py and
tests/parity/test_training.py."""

import sys
from functools import partial

from benchmarks import fresh, harness
from benchmarks.harness import Bench, Run, agreed, beside, gains, main, ours
from benchmarks.training_case import CASES, FULL, QUICK, write_start
from benchmarks.training_report import line, write_page

TRAINER, TRL, LOOP, OURS = "HF Trainer", "trl", "bare loop", "minift"
LIBRARIES = {TRAINER: "peers.trainer", TRL: "peers.trl", LOOP: "peers.loop", "litgpt": "others.litgpt", "torchtune": "others.torchtune", OURS: "ours.learn"}
SIDES = {
    **{case: {name: LIBRARIES[name] for name in (TRAINER, TRL, LOOP, OURS)} for case in ("qlora", "full-110m", "lora-110m")},
    "real": {
        TRAINER: "peers.trainer", "HF Trainer, by length": "peers.trainer_grouped", TRL: "peers.trl", "trl, by length": "peers.trl_grouped",
        "trl, packed": "peers.trl_bfd", "trl, wrapped": "peers.trl_wrapped", "trl, padding-free": "peers.trl_padding_free",
        "minift, as they come": "ours.padded", "minift, by length": "ours.bucketed", OURS: "ours.packed",
    },
    "defaults": {TRAINER: "peers.trainer_unasked", TRL: "peers.trl_unasked", OURS: "ours.unasked"},
}  # fmt: skip
"""Of each case; LIBRARIES where none are named: litgpt's and torchtune's QLoRA is not measured (torchtune's nf4 is torchao's, another one), and six sides of 110 million
parameters, which all wait in memory, would not fit into 24 GB. In `real`, "minift" has `minift sft`'s default batches."""
SAME_ROWS = (TRAINER, TRL, LOOP, "litgpt", "torchtune", OURS), (TRAINER, TRL, "minift, as they come")
"""The sides whose losses must agree: where batches are given, and where each makes its own."""
AGREE = {"fp32": 1e-4, "bf16": 2e-2}
"""How far two losses of the first steps may lie apart, in nats: float32 rounds in another order; bf16 keeps 8 bits, and 2^-8 of a loss of 10 is 4e-2."""
STEPS = {"full-110m": 1, "lora-110m": 1, "real": 8, "defaults": 8}
"""Timed steps of a turn; 2 otherwise. Those of real rows are not alike."""
PACKAGES = ("transformers", "peft", "trl", "bitsandbytes")


run_side = partial(harness.run_side, "training")


def compare(run: Run, case: str, precision: str) -> dict:
    """One row."""
    if case == "start":
        return start(run, precision)
    check = None if case == "defaults" else lambda losses: apart(losses, case, precision)
    return beside(run, run_side, SIDES.get(case, LIBRARIES), (run.folder, run.sizes, case, precision), STEPS.get(case, 2), check)


def apart(losses: dict[str, list[float]], case: str, precision: str) -> float:
    """How far the first losses lie apart, of the sides that see the same batches. RuntimeError if that is too far."""
    first = {name: losses[name][:3] for name in SAME_ROWS[CASES[case].real] if name in losses}
    if case == "qlora":                                                     # beside a 4-bit base trl keeps LoRA's matrices in bfloat16
        agreed({name: found for name, found in first.items() if name != TRL}, AGREE[precision])
        return agreed(first, AGREE["bf16"])
    return agreed(first, AGREE[precision])


def start(run: Run, precision: str) -> dict:
    """Fresh processes, from their start to the end of the first step."""
    from benchmarks.training_first import ABSENT

    options = ["start", precision, *(["--quick"] if run.sizes == QUICK else [])]
    commands = {name: [sys.executable, "-m", "benchmarks.training_first", side, str(run.folder), *options]
                for name, side in LIBRARIES.items() if run.only is None or name in run.only}  # fmt: skip
    row: dict = {"rounds": run.rounds}
    for name in list(commands):
        try:
            fresh.once(name, commands[name], run.log)
        except RuntimeError as error:
            if ours(name) or f"code {ABSENT}" not in str(error):
                raise
            row.setdefault("absent", {})[name] = f"no {name} in .venv/{name}: `make peers` installs it there"
            del commands[name]
    found = fresh.in_turn(commands, run.rounds, run.log)
    return row | {"sides": {name: side.summary() for name, side in found.items()}, "faster": gains(found, lambda name: [OURS])}


def measured(case: str, precision: str) -> bool:
    """`defaults` chooses its own precision on every side."""
    return (precision == "auto") == (case == "defaults") and (precision == "fp32" or case != "start")


BENCH = Bench(
    "training", __doc__, list(CASES), [*AGREE, "auto"], compare, line, write_page, write_start, FULL, QUICK, PACKAGES, "training_speed",
    rounds=5, measured=measured, by_case=True,
)  # fmt: skip

if __name__ == "__main__":
    main(BENCH)
