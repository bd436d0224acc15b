"""minift's side of benchmarks/generation.py: `generate_ids`, which is what `minift generate` and `minift.generate` run; greedy, no end token.

int8 is `--quantize int8`: the linears of the blocks are rounded, and where a text is written what they read and the head, too (minift/quant/whole_numbers.py)."""

from pathlib import Path
from unittest import mock

import torch

from benchmarks.generation_case import CASES, Sizes, keep, prompts
from benchmarks.turns import Gate
from minift import folder as folders
from minift.data.pydocs import BASE_PACKAGES, documents
from minift.generate import LONG, generate_ids, head_for
from minift.models.linear import without_gradients
from minift.quant import whole_numbers
from minift.quant.folder import read_model
from minift.quant.linear import token_by_token
from minift.train import memory


def write(gate: Gate, folder: Path, sizes: Sizes, case: str, precision: str, quantize: str | None = None) -> None:
    model, given, new = read_model(folder / CASES[case].shape, quantize=quantize), prompts(sizes, case).tolist(), CASES[case].new(sizes)
    memory.keep()                                                           # as `minift generate` does
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
    """What rounding costs a trained model: the bundled one's loss on docstrings of modules that it never saw, nats per token, read in the way in which it writes.
    "both": with 8 bits for what every linear reads, as those of a larger model have it; the bundled one's, but for the head, are too small to gain by that."""
    found, held_out = {}, documents("test", packages)[:texts]
    for name, quantize, large in (("full", None, whole_numbers.LARGE), ("int8", "int8", whole_numbers.LARGE), ("both", "int8", 0)):
        model, tokenizer = folders.load("base", quantize=quantize)
        with mock.patch.object(whole_numbers, "LARGE", large):
            each = nats_token_by_token(model, [tokenizer.encode(text)[:512] for text in held_out])
        found |= {name: sum(each) / len(each), "tokens": len(each)}
    return found


def nats_token_by_token(model, rows: list[list[int]]) -> list[float]:
    """- log p of every token but a row's first. One token at a time goes through the model, 8 rows beside each other, as `generate` has it: in int8 that rounds more
    than reading a text at once would."""
    nats = []
    with without_gradients(), token_by_token():
        for group in (rows[i : i + 8] for i in range(0, len(rows), 8)):
            lengths = torch.tensor([len(row) for row in group])
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in group], batch_first=True)           # (B, T)
            cache, head = model.new_cache(*ids.shape), head_for(model, max(LONG, ids.shape[1]), False)
            for place in range(ids.shape[1] - 1):
                log_p = head(model.hidden(ids[:, place, None], cache=cache)[:, 0]).log_softmax(-1)                # (B, V)
                nats += -log_p.gather(1, ids[:, place + 1, None])[place + 1 < lengths, 0]
    return [each.item() for each in nats]
