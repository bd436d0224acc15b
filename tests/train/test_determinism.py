"""docs/determinism.md: the same seed, machine and number of threads give the same bits, in another process too."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

ROWS = [{"prompt": f"a {colour} {thing} is", "completion": f" {colour}."} for colour in ("red", "blue", "green", "grey") for thing in ("sun", "cat", "tea", "sea")]


def test_two_processes_give_the_same_bits(small_model, tmp_path):
    """Side by side, with hashes of texts that differ."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    started = []
    for name in ("1", "2"):
        command = ("sft", "--model", small_model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / name, "--held-out", 0.3, "--samples", 2, "--batch-tokens", 60,
                   "--max-steps", 6, "--accumulate", 2, "--lora-dropout", 0.2, "--optimizer", "adamw8bit", "--lr", 1e-2, "--precision", "fp32")    # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": name, "MPLBACKEND": "Agg"}
        started.append(subprocess.Popen([sys.executable, "-m", "minift", *map(str, command)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    for process in started:
        complaint = process.communicate()[1]
        assert process.returncode == 0, complaint
    one, other = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("1", "2"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one) and any(tensor.any() for tensor in one.values())
    numbers = lambda line: {name: value for name, value in line.items() if not name.endswith("_per_s")}
    lines = [[numbers(json.loads(line)) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("1", "2")]
    assert lines[0] == lines[1] and len(lines[0]) >= 7
    assert (tmp_path / "1/samples.md").read_text() == (tmp_path / "2/samples.md").read_text()
