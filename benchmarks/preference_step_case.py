"""What both sides of benchmarks/preference_step.py are given: the model's shape, the rows, the numbers of the step, and the files they start from.

Rows are random tokens, all of one length, so nothing is padded on either side; word n of the vocabulary is the token n, so that a trainer
that wants texts gets the same tokens. An answer's last token is the end token, which trainers add by themselves."""

from dataclasses import dataclass
from pathlib import Path

END = 2
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
RATE, BETA, KL = 1e-4, 0.1, 0.05
"""Learning rate (constant); DPO's beta; RLOO's and PPO's weight of the distance to the reference."""


@dataclass(frozen=True)
class Sizes:
    """LLaMA's form, embedding and head tied; how long texts are."""

    width: int = 288
    layers: int = 6
    heads: int = 6
    inner: int = 768
    vocab: int = 32_000
    pairs: int = 8
    """Of a batch of preferences."""
    prompt: int = 128
    answer: int = 128
    """Tokens of a preference, the end token among them."""
    asked: int = 64
    drawn: int = 64
    """Tokens of a prompt to be answered, and of each answer to it."""
    batches: int = 8
    """After these, the same again."""


FULL = Sizes()
QUICK = Sizes(width=64, layers=2, heads=2, inner=128, vocab=512, pairs=3, prompt=9, answer=7, asked=8, drawn=6, batches=3)

GROUPS = {"grpo": (2, 8), "rloo": (8, 2), "ppo": (16, 1)}
"""Prompts of a step, answers to each."""
PASSES = {"grpo": 1, "rloo": 1, "ppo": 4}


def preferences(sizes: Sizes) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of every pair, in order."""
    draw = _drawer(sizes)
    return [(draw(sizes.prompt), [*draw(sizes.answer - 1), END], [*draw(sizes.answer - 1), END]) for _ in range(sizes.batches * sizes.pairs)]


def prompts(sizes: Sizes, task: str) -> list[list[int]]:
    """The prompts of every step, in order."""
    draw = _drawer(sizes)
    return [draw(sizes.asked) for _ in range(sizes.batches * GROUPS[task][0])]


def _drawer(sizes: Sizes):
    import torch

    dice = torch.Generator().manual_seed(0)
    return lambda count: torch.randint(len(SPECIAL), sizes.vocab, (count,), generator=dice).tolist()


def word(token: int) -> str:
    return SPECIAL[token] if token < len(SPECIAL) else f"w{token}"


def text(ids: list[int]) -> str:
    return " ".join(map(word, ids))


def reward(texts: list[str]) -> list[float]:
    """A rule that costs nothing, for GRPO and RLOO on both sides."""
    return [float(len(found) % 7) for found in texts]


def write_start(folder: Path, sizes: Sizes) -> None:
    """The policy (base), a reward model (scorer) and what PPO's values start from (value), as transformers writes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = dict(
        vocab_size=sizes.vocab, hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads, intermediate_size=sizes.inner, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        pad_token_id=0, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder / "base")
    for name in ("scorer", "value"):
        LlamaForSequenceClassification(LlamaConfig(**config, num_labels=1)).save_pretrained(folder / name)
