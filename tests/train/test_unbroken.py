import os
import signal
import threading

import pytest

from minift.train.unbroken import unbroken


def test_an_interruption_waits_for_the_end_of_an_update():
    done, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with unbroken():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("first half")
            done.append("second half")
    assert len(done) == 2 and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError), unbroken():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before
    with unbroken():
        done.append("nothing came")
    other = threading.Thread(target=lambda: [done.append("a thread") for _ in [0] if unbroken().__enter__() is None])
    other.start()
    other.join()
    assert done[2:] == ["nothing came", "a thread"]
