"""The pool's worker in trio: runs the engine's Steps one at a time, and wakes it when time is up.

Promises: an operation that has begun is finished even when its caller is cancelled; blocking calls run in a
thread, everything else inline; long computation gives way every few milliseconds. Reads and writes in place
go past it. Source: design, "mapped reads and writes run inline in the trio thread".
"""

import time
from collections.abc import Sequence
from typing import Final, TypeVar

import trio

from thinfs.pool.bio import Bio
from thinfs.pool.pool import Pool
from thinfs.pool.thin import Thin
from thinfs.steps import Steps
from thinfs.userspace.blocking import run_blocking

T = TypeVar("T")

_SLICE_SECONDS: Final = 0.004


async def drive(steps: Steps[T]) -> T:
    """Run Steps to their end, shielded: half a commit is nothing anybody wants."""
    error: Exception | None = None
    slice_end = time.monotonic() + _SLICE_SECONDS
    while True:
        try:
            call = next(steps) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        if call is None and time.monotonic() < slice_end:
            continue
        with trio.CancelScope(shield=True):
            if call is None:
                await trio.lowlevel.checkpoint()
            else:
                try:
                    await run_blocking(call)
                except Exception as failure:
                    error = failure
        slice_end = time.monotonic() + _SLICE_SECONDS


class PoolWorker:
    """One per pool. `run_timer` is a task for the life of the pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._lock = trio.Lock()
        self._rescheduled = trio.Event()

    async def run(self, steps: Steps[T]) -> T:
        """Run one operation of the pool after those before it."""
        try:
            self._lock.acquire_nowait()  # free: no need to go round the scheduler
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            return await drive(steps)
        finally:
            self._lock.release()
            if self.pool.next_deadline() is not None:
                self._rescheduled.set()

    async def submit(self, thin: Thin, bios: Sequence[Bio]) -> None:
        """Let the worker do `bios`; returns when all are done, raises the first error among them."""
        self.pool.defer(thin, bios)
        await self.run(self._work_for(bios))
        for bio in bios:
            if not bio.done:
                done = trio.Event()
                bio.on_done = done.set
                await done.wait()
        for bio in bios:
            if bio.error is not None:
                raise bio.error

    def _work_for(self, bios: Sequence[Bio]) -> Steps[None]:
        if not all(bio.done for bio in bios):  # whoever held the lock before us may have done them
            yield from self.pool.work()

    async def run_timer(self) -> None:
        """Commit once a second while there are changes, and end the wait for space when its time is up."""
        while True:
            self._rescheduled = trio.Event()
            deadline = self.pool.next_deadline()
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await self._rescheduled.wait()
                continue
            await self.run(self.pool.work())
