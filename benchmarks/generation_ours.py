"""minift's side of benchmarks/generation.py: `generate_ids`, which is what `minift generate` and `minift.generate` run; greedy, no end token.

int8 is `--quantize int8`: the linears of the blocks are rounded, the head is not."""

from pathlib import Path

from benchmarks.generation_case import CASES, Sizes, keep, prompts
from benchmarks.turns import Gate
from minift import folder as folders
from minift.data.batches import Example
from minift.data.pydocs import BASE_PACKAGES, documents
from minift.evaluate.perplexity import perplexity
from minift.generate import generate_ids
from minift.quant.folder import read_model


def write(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, quantize: str | None = None) -> None:
    model, given, new = read_model(folder / CASES[case].shape, quantize=quantize), prompts(sizes, case).tolist(), CASES[case].new(sizes)
    gate.open()
    while True:
        for number, batch in enumerate(given):
            tokens = generate_ids(model, batch, max_new_tokens=new, eos_ids=())
            if quantize is None:                                            # rounded weights may write other tokens
                keep(folder, case, "minift", number, tokens)
            gate.tick(0.0)


def write_int8(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str) -> None:
    write(gate, folder, sizes, case, precision, "int8")


def cost_of_int8(texts: int, packages: tuple[str, ...] = BASE_PACKAGES) -> dict:
    """What rounding costs a trained model: the bundled one's loss on docstrings of modules that it never saw, nats per token."""
    found, held_out = {}, documents("test", packages)[:texts]
    for name, quantize in (("full", None), ("int8", "int8")):
        model, tokenizer = folders.load("base", quantize=quantize)
        rows = [tokenizer.encode(text)[:512] for text in held_out]
        measured = perplexity(model, [Example(ids, [i > 0 for i in range(len(ids))]) for ids in rows])
        found |= {name: measured.nats_per_token, "tokens": measured.tokens}
    return found
