"""Ctrl-C waits: of an update, half is nothing that a run could go on from.

Proved in tests/train/test_unbroken.py. Left out: other signals (SIGTERM and SIGKILL end a run, which then goes on from its last checkpoint)."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """An interruption inside the block comes at its end. In a thread, where none can come, nothing is done."""
    before, came = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda *given: came.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
