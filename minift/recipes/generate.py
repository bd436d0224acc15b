"""Continue prompts: the text is streamed for one prompt, printed one after the other for several. An encoder-decoder answers, on a line of its own.

Proved in tests/recipes/test_using.py."""

import sys
from dataclasses import dataclass
from pathlib import Path

from minift.errors import InputError
from minift.generate import generate, stream
from minift.recipes.loading import ModelChoice, SamplingChoice
from minift.train import memory


@dataclass(frozen=True, kw_only=True)
class Config(ModelChoice, SamplingChoice):
    """Continue one or several prompts."""

    prompt: tuple[str, ...] = ()
    """The prompts; a quoted one may span lines."""
    file: Path | None = None
    """Or a text file with one prompt per line."""
    max_new_tokens: int = 64
    """Longest continuation."""


def run(config: Config) -> None:
    prompts = [*config.prompt, *(_lines(config.file) if config.file else [])]
    if not prompts:
        raise InputError("no prompt: give --prompt TEXT (several may follow) or --file FILE")
    model, tokenizer = config.load(pairs=True)
    memory.keep()                                                               # every prompt and step asks for the same pieces again
    between = "\n" if model.config.decoder_layers else ""
    if len(prompts) == 1:
        print(prompts[0], end=between, flush=True)
        for piece in stream(model, tokenizer, prompts[0], config.max_new_tokens, **config.options()):
            print(piece, end="", flush=True)
        print()
        return
    for number, (prompt, answer) in enumerate(zip(prompts, generate(model, tokenizer, prompts, config.max_new_tokens, **config.options()))):
        sys.stdout.write(("" if number == 0 else "\n---\n") + prompt + between + answer + "\n")


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts of {file}: {error}") from None
