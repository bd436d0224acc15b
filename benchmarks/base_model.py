"""How good is the bundled base model? Bits per byte of docstrings from modules it was never shown, beside a compressor.

    python -m benchmarks.base_model [--run runs/base]

    model            each held-out module's docstrings in source order, windows of 512 tokens that move on by 256; end tokens not scored
    xz -9            the held-out text compressed alone
    xz -9 + train    what it adds to the compressed training text: how much could be had by remembering

Writes benchmarks/results/base_model.json; with --run also docs/base_model.png and docs/base_model_metrics.jsonl from that run."""

import argparse
import lzma
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from benchmarks.measure import RESULTS, store

from minift import folder as folders
from minift.data import pydocs
from minift.evaluate.perplexity import text_bits_per_byte
from minift.train.log import read_metrics

JUDGED = ("python", "numpy", "torch")
"""Whose held-out modules count; the other packages' are listed beside them."""
DOCS = RESULTS.parents[1] / "docs"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--run", type=Path)
    run = options.parse_args().run
    train, test = pydocs.documents("train"), pydocs.documents("test", JUDGED)
    text, before = "\n\n".join(test).encode(), "\n\n".join(train).encode()
    xz = lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    model, tokenizer = folders.load("base")
    values = {"train_bytes": len(before), "held_out_bytes": len(text), "held_out_modules": len(test), "parameters": sum(p.numel() for p in model.parameters())}
    values["xz_alone"] = 8 * xz(text) / len(text)
    values["xz_given_train"] = 8 * (xz(before + b"\n\n" + text) - xz(before)) / len(text)
    found = text_bits_per_byte(model, tokenizer, test, context=512, stride=256)
    values |= {"model": found.bits_per_byte, "nats_per_token": found.nats_per_token, "tokens": found.tokens}
    values["per_package"] = {}
    for package in pydocs.BASE_PACKAGES:
        part = pydocs.documents("test", (package,))
        joined = "\n\n".join(part).encode()
        bits = text_bits_per_byte(model, tokenizer, part, context=512, stride=256).bits_per_byte
        values["per_package"][package] = {"bytes": len(joined), "model": bits, "xz_alone": 8 * xz(joined) / len(joined)}
    for name, value in values.items():
        print(name, value)
    store("base_model", values)
    if run:
        draw(run, values)


def draw(run: Path, values: dict) -> None:
    metrics = read_metrics(run)
    shutil.copy(run / "metrics.jsonl", DOCS / "base_model_metrics.jsonl")
    losses = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    held_out = [(m["step"], m["eval_bits_per_byte"]) for m in metrics if "eval_bits_per_byte" in m]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    left.plot(*zip(*losses), color="#9db8d2", linewidth=0.8)
    left.set(title="Training loss", xlabel="optimizer step", ylabel="nats per token", ylim=(2, 8))
    right.plot(*zip(*held_out), "o-", color="#c4472b", label="model, validation modules")
    for name, level, style in (("xz -9 alone", values["xz_alone"], ":"), ("xz -9 given the training text", values["xz_given_train"], "--")):
        right.axhline(level, color="#555555", linestyle=style, linewidth=1.2, label=f"{name}, held-out modules: {level:.2f}")
    right.plot([held_out[-1][0]], [values["model"]], "*", color="#2f5f8f", markersize=13, label=f"model, held-out modules: {values['model']:.2f}")
    right.set(title="Does it beat a compressor on unseen modules?", xlabel="optimizer step", ylabel="bits per byte")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "base_model.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
