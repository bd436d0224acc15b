"""A run that is killed with SIGKILL, at five random moments here and at fifty with `python -m tests.train.kills --kills 50`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_that_is_killed_again_and_again_loses_few_steps_and_ends_bit_equal():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-m", "tests.train.kills", "--kills", "5", "--seed", "3"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "5 kills (" in done.stdout and "each run ended bit-equal" in done.stdout, done.stdout + done.stderr
