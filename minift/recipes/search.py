"""The texts of an index that are nearest to a query. Proved in tests/recipes/test_encode.py."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from minift.embed import embed
from minift.errors import InputError
from minift.recipes.encode import EmbedderChoice, fingerprint
from minift.search import Index


@dataclass(frozen=True, kw_only=True)
class Config(EmbedderChoice):
    """Find the texts of an index that are nearest to a query."""

    index: Path
    """A folder that `minift encode` wrote, with the same model."""
    query: tuple[str, ...] = ()
    """What to look for; none: a query per line of standard input."""
    k: int = 5
    """How many texts to show."""
    prompt: str | None = None
    """The name of one of the model's prompts ("query"), or a text to be put before each; none: the model's default."""
    json: bool = False
    """A JSON object per line: query, score, number, text."""


@dataclass(frozen=True)
class Result:
    found: list[list[tuple[float, int, str]]]
    """Of each query: (score, number, text), the best first."""


def run(config: Config, quiet: bool = False) -> Result:
    queries = list(config.query) or [line.strip() for line in sys.stdin if line.strip()]
    if not queries:
        raise InputError("nothing to look for: pass --query, or a query per line on standard input")
    model, tokenizer = config.load()
    index = Index.load(config.index, fingerprint(model))
    file = config.index / "texts.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line] if file.exists() else []
    if len(texts) != len(index.vectors):
        raise InputError(f"{file} has {len(texts)} texts for {len(index.vectors)} vectors: build the index again with minift encode")
    scores, numbers = index.search(embed(model, tokenizer, queries, prompt=config.prompt), min(config.k, len(texts)))
    found = [[(float(s), int(n), texts[n]) for s, n in zip(*own)] for own in zip(scores, numbers)]
    if not quiet:
        for query, own in zip(queries, found):
            if not config.json:
                print(f"{query}")
            for score, number, text in own:
                line = {"query": query, "score": round(score, 4), "number": number, "text": text}
                print(json.dumps(line, ensure_ascii=False) if config.json else f"  {score:6.3f}  {number:>6}  {' '.join(text.split())[:100]}")
    return Result(found)
