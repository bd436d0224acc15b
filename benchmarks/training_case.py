"""What all sides of benchmarks/training.py are given: the shapes, the rows, the numbers of the step, and the files they start from.

    exact     8 rows of 256 random tokens, all of which are targets: nothing is padded, packed or left out by anyone
    real      "write this function": the summary line of a function of this machine's Python is the question, its code the answer, which alone is learned

The real rows have a median of 123 tokens, a mean of 175, and are cut at 512; the model's vocabulary is larger than the tokenizer that made their ids, so that
the head is as wide as that of the other rows. No row holds token 0, so whoever pads with it can be counted.
QLoRA's model is 320 wide: where a row of a weight is not whole blocks of 64 numbers, bitsandbytes 0.50.2 dequantizes some of them with others' scales on a CPU
with AVX-512 (docs/quant_cpu.md), so at 288 there is no right loss to compare with."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

RATE, SEED, RANK, ALPHA = 1e-3, 0, 8, 16
"""Learning rate (constant), and LoRA's numbers."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PAD, END, UNKNOWN = 0, 2, 3


@dataclass(frozen=True)
class Shape:
    """LLaMA's form, head and embedding tied."""

    width: int
    layers: int
    heads: int
    inner: int
    vocab: int = 32_000


@dataclass(frozen=True)
class Sizes:
    shapes: dict[str, Shape]
    rows: int = 8
    length: int = 256
    """Of an exact batch."""
    batches: int = 8
    """After these, the same again."""
    real: int = 2048
    """Rows of the real data."""
    longest: int = 512


SMALL = Shape(288, 6, 6, 768)
FULL = Sizes({"15m": SMALL, "15m-v4096": replace(SMALL, vocab=4096), "17m": Shape(320, 6, 5, 768), "110m": Shape(768, 12, 12, 2048)})
TINY = Shape(64, 2, 2, 128, 8192)
QUICK = Sizes({"15m": TINY, "15m-v4096": replace(TINY, vocab=512), "17m": TINY, "110m": TINY}, rows=3, length=17, batches=3, real=24, longest=60)


@dataclass(frozen=True)
class Case:
    shape: str
    method: str
    """full, lora or qlora."""
    real: bool = False


CASES = {
    "full": Case("15m", "full"), "lora": Case("15m", "lora"), "qlora": Case("17m", "qlora"),
    "full-110m": Case("110m", "full"), "lora-110m": Case("110m", "lora"),
    "full-v4096": Case("15m-v4096", "full"), "lora-v4096": Case("15m-v4096", "lora"),
    "real": Case("15m", "full", real=True), "defaults": Case("15m", "full", real=True),
    "start": Case("15m-v4096", "lora"),
}  # fmt: skip


def base(folder: Path, case: str) -> Path:
    """Of the model."""
    return folder / CASES[case].shape / "base"


def adapter(folder: Path, case: str) -> Path:
    return folder / CASES[case].shape / "lora"


def exact_rows(sizes: Sizes, case: str):
    """(batches, rows, length) of random tokens."""
    import torch

    dice = torch.Generator().manual_seed(SEED)
    return torch.randint(8, sizes.shapes[CASES[case].shape].vocab, (sizes.batches, sizes.rows, sizes.length), generator=dice)


def real_rows(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(question, answer) of every row, in order."""
    return [tuple(row) for row in json.loads((folder / "rows.json").read_text())]


def write_real(sizes: Sizes) -> list[tuple[list[int], list[int]]]:
    from minift import tokenizer
    from minift.data.texts import docstring_pairs
    from minift.folder import locate

    tokens, pairs = tokenizer.load(locate("base")), docstring_pairs("train")
    rows = []
    for found in random.Random(SEED).sample(pairs, min(sizes.real, len(pairs))):
        summary, code = found.texts
        ids, learned = tokens.encode_segments([(summary + "\n", False), (code, True)])
        ids, start = [token or UNKNOWN for token in ids], learned.index(True)
        asked = ids[: min(start, sizes.longest // 2)]
        rows.append((asked, [*ids[start:], END][: sizes.longest - len(asked)]))
    return rows


def write_model(folder: Path, shape: Shape):
    """transformers' model with random weights, written and returned."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, intermediate_size=shape.inner, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        pad_token_id=PAD, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def write_start(folder: Path, sizes: Sizes) -> None:
    """Of every shape the model and a LoRA adapter whose B is not zero, as transformers and peft write them; the real rows."""
    import torch
    from peft import LoraConfig, get_peft_model

    for name, shape in sizes.shapes.items():
        model = get_peft_model(write_model(folder / name / "base", shape), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEARS), task_type="CAUSAL_LM"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        model.save_pretrained(folder / name / "lora")
    (folder / "rows.json").write_text(json.dumps(write_real(sizes)))
