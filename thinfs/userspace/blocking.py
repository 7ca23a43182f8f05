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


class Background:
    """Starts blocking calls without waiting for them; the nursery ends after the last of them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(self, call: Callable[[], None], then: Callable[[], None]) -> None:
        """`call` in a thread, then `then` here. `call` raises nothing."""
        if _ON_THE_SPOT.get():
            call()
            then()
        else:
            self._nursery.start_soon(self._run, call, then)

    async def _run(self, call: Callable[[], None], then: Callable[[], None]) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(call)
        then()
