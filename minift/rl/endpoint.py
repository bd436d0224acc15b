"""Asking a model that somebody else runs: POST {url}/chat/completions, as OpenAI's interface has it, and everything that can go wrong there.

    fault                                              what is done
    no connection, time-out, HTTP 429 and 5xx,         asked again, after 1, 2, 4 ... seconds or as long as Retry-After says;
    no JSON, an answer without a meaning               given up after `retries`, and counted
    any other status (wrong key, wrong model ...)      the run stops: asking again would not help
    more than `max_failures` questions given up        the run stops: the server is down

Several questions are on their way at once, in `workers` threads. The key comes from an environment variable and is never written anywhere:
settings and errors hold the variable's name. Redirects are not followed, since the key would go along.
Proved against a local server with every fault in tests/rl/test_judge.py. Left out: streaming, batches, other interfaces than chat."""

import email.utils
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from minift.errors import InputError, RunError

T = TypeVar("T")

LARGEST = 2**22
"""Bytes of a reply that are read."""
PASSING = {408, 425, 429}
"""Statuses below 500 after which asking again may help."""


class JudgeError(RunError):
    """A judge cannot be asked any more. What it has said so far is kept."""


class Fault(Exception):
    """One attempt that failed and may be made again; wait: seconds the server asked for."""

    def __init__(self, kind: str, detail: str = "", wait: float = 0.0):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.wait = kind, wait


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@dataclass
class Endpoint:
    """One model on one server."""

    url: str
    """Up to and without /chat/completions, as in http://127.0.0.1:8000/v1"""
    model: str
    key_variable: str | None = None
    """The environment variable that holds the key; None: no key is sent."""
    max_tokens: int = 16
    timeout: float = 60.0
    """Seconds for one attempt."""
    retries: int = 4
    """Attempts after the first."""
    wait: float = 1.0
    """Seconds before the second attempt, doubled each time."""
    longest_wait: float = 60.0
    workers: int = 4
    max_failures: int = 10
    counts: Counter = field(default_factory=Counter)
    """Faults of each kind, and questions "given up"."""

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"the endpoint is {self.url!r}; wanted a URL such as http://127.0.0.1:8000/v1")
        if self.timeout <= 0 or self.retries < 0 or self.workers < 1 or self.max_failures < 0:
            raise InputError("an endpoint wants timeout > 0, retries >= 0, workers >= 1 and max_failures >= 0")
        self.key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.key_variable and not (self.key and self.key.isascii() and self.key.isprintable()):
            raise InputError(f"the environment variable {self.key_variable} holds no key: set it, or name another variable")
        self.opener, self.lock = urllib.request.build_opener(NoRedirect), threading.Lock()

    def ask_all(self, questions: Sequence[str], read: Callable[[str], T | None]) -> Iterator[tuple[int, T | None]]:
        """(number of the question, what `read` makes of the reply) as replies come in; None where it was given up."""
        stopping, pool = threading.Event(), ThreadPoolExecutor(self.workers)
        try:
            asked = {pool.submit(self.ask, question, read, stopping): number for number, question in enumerate(questions)}
            for done in as_completed(asked):
                yield asked[done], done.result()
        finally:
            stopping.set()                                                  # nobody waits for a further attempt
            pool.shutdown(cancel_futures=True)

    def ask(self, question: str, read: Callable[[str], T | None], stopping: threading.Event | None = None) -> T | None:
        """What `read` makes of the reply; None if that is None, or if there is no reply, in every attempt. Raises JudgeError."""
        stopping, fault = stopping or threading.Event(), None
        for attempt in range(self.retries + 1):
            if fault is not None:
                stopping.wait(min(self.longest_wait, fault.wait or self.wait * 2 ** (attempt - 1)))
            if stopping.is_set():
                return None
            try:
                reply = self._post(question)
                if (found := read(reply)) is not None:
                    return found
                fault = Fault("nonsense", repr(reply[:80]))
            except Fault as failed:
                fault = failed
            self._count(fault.kind)
        if self._count("given up") > self.max_failures:
            stopping.set()
            raise JudgeError(f"the judge at {self.url} failed on {self.counts['given up']} questions, each after {self.retries + 1} attempts; the last: "
                             f"{fault}. What it has answered is kept: go on with --resume when it is well")
        return None

    def _count(self, what: str) -> int:
        with self.lock:
            self.counts[what] += 1
            return self.counts[what]

    def _post(self, question: str) -> str:
        """One attempt: the reply's text. Raises Fault or JudgeError."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(asked).encode(), headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                raw = _read(response, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            said = self._said(error)
            if error.code in PASSING or error.code >= 500:
                raise Fault(f"HTTP {error.code}", said, retry_after(error.headers.get("Retry-After"))) from None
            raise JudgeError(f"the judge at {self.url} refuses: HTTP {error.code} {error.reason}: {said}; check the URL, the model's name and the key") from None
        except (OSError, http.client.HTTPException) as error:               # URLError is an OSError, and so is TimeoutError
            reason = getattr(error, "reason", error)
            raise Fault("timed out" if isinstance(reason, TimeoutError) else "no connection", str(reason)) from None
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Fault("malformed reply", repr(raw[:80])) from None
        if not isinstance(content, str):
            raise Fault("malformed reply", f"the content is {content!r:.60}")
        return content

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The start of what the server says of an error; a server may quote the key."""
        try:
            said = error.read(1000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        return " ".join((said.replace(self.key, "***") if self.key else said).split())[:300]


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (a number, or a date); 0 if it says nothing."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, of at most LARGEST bytes; a server that drips it out is a time-out like any other."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the reply goes on and on")
        if size > LARGEST:
            raise Fault("malformed reply", f"more than {LARGEST} bytes")
    return b"".join(parts)
