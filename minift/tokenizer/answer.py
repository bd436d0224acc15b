"""The text of an answer whose tokens come one by one, and the strings that end it.

    add: token -> has a stop string come?       safe: how much of the text is certain       finish: the whole text

A stop string may be spread over several tokens, so an ending that could become one is held back; so is half a character.
Proved in tests/test_generate.py. Left out: end tokens, which the caller knows (generate.py)."""

from collections.abc import Sequence

from minift.tokenizer.tokenizer import StreamDecoder, Tokenizer


class Answer:
    """The text of one answer, growing token by token: never half a character, cut before a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]):
        self.decoder = StreamDecoder(tokenizer, continues=bool(tokenizer.decode(prompt)))     # behind a text, a leading blank counts
        self.stop, self.text, self.stopped = stop, "", False

    def add(self, token: int) -> bool:
        """Append a token; True if that completed a stop string, after which the answer is final."""
        return self._append(self.decoder.push(token))

    def finish(self) -> str:
        """The whole answer, now that no token follows. A character that was cut off by the end is left out."""
        if not self.stopped:
            self._append(self.decoder.flush().rstrip("\ufffd"))
        return self.text

    def safe(self) -> int:
        """How many characters no later token can take back: all but the longest ending that may become a stop string."""
        held = [size for stop in self.stop for size in range(1, len(stop)) if self.text.endswith(stop[:size])]
        return len(self.text) if self.stopped else len(self.text) - max(held, default=0)

    def _append(self, new: str) -> bool:
        self.text += new
        found = [place for place in map(self.text.find, self.stop) if place >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        return self.stopped
