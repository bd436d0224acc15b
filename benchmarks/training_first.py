"""A side of benchmarks/training.py in a process that ends with its first optimizer step.

    python -m benchmarks.training_first SIDE FOLDER CASE PRECISION [--quick]

Exit status 3: the side's library is not installed."""

import os
import sys
from pathlib import Path

from benchmarks.harness import run_side
from benchmarks.training_case import FULL, QUICK
from benchmarks.turns import Absent

ABSENT = 3


class First:
    """A gate behind which there is one step."""

    def open(self) -> None:
        pass

    def tick(self, loss: float, work: float = 1.0) -> None:
        if not loss == loss:
            raise RuntimeError("the first loss is not a number")
        sys.stdout.flush()
        os._exit(0)                                                         # what a library does at its end is not a part of its start


def main() -> None:
    side, folder, case, precision, *rest = sys.argv[1:]
    try:
        run_side("training", First(), side, Path(folder), QUICK if rest else FULL, case, precision)
    except Absent as absent:
        print(absent, file=sys.stderr)
        sys.exit(ABSENT)


if __name__ == "__main__":
    main()
