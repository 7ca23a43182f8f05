"""What may happen to the process of a campaign: planted in it by name (hunt.PLANTED), for test_campaign."""

import os
import signal
import time
from itertools import count
from typing import Any

from thinfs.bio import Bio
from thinfs.pool.metadata import PoolMetadata

from . import pair

_SECOND = 2  # of the histories: the others are to be as always


def _in_the_second_snapshot(do: Any) -> None:
    honest, calls = PoolMetadata.create_snap, count(1)

    def create_snap(self: PoolMetadata, dev_id: int, origin_id: int) -> None:
        if next(calls) == _SECOND:
            do()
        honest(self, dev_id, origin_id)

    PoolMetadata.create_snap = create_snap  # type: ignore[method-assign]


def raises() -> None:
    honest = PoolMetadata.create_snap

    def create_snap(self: PoolMetadata, dev_id: int, origin_id: int) -> None:
        if dev_id == 3:
            raise ZeroDivisionError("planted")
        honest(self, dev_id, origin_id)

    PoolMetadata.create_snap = create_snap  # type: ignore[method-assign]


def crashes() -> None:
    _in_the_second_snapshot(lambda: os.kill(os.getpid(), signal.SIGKILL))


def sleeps() -> None:
    def sleep() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(1e6)

    _in_the_second_snapshot(sleep)


def runs_in_a_circle() -> None:
    pair.ENGINE_SECONDS = 1.0  # type: ignore[misc]
    pair._SHRINK_SECONDS = 3.0  # type: ignore[misc]

    def circle() -> None:
        while True:
            pass

    _in_the_second_snapshot(circle)


def forgets_a_bio() -> None:
    pair.ENGINE_SECONDS = 2.0  # type: ignore[misc]
    pair._SHRINK_SECONDS = 3.0  # type: ignore[misc]
    honest = Bio.complete

    def complete(self: Bio, *arguments: Any, **words: Any) -> None:
        if getattr(self, "offset", 0) != 0 or getattr(self, "length", 0) != 65536:
            honest(self, *arguments, **words)

    Bio.complete = complete  # type: ignore[method-assign]


def kills_the_guest() -> None:
    pair._SHRINK_SECONDS = 1.0  # type: ignore[misc]
    honest, calls = pair.KernelSide.run, count(1)

    def run(self: pair.KernelSide, *arguments: Any) -> Any:
        if next(calls) == _SECOND:
            self.guest.kill()
        return honest(self, *arguments)

    pair.KernelSide.run = run  # type: ignore[method-assign, assignment]
