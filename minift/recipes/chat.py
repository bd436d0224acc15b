"""Talk to a model in the terminal. The whole conversation is rendered by the model's chat template before each answer, exactly as
in training (data/examples.py), and the answer is streamed. An empty line or ctrl-D ends it; /new starts afresh.

Proved in tests/recipes/test_using.py. Left out: keeping the KV cache between turns (templates may rewrite earlier turns)."""

from dataclasses import dataclass

from minift.data.examples import ask, prompt_ids
from minift.data.sources import Message, Row
from minift.generate import stream
from minift.recipes.loading import ModelChoice, SamplingChoice, use_template
from minift.train import memory


@dataclass(frozen=True, kw_only=True)
class Config(ModelChoice, SamplingChoice):
    """Talk to a model in the terminal."""

    system: str = ""
    """Said to the model before the conversation."""
    template: str | None = None
    """chatml, llama-2, llama-3, alpaca, plain; none: the tokenizer's own, else plain."""
    max_new_tokens: int = 256
    """Longest answer."""


def run(config: Config) -> None:
    model, tokenizer = config.load()
    memory.keep()
    use_template(tokenizer, [ask("")], config.template)
    opening: list[Message] = [{"role": "system", "content": config.system}] if config.system else []
    messages = list(opening)
    print("An empty line ends the conversation, /new starts a new one.")
    while (said := _ask()) not in (None, ""):
        if said == "/new":
            messages = list(opening)
            print("(a new conversation)")
            continue
        messages.append({"role": "user", "content": said})
        prompt = prompt_ids(Row("messages", "the conversation", messages=tuple(messages)), tokenizer)
        answer = ""
        for piece in stream(model, tokenizer, prompt, config.max_new_tokens, **config.options()):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None
