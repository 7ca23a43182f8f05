"""Steps of the engine run to their end for one caller: the opening of a pool, before it has a worker."""

from typing import TypeVar

import trio

from thinfs.errors import ThinfsError
from thinfs.steps import Steps
from thinfs.userspace.blocking import run_blocking

T = TypeVar("T")


async def run_steps(steps: Steps[T]) -> T:
    """What they return or raise. Cancelled within, they are given up."""
    error: ThinfsError | None = None
    while True:
        try:
            job = next(steps) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        if job is None:
            await trio.lowlevel.checkpoint()
            continue
        if job.blocks:
            await run_blocking(job.start)
        else:
            job.start()
        if not job.done:
            done = trio.Event()
            job.then(done.set)
            await done.wait()
        error = job.error
