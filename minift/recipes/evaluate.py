"""Measure a model on a file.

    text            bits per byte and perplexity over whole documents, read through overlapping windows
    questions       loss per answer token; with --generate also ROUGE-L and exact match of what the model answers

Perplexity depends on the tokenizer, bits per byte does not. Proved in tests/recipes/test_using.py."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from minift.data import pydocs
from minift.data.examples import Learn, build, prompt_ids
from minift.data.sources import Row, read
from minift.errors import InputError
from minift.evaluate.generation import VARIANT, score
from minift.evaluate.perplexity import perplexity, scored_bytes, text_bits_per_byte
from minift.files import write_text
from minift.generate import generate
from minift.recipes.loading import ModelChoice, read_by
from minift.recipes.report import terminal_table


@dataclass(frozen=True, kw_only=True)
class Config(ModelChoice):
    """Perplexity, bits per byte, ROUGE-L and exact match of a model on a file."""

    data: tuple[str, ...]
    """Files or globs; or "pydocs": the docstrings of the modules that the bundled model was never shown."""
    template: str | None = None
    """How messages become text; none: the tokenizer's own, else plain."""
    learn: Learn = "completion"
    """Which tokens are scored: completion, assistant, or all."""
    context: int = 512
    """Texts: tokens of a window."""
    stride: int = 256
    """Texts: how far the window moves on; each token is scored once, with at least context - stride tokens before it."""
    max_length: int = 1024
    """Questions: longest example in tokens."""
    generate: int = 0
    """Questions: answer this many of them and score the answers."""
    max_new_tokens: int = 64
    """Longest answer."""
    limit: int | None = None
    """Only the first rows."""
    out: Path | None = None
    """Write the numbers as JSON to this file too."""


def run(config: Config) -> dict[str, float]:
    rows = _rows(config.data)[: config.limit]
    if not rows:
        raise InputError(f"--limit {config.limit} leaves no row to measure")
    model, tokenizer = config.load(pairs=True)
    start = read_by(model.config, tokenizer, rows, config.template)
    if start is None and all(row.format == "text" for row in rows):
        found = text_bits_per_byte(model, tokenizer, [row.completion for row in rows], config.context, config.stride)
        title = f"{len(rows)} texts, windows of {config.context} tokens, stride {config.stride}"
    else:
        examples, report = build(rows, tokenizer, learn=config.learn, max_length=config.max_length, start=start)
        found = perplexity(model, examples, text_bytes=scored_bytes(tokenizer, examples))
        title = f"{report.kept} questions" + (f", {report.truncated} of them cut to {config.max_length} tokens" if report.truncated else "")
    values = {"nats per token": found.nats_per_token, "perplexity": found.perplexity, "tokens": found.tokens}
    if found.bits_per_byte is not None:
        values |= {"bits per byte": found.bits_per_byte, "bytes": found.bytes}
    if config.generate:
        values |= _answers(model, tokenizer, [row for row in rows if row.answer][: config.generate], config, start)
    shown = [[name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}"] for name, value in values.items()]
    Console().print(terminal_table(title, ["measure", "value"], shown))
    if config.generate:
        print(VARIANT)
    if config.out is not None:
        write_text(config.out, json.dumps(values, indent=2) + "\n")
    return values


def _rows(data: tuple[str, ...]) -> list[Row]:
    if data == ("pydocs",):
        return [Row("text", "pydocs", completion=text) for text in pydocs.documents("test")]
    return read(data)


def _answers(model, tokenizer, rows: list[Row], config: Config, start: int | None) -> dict[str, float]:
    if not rows or rows[0].format == "text":
        raise InputError("--generate needs questions with answers; these rows are plain text")
    prompts = [prompt_ids(row, tokenizer, start=start) for row in rows]
    scores = score([text.strip() for text in generate(model, tokenizer, prompts, config.max_new_tokens)], [row.answer.strip() for row in rows])
    return {f"ROUGE-L ({len(rows)} answers)": scores.rouge_l, "exact match": scores.exact_match}
