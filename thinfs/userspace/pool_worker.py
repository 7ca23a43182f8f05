"""The pool's worker in trio: runs the engine's Steps one at a time, and wakes it when time is up.

Promises: an operation that has begun is finished even when its caller is cancelled; what blocks runs in a thread,
everything else inline, at once where nobody else is at it: a bio submitted to an idle pool is done on return unless it
must wait. Long computation gives way every few milliseconds. Nothing is advanced while the metadata device, or what
that stands on, holds its I/O: its reads cannot wait in the middle of a change.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import trio

from thinfs.errors import ThinfsError
from thinfs.pool.pool import Pool
from thinfs.steps import Job, Steps
from thinfs.userspace.blocking import Background

T = TypeVar("T")

_SLICE_SECONDS: Final = 0.004


class _Operation(Generic[T]):
    """Steps that are to run, or have run, with what came of them."""

    __slots__ = ("done", "error", "result", "steps")

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps
        self.done: trio.Event | None = None  # made by whoever waits
        self.error: Exception | None = None
        self.result: T | None = None


class PoolWorker:
    """One per pool. `run_timer` is a task for the life of the pool."""

    def __init__(self, pool: Pool, background: Background, metadata_is_held: Callable[[], bool]) -> None:
        self.pool = pool
        self._background = background
        self._metadata_is_held = metadata_is_held
        self._queue: deque[_Operation[object]] = deque()
        self._current: _Operation[object] | None = None
        self._job: Job | None = None  # what the current operation waits for
        self._pausing = False  # it has used up its slice, and goes on soon
        self._advancing = False
        self._token = trio.lowlevel.current_trio_token()
        self._deadline: float | None = None  # what the timer sleeps for
        self._rescheduled = trio.Event()
        pool.state.wake = self.pump

    async def run(self, steps: Steps[T]) -> T:
        """Run one operation of the pool after those before it. Cancelled before it has begun, it never begins."""
        operation = _Operation(steps)
        self._queue.append(operation)  # type: ignore[arg-type]
        self.pump()
        if operation in self._queue or operation is self._current:
            operation.done = trio.Event()
            try:
                await operation.done.wait()
            except trio.Cancelled:
                if operation in self._queue:
                    self._queue.remove(operation)  # type: ignore[arg-type]
                    raise
                with trio.CancelScope(shield=True):
                    await operation.done.wait()
                raise
        if operation.error is not None:
            raise operation.error
        return operation.result  # type: ignore[return-value]

    def pump(self) -> None:
        """Go on as far as possible now: after a bio was deferred, a job is done, a device has resumed."""
        if self._advancing:
            return  # by the caller of our caller, who will see what is new
        self._advancing = True
        try:
            while self._begin_next() and self._advance():
                pass
        finally:
            self._advancing = False
        self._reschedule()

    def _begin_next(self) -> bool:
        """Whether there is an operation to advance."""
        if self._current is None:
            if self._queue:
                self._current = self._queue.popleft()
            elif self.pool.pending.with_bios and not self.pool.suspended:
                self._current = _Operation(self.pool.work())
        return self._current is not None

    def _advance(self) -> bool:
        """Whether the current operation has come to its end; else it waits, and somebody will call `pump`."""
        operation, error = self._current, None
        assert operation is not None
        if self._pausing:
            return False
        if self._job is not None:
            if not self._job.done:
                return False
            error, self._job = self._job.error, None
        slice_end = time.monotonic() + _SLICE_SECONDS
        while True:
            if self._metadata_is_held():
                self._job = _Over(error)
                return False
            try:
                job = next(operation.steps) if error is None else operation.steps.throw(error)
            except StopIteration as stop:
                return self._finish(operation, stop.value, None)
            except Exception as failure:
                return self._finish(operation, None, failure)
            error = None
            if job is None:
                if time.monotonic() >= slice_end:
                    self._pausing = True
                    self._token.run_sync_soon(self._go_on)
                    return False
            elif job.blocks:
                self._job = job
                self._background.start(job.start, self.pump)
                if not job.done:
                    return False
                error, self._job = job.error, None
            else:
                job.start()
                if not job.done:
                    self._job = job
                    job.then(self.pump)
                    return False
                error = job.error

    def _go_on(self) -> None:
        self._pausing = False
        self.pump()

    def _finish(self, operation: _Operation[object], result: object, error: Exception | None) -> bool:
        operation.result, operation.error = result, error
        self._current = None
        if operation.done is not None:
            operation.done.set()
        return True

    # -- time --------------------------------------------------------------------------------------------

    def _reschedule(self) -> None:
        deadline = self.pool.next_deadline()
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            self._rescheduled.set()

    async def run_timer(self) -> None:
        """Commit once a second while there are changes, and end the wait for space when its time is up."""
        while True:
            self._rescheduled = trio.Event()
            self._deadline = self.pool.next_deadline()
            with trio.move_on_at(float("inf") if self._deadline is None else self._deadline):
                await self._rescheduled.wait()
                continue
            await self.run(self.pool.work())


class _Over:
    """A job that was done before the metadata device was suspended; its error is delivered after the resume."""

    blocks: Final = False
    done: Final = True

    def __init__(self, error: ThinfsError | None) -> None:
        self.error = error

    def start(self) -> None:
        return

    def then(self, call: Callable[[], None]) -> None:
        call()
