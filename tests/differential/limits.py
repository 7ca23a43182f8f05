"""A limit in real time for what may never end: an engine that runs in a circle waits for nothing.

Promises: TooLong is raised in the code that runs, by a signal; in another thread than the first there is no limit (its
process has one: tests/differential/campaign).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TooLong(Exception):
    """Not done in the time that was given."""


@contextlib.contextmanager
def real_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not done in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
