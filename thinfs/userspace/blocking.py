"""Where blocking calls run: in a thread, or on the spot in a run of virtual time.

A mock clock knows nothing of threads: it would jump to the next deadline while one flushes. So a run with
such a clock says `run_on_the_spot()` first, and every operation takes no time at all.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

_ON_THE_SPOT: Final = trio.lowlevel.RunVar("blocking calls on the spot", default=False)


def run_on_the_spot() -> None:
    """For the present trio.run."""
    _ON_THE_SPOT.set(True)


async def run_blocking(call: Callable[..., T], *arguments: object) -> T:
    """What `call` returns or raises; not cancellable once begun."""
    if _ON_THE_SPOT.get():
        await trio.lowlevel.checkpoint_if_cancelled()
        return call(*arguments)
    return await trio.to_thread.run_sync(call, *arguments)
