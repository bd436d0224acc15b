"""benchmarks/generation.py: what we write is what transformers' `generate` writes, in each of its ways."""

import json

import pytest

from benchmarks import harness
from benchmarks.generation_case import BATCHES, QUICK, same_tokens, write_start


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_start(folder, QUICK)
    return folder


class Ended(Exception):
    pass


class Every:
    """A gate that ends a side after every batch was written behind once."""

    def open(self):
        self.count = 0

    def tick(self, loss, work=1.0):
        self.count += 1
        if self.count == BATCHES:
            raise Ended


def write(side, folder, case):
    with pytest.raises(Ended):
        harness.run_side("generation", Every(), side, folder, QUICK, case, "fp32")


@pytest.mark.parametrize("case", ["15m-b1", "15m-b8", "15m-b8-first"])
def test_all_write_the_same_tokens(start, case):
    for side in ("peers.generate", "peers.static", "ours.write"):
        write(side, start, case)
    new = 1 if case.endswith("first") else QUICK.new
    assert same_tokens(start, case, new) == 2 * BATCHES * new * (1 if "b1" in case else 8)


def test_rounded_weights_are_not_among_what_is_compared(start):
    write("ours.write", start, "110m-b1")
    write("ours.write_int8", start, "110m-b1")
    assert [file.name for file in sorted((start / "written" / "110m-b1").iterdir())] == [f"{batch}-minift.json" for batch in range(BATCHES)]
    assert len(json.loads((start / "written" / "110m-b1" / "0-minift.json").read_text())[0]) == QUICK.new
