"""Which batches are fastest for ragged examples: padded by length, or packed?

    python -m benchmarks.batching

Both do the same work in the end: the same examples, the same targets, the same loss. Two sets of real texts from this machine: the
quickstart's pairs (short, of similar length) and whole docstrings (from one line to a thousand tokens). One LoRA step each on
batches of 4,096 tokens; counted are real tokens per second, pads do not count."""

import random
from statistics import median

import torch
from benchmarks.measure import ratios, store, take_turns

from minift import folder as folders
from minift import peft
from minift.data.batches import Example, by_length, micro_batches, pack, pad
from minift.data.examples import build
from minift.data.pydocs import documented, pairs
from minift.recipes.quickstart import as_row
from minift.recipes.sft import loss
from minift.train.precision import autocast

TOKENS = 4096


def main() -> None:
    model, tokenizer = folders.load("base")
    peft.attach(model, peft.LoRA(rank=8, alpha=16))
    dice = random.Random(0)
    short, _ = build([as_row(pair) for pair in dice.sample(pairs("train"), 400)], tokenizer, max_length=256)
    texts = dice.sample([d.text for d in documented(("python",)) if d.text], 150)
    ragged = [Example(ids := tokenizer.encode(text)[:1024], [i > 0 for i in range(len(ids))]) for text in texts]
    results = {}
    for name, examples in (("pairs", short), ("docstrings", ragged)):
        longest = max(len(example.ids) for example in examples)
        systems = {
            "shuffled, padded": shuffled(examples),
            "bucketed, padded": [pad([examples[i] for i in batch]) for batch in by_length(examples, TOKENS, seed=0)],
            "packed": micro_batches(pack(examples, longest), max(1, TOKENS // longest)),
        }
        real = sum(len(example.ids) for example in examples)
        seconds = take_turns({kind: lambda batches=batches: epoch(model, batches) for kind, batches in systems.items()}, rounds=3)
        faster = ratios(seconds, "shuffled, padded")
        results[name] = {
            kind: {"real_tokens_per_s": round(real / median(seconds[kind])), "speedup": round(faster[kind], 2),
                   "padded_tokens": sum(batch.token_ids.numel() for batch in batches), "real_tokens": real, "steps": len(batches)}
            for kind, batches in systems.items()
        }
        for kind, row in results[name].items():
            print(f"{name:<12}{kind:<18}{row['real_tokens_per_s']:>8,} real tokens/s   x{row['speedup']:.2f}   "
                  f"{row['padded_tokens'] / real:.2f} places per real token", flush=True)
    store("batching", results)


def shuffled(examples: list[Example]) -> list:
    """The naive way: batches of a fixed number of examples in random order, each padded to its longest."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    size = max(1, TOKENS * len(examples) // sum(len(e.ids) for e in examples) // 2)
    return [pad([examples[i] for i in order[start : start + size]]) for start in range(0, len(order), size)]


def epoch(model, batches) -> None:
    for batch in batches:
        with autocast("auto"):
            total, count = loss(model, batch)
        (total / count.clamp(min=1)).backward()
        model.zero_grad()


if __name__ == "__main__":
    main()
