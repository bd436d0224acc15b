"""What does it cost to round the bundled model to 4 or 8 bits, and what do GPTQ and AWQ get back?

    python -m benchmarks.int4

Held-out docstrings (modules that neither pre-training nor calibration saw), windows cut once. Every row scores the same
windows; what is compared is the loss per window with that of the full weights, and the interval is over windows: 1.96 standard errors of
the mean of paired differences. GPTQ and AWQ calibrate on training modules' documents, three draws of 64 windows each: their choice is
the only chance in it, and its spread is told. Accuracy only: no speed is measured. Minutes on 2 cores; docs/int4.md is written from it."""

import copy
import math
import random
import statistics
from pathlib import Path

import torch
from benchmarks.measure import machine, store

from minift import folder as folders
from minift.data import pydocs
from minift.evaluate.forgetting import text_windows
from minift.evaluate.perplexity import perplexity, scored_bytes
from minift.models.transformer import Transformer
from minift.quant import awq, gptq, nbytes, quantize_model
from minift.quant.linear import QuantizedLinear
from minift.recipes.report import markdown_table

CONTEXT, MEASURED, CALIBRATION, DRAWS = 256, 64, 64, 3
GROUP = 128
"""Of GPTQ and AWQ."""
PAGE = Path(__file__).parents[1] / "docs" / "int4.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
NEAREST = [("int8", "int8", None), ("nf4", "nf4", 64), ("fp4", "fp4", 64)] + [(f"int4, groups of {g}", "int4", g) for g in (32, 64, 128)]


def main() -> None:
    model, tokenizer = folders.load("base")
    windows = text_windows(tokenizer, pydocs.documents("test"), CONTEXT, MEASURED)
    bytes_per_token = scored_bytes(tokenizer, windows) / (len(windows) * (CONTEXT - 1))

    def losses(model: Transformer) -> list[float]:
        """Nats per token of each window, all of one length."""
        return [perplexity(model, [window]).nats_per_token for window in windows]

    full = losses(model)
    rows = [row("full weights", model, [full], full, bytes_per_token)]
    for name, scheme, size in NEAREST:
        rounded = copy.deepcopy(model)
        quantize_model(rounded, scheme, size)
        rows.append(row(name, rounded, [losses(rounded)], full, bytes_per_token))
    training = pydocs.documents("train")
    for name, method in (("GPTQ", gptq), ("AWQ", awq)):
        found = []
        for draw in range(DRAWS):
            texts = random.Random(draw).sample(training, len(training) // DRAWS)
            ids = torch.tensor([window.ids for window in text_windows(tokenizer, texts, CONTEXT, CALIBRATION)])
            rounded = copy.deepcopy(model)
            method.quantize_model(rounded, ids.split(8), GROUP)
            found.append(losses(rounded))
        rows.append(row(f"int4, groups of {GROUP}, {name}", rounded, found, full, bytes_per_token))
    store("int4", {"context": CONTEXT, "windows": len(windows), "calibration": CALIBRATION, "draws": DRAWS, "group": GROUP, "rows": rows})
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    PAGE.write_text(before + MARKS[0] + "\n" + table(rows, len(windows)) + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


def row(name: str, model: Transformer, draws: list[list[float]], full: list[float], bytes_per_token: float) -> dict:
    """draws: for each choice of calibration texts, the loss of each window."""
    linears = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    numbers = sum(m.out_features * m.in_features for m in linears)
    mean = [sum(values) / len(draws) for values in zip(*draws)]                                   # per window, over the draws
    apart = [rounded - whole for rounded, whole in zip(mean, full)]
    added = [sum(draw) / len(draw) - sum(full) / len(full) for draw in draws]
    found = {
        "name": name,
        "bits": 8 * sum(nbytes(m.q) for m in linears) / numbers if linears else 32.0,
        "nats": sum(mean) / len(mean),
        "bits_per_byte": sum(mean) / len(mean) / math.log(2) / bytes_per_token,
        "added": sum(apart) / len(apart),
        "interval": 1.96 * statistics.stdev(apart) / len(apart) ** 0.5,
        "added_by_draw": added,
    }
    print(f"{name:<28}{found['bits']:>8.3f} bits  {found['nats']:.4f} nats  +{found['added']:.4f} ± {found['interval']:.4f}   "
          + " ".join(f"{a:.4f}" for a in added), flush=True)    # fmt: skip
    return found


def table(rows: list[dict], windows: int) -> str:
    shown = [[
        r["name"], f"{r['bits']:.3f}", f"{r['nats']:.4f}", f"{r['bits_per_byte']:.4f}",
        f"{r['added']:+.4f} ± {r['interval']:.4f}" if r["bits"] < 32 else "0",
        f"{100 * (math.exp(r['added']) - 1):+.2f} %" if r["bits"] < 32 else "0",
        f"{min(r['added_by_draw']):+.4f} to {max(r['added_by_draw']):+.4f}" if len(r["added_by_draw"]) > 1 else "",
    ] for r in rows]    # fmt: skip
    header = ["weights", "bits per weight", "nats per token", "bits per byte", "nats added", "perplexity added", "three calibration draws"]
    m = machine()
    made = f"{m['cpu']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''}, torch {m['torch']}, Python {m['python']}, commit {m['commit']}"
    return markdown_table(header, shown) + f"\n\n{windows} windows of {CONTEXT} tokens; {made}.\n"


if __name__ == "__main__":
    main()
