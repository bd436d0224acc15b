"""Runs test files one after another, each in a child forked from a process that has imported torch already: that saves the two or three
seconds which importing takes, some hundreds of times.

Reads the path of a test file per line, answers with pytest's exit status. Run in a copy of the tree; knows nothing of minift, which
every child imports anew. `python -m tests.mutants.nursery SECONDS`: a child that takes longer is ended, which counts as failing."""

import os
import signal
import sys

import matplotlib.pyplot  # noqa: F401
import numpy  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import sentencepiece  # noqa: F401
import tokenizers  # noqa: F401
import torch  # noqa: F401
import torch.utils.checkpoint  # noqa: F401
import tyro  # noqa: F401


def run(test: str, seconds: int) -> int:
    """pytest's exit status in a child of its own; 1 if it ran out of time or died."""
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
            del sys.modules[name]
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", test]))
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1


if __name__ == "__main__":
    assert not any(name.startswith("minift") for name in sys.modules)
    for line in sys.stdin:
        print(run(line.strip(), int(sys.argv[1])), flush=True)
